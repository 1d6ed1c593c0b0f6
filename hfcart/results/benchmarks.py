"""Results of datasets that are benchmarks: the files by which the Hub shows them."""

from __future__ import annotations

from collections.abc import Collection

from hfcart import hub
from hfcart.errors import HfcartError
from hfcart.progress import Progress
from hfcart.records import DatasetRecord, EvalRecord
from hfcart.report.links import HUB
from hfcart.report.results_section import metric_name, reported, share
from hfcart.results.confusion import confusion_name

BENCHMARKS = ".eval_results/hfcart-"  # and the task; other names are other people's


def files_of(task: str) -> tuple[str, str]:
    """Where a repo has the confusion matrix of a task, and its entry for a benchmark."""
    return confusion_name(task), f"{BENCHMARKS}{task}.yaml"


def benchmark_files(record: EvalRecord, repo: str, progress: Progress, leave: Collection[str] = ()) -> dict[str, bytes]:
    """A file for every result whose dataset, at the commit read, declares a task on that configuration and split.

    Args:
        record: the evaluation.
        repo: where it is going to be, `user/name`.
        progress: told of datasets that cannot be looked at.
        leave: tasks that get no file.
    """
    files = {}
    for result in [result for result in reported(record) if result.task not in leave]:
        data = result.dataset
        assert isinstance(data, DatasetRecord)  # `reported`
        try:
            tasks = hub.benchmark_tasks(data.repo, data.commit)
        except HfcartError as error:
            progress.warn(f"Whether {data.repo} is a benchmark could not be found out: {error.message}")
            continue
        same = [task for task in tasks if (task.config, task.split) == (data.config or "default", data.split)]
        if len(same) != 1:  # of two tasks on the same images it is not known which one this is
            continue
        notes = f"zero-shot {metric_name(result)}, a share of 1"
        page = f"{HUB}/{repo}"
        files[files_of(result.task)[1]] = hub.benchmark_result(
            data.repo, same[0].id, data.commit, share(result), page=page, notes=notes
        )
    return files
