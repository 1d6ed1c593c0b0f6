"""Results put into the Hub repo of the tower they were measured on, whoever made the repo."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from hfcart import __version__, hub
from hfcart.errors import CorruptFileError, PublishError, VerifyError
from hfcart.progress import Progress
from hfcart.quoting import plural
from hfcart.recipes.finished_finetuning import read_any
from hfcart.records import ClassScore, DatasetRecord, Environment, EvalRecord, FolderRecord, ImagesRecord, TaskResult
from hfcart.records.file_names import MAX_RECORD, RECORD
from hfcart.report.accuracy import belongs
from hfcart.report.links import HUB
from hfcart.results.benchmarks import BENCHMARKS, benchmark_files, files_of
from hfcart.results.card import CARD, Record, new_card
from hfcart.results.combine import combined
from hfcart.results.confusion import Confusion, confusion_name, matrices_among, max_size, read_confusion
from hfcart.results.files import (
    FIGURE,
    MAX_RESULTS,
    RESULTS,
    believed,
    read_results,
    refuse_links,
    refuse_other_weights,
    results_files,
    results_in,
)
from hfcart.sources.places import pin
from hfcart.sources.towers import Tower, content_of
from hfcart.tasks.copies import copies_in
from hfcart.tasks.dataset_ref import DatasetRef
from hfcart.tasks.task_cards import TaskCard


def check_results_target(
    repo: str,
    *,
    create_pr: bool,
    tasks: Sequence[TaskCard] = (),
    part: str = "test",
    limit: int | None = None,
    measured: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Find out, before the work, whether results may be published in a repo, and whether its card can take them.

    Args:
        repo: `user/name`.
        create_pr: whether it will be a pull request, which anybody may open.
        tasks: what is going to be measured.
        part: of which images.
        limit: of how many of them a task, None for all.
        measured: what is measured, as `user/name@revision`, if that is not main.
        progress: told of each stage.

    Raises:
        UsageError: `repo` is not written user/name.
        OutputError: `measured` has other weights than main.
        PublishError: no token, no such repo, no write access, or a card that results cannot be put into.
    """
    progress = progress or Progress()
    target = _existing(repo, create_pr)
    tower = pin(f"{repo}@{target.head}", progress)
    weights = content_of(tower)
    if measured is not None:
        refuse_other_weights(f"main of {repo}", content_of(pin(measured, progress)), weights)
    _try_card(tower, repo, _trial(repo, weights, tasks, part, limit), progress)


def publish_results(
    repo: str,
    record: EvalRecord,
    confusions: Mapping[str, Confusion],
    *,
    cards: Mapping[str, bytes] | None = None,
    create_pr: bool = False,
    overwrite: bool = False,
    message: str | None = None,
    progress: Progress,
) -> hub.Published:
    """Put an evaluation into the repo of the tower it measured, in one commit on main or as a pull request.

    A repo that hfcart made gets results.json, the confusion matrices, the figure, and its card written anew; results
    of the same weights that it has stay, task by task (see `combine`). Any other repo, and one whose card was edited,
    gets the results in its card's model-index, and all else of the card stays as it is. Both get `.eval_results/` for
    datasets that are benchmarks. Safe to repeat.

    Args:
        repo: `user/name`, without a revision.
        record: the evaluation.
        confusions: task -> its confusion matrix.
        cards: copies of the tasks' cards, by their file.
        create_pr: open a pull request, and leave main alone.
        overwrite: let a sample replace the result of a whole split.
        message: of the commit; its first line is the title.
        progress: told of what is left out.

    Raises:
        OutputError: main holds other weights than those that were measured.
        PublishError: refused, failed, nothing to publish, or main moved meanwhile.
        SourceError, HubError: the repo cannot be read.
    """
    hub.set_notifier(progress.note)
    progress.step(f"Checking {repo}")
    there = hub.resolve(repo)
    tower = pin(f"{repo}@{there.commit}", progress)
    refuse_other_weights(f"main of {repo}", record.weights_sha256, content_of(tower))
    card, made, earlier = _card_of(tower), _record_of(tower), None
    gone: list[str] = []
    if made is not None and belongs(record, made):
        earlier = _earlier(tower)
        found = combined(earlier, record, repo, progress, overwrite=overwrite)
        shown = found.record
        files = benchmark_files(record, repo, progress, leave=found.less)
        files |= results_files(found, confusions, cards) | accuracy_figure(shown)
        kept = {name for result in found.kept for name in files_of(result.task)}
        stale = [name for name in there.files if name.startswith(BENCHMARKS)] + matrices_among(there.files)
        stale += [FIGURE] if FIGURE in there.files else []
        gone = [name for name in stale if name not in files and name not in kept]
    else:
        made, shown = None, record
        files = benchmark_files(shown, repo, progress)
    text, edited = new_card(card, repo, made, shown, earlier)
    if edited:
        progress.warn(f"The card of {repo} was edited after hfcart wrote it: only its model-index is brought up.")
    if text is not None:
        files[CARD] = text.encode()
    if not files:
        raise _nothing_to_publish(repo)
    progress.step(f"Publishing the results to {repo}")
    tasks = len(record.results)
    published = hub.publish_files(
        repo,
        there.commit,
        files,
        delete=gone,
        create_pr=create_pr,
        message=message or f"Zero-shot accuracy on {plural(tasks, 'task')} (hfcart {__version__})",
    )
    if not published.changed:
        progress.note(f"{repo} holds exactly these results already: nothing was sent.")
    return published


def publish_results_of(
    folder: Path,
    repo: str,
    *,
    create_pr: bool = False,
    overwrite: bool = False,
    message: str | None = None,
    progress: Progress,
) -> hub.Published:
    """Publish the finished results that a folder holds in the repo of the tower they were measured on.

    Raises:
        VerifyError: its results.json is not an evaluation by hfcart.
        HfcartError: as `check_results_target` and `publish_results`.
    """
    hub.set_notifier(progress.note)
    progress.step(f"Checking {folder}")
    refuse_links(folder)
    record = results_in(folder)
    if record is None:
        raise VerifyError(f"{folder} holds no {RESULTS}.", hint="`hfcart eval` writes one.")
    _existing(repo, create_pr)
    confusions: dict[str, Confusion] = {}
    for result in record.results:
        path = folder / confusion_name(result.task)
        found = None
        if path.is_file() and path.stat().st_size <= max_size(result):
            found = read_confusion(result, path.read_bytes())
        if found is not None:
            confusions[result.task] = found
        else:
            progress.warn(f"{path} is not published: it is missing, or does not agree with {RESULTS}.")
    return publish_results(
        repo,
        record,
        confusions,
        cards=copies_in(folder, {(r.task, r.card_sha256): r.dataset for r in record.results}),
        create_pr=create_pr,
        overwrite=overwrite,
        message=message,
        progress=progress,
    )


def accuracy_figure(record: EvalRecord) -> dict[str, bytes]:
    """The chart of accuracies by its name, as a PNG; nothing where there are no two bars."""
    from hfcart.report.plots import draw_accuracy  # as in hfcart.results

    with tempfile.TemporaryDirectory(prefix="hfcart-eval-") as folder:
        name = draw_accuracy(record, Path(folder))
        return {name: (Path(folder) / name).read_bytes()} if name else {}


def _existing(repo: str, create_pr: bool) -> hub.Target:
    target = hub.check_target(repo, private=False, overwrite=True, create_pr=create_pr)
    if not target.exists:
        raise PublishError(
            f"There is no repo {repo} to put results in.",
            hint="Results go to the repo of the tower. For a folder: hfcart push FOLDER --push-to user/name",
        )
    return target


def _try_card(tower: Tower, repo: str, trial: EvalRecord, progress: Progress) -> None:
    """Put made-up results into the card that main has, and ask the Hub what it would say to that.

    Raises:
        PublishError: they cannot be put there, the Hub would refuse the card, or there would be nothing to publish.
    """
    card, made = _card_of(tower), _record_of(tower)
    made = made if made is not None and belongs(trial, made) else None
    text, _ = new_card(card, repo, made, trial, _earlier(tower))
    if text is None:
        raise _nothing_to_publish(repo)
    progress.step(f"Trying whether the card of {repo} takes results")
    if complaints := hub.validate_card(text):
        raise PublishError(
            f"The Hub would refuse the front matter of {repo}/{CARD} with results in it: {'; '.join(complaints)}",
            hint=f"Put it right at {HUB}/{repo}/edit/main/{CARD}, then run the same command again.",
        )


def _trial(repo: str, weights: str, tasks: Sequence[TaskCard], part: str, limit: int | None) -> EvalRecord:
    """Results in the form that those of the tasks are going to have, of one image each."""

    def result(name: str, title: str, digest: str, data: ImagesRecord, rows: int | None) -> TaskResult:
        known = rows if part == "test" else None  # a split that may be smaller than the limit counts as whole
        seen = (ClassScore("class", 1, 1),)
        return TaskResult(name, title, data, part, known or 1, limit if known else None, 0, 0, digest, seen)

    commit = "0" * 40
    results = [
        result(task.id, task.title, task.sha256, _images(data, commit), rows)
        for task in tasks
        for data, rows in [(task.dataset, task.dataset.test_size)]
    ]
    results = results or [result("task", "Task", "0" * 64, DatasetRecord("user/dataset", None, "test", commit), None)]
    return EvalRecord(repo, weights, repo, None, "float32", tuple(results), Environment(*["none"] * 7))


def _images(data: DatasetRef, commit: str) -> ImagesRecord:
    if data.repo is None:
        return FolderRecord(data.label, data.test_split, "0" * 64)
    return DatasetRecord(data.repo, data.config, data.test_split, commit)


def _nothing_to_publish(repo: str) -> PublishError:
    return PublishError(
        f"There is nothing to publish in {repo}: no whole test split of a dataset on the Hub was scored, and "
        "hfcart did not make the repo.",
        hint="Evaluate whole test splits of datasets on the Hub: without --limit, on the test part.",
    )


def _card_of(tower: Tower) -> str | None:
    data = tower.store.small(CARD)
    try:
        return None if data is None else data.decode("utf-8")
    except UnicodeDecodeError:
        raise PublishError(
            f"{tower.label}/{CARD} is not UTF-8 text, so no results can be put into it.",
            hint="Ask its owner to save it as UTF-8.",
        ) from None


def _record_of(tower: Tower) -> Record | None:
    try:
        data = tower.store.small(RECORD, MAX_RECORD)
        return None if data is None else read_any(data, f"{tower.label}/{RECORD}")
    except (VerifyError, CorruptFileError):
        return None


def _earlier(tower: Tower) -> EvalRecord | None:
    def read() -> EvalRecord | None:
        data = tower.store.small(RESULTS, MAX_RESULTS)
        return None if data is None else read_results(data, f"{tower.label}/{RESULTS}")

    return believed(read)
