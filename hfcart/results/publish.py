"""Results put into the Hub repo of the tower they were measured on, whoever made the repo."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from hfcart import __version__, hub
from hfcart.card_results import HUB, SOURCE, index_entry, metric_name, reported, share
from hfcart.errors import CorruptFileError, HfcartError, PublishError, VerifyError
from hfcart.front_matter import with_results
from hfcart.merged import MAX_RECORD, RECORD
from hfcart.progress import Progress
from hfcart.records import EvalRecord
from hfcart.results.confusion import Confusion, matrices_among
from hfcart.results.files import (
    CARD,
    FIGURE,
    MAX_RESULTS,
    RESULTS,
    Record,
    fresh_card,
    read_results,
    refuse_other_weights,
    results_files,
    warn_of_lost,
)
from hfcart.scores import belongs
from hfcart.sources import Tower, content_of, pin
from hfcart.tuned import read_any

BENCHMARKS = ".eval_results/hfcart-"  # and the task; other names are other people's


def check_results_target(repo: str, *, create_pr: bool) -> None:
    """Find out, before the work, whether results may be published in a repo.

    Raises:
        UsageError: `repo` is not written user/name.
        PublishError: no token, no such repo, or no write access (a pull request needs none).
    """
    target = hub.check_target(repo, private=False, overwrite=True, create_pr=create_pr)
    if not target.exists:
        raise PublishError(
            f"There is no repo {repo} to put results in.",
            hint="Results go to the repo of the tower. For a folder: hfcart push FOLDER --to user/name",
        )


def publish_results(
    repo: str,
    record: EvalRecord,
    confusions: Mapping[str, Confusion],
    *,
    create_pr: bool = False,
    message: str | None = None,
    progress: Progress,
) -> hub.Published:
    """Put an evaluation into the repo of the tower it measured, in one commit on main or as a pull request.

    A repo that hfcart made gets results.json, the confusion matrices, the figure, and its card written anew.
    Any other repo, and one whose card was edited, gets the results in its card's model-index, and all else of the
    card stays as it is. Both get `.eval_results/` for datasets that are benchmarks. Safe to repeat.

    Args:
        repo: `user/name`, without a revision.
        record: the evaluation.
        confusions: task -> its confusion matrix.
        create_pr: open a pull request, and leave main alone.
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
    refuse_other_weights(f"main of {repo}", record, content_of(tower))
    files, gone = benchmark_files(record, repo, progress), []
    card, made = _card_of(tower), _record_of(tower)
    fresh = None
    if made is not None and belongs(record, made):
        files |= results_files(record, confusions) | _figure(record)
        earlier = _earlier(tower)
        warn_of_lost(earlier, record, progress)
        fresh = fresh_card(card, made, record, [earlier], repo=repo)
        if fresh is None:
            progress.warn(f"The card of {repo} was edited after hfcart wrote it: only its model-index is brought up.")
        stale = [name for name in there.files if name.startswith(BENCHMARKS)] + matrices_among(there.files)
        gone = [name for name in stale if name not in files]
    text = _with_model_index(card or "", repo, record) if fresh is None else fresh
    if text is not None:
        files[CARD] = text.encode()
    if not files:
        raise PublishError(
            f"There is nothing to publish in {repo}: no whole test split was scored, and hfcart did not make the repo.",
            hint="Evaluate whole test splits: without --limit, on the test part.",
        )
    progress.step(f"Publishing the results to {repo}")
    tasks = len(record.results)
    published = hub.publish_files(
        repo,
        there.commit,
        files,
        delete=gone,
        create_pr=create_pr,
        message=message or f"Zero-shot accuracy on {tasks} task{'s' * (tasks != 1)} (hfcart {__version__})",
    )
    if not published.changed:
        progress.note(f"{repo} holds exactly these results already: nothing was sent.")
    return published


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
    try:
        data = tower.store.small(RESULTS, MAX_RESULTS)
        return None if data is None else read_results(data, RESULTS)
    except (VerifyError, CorruptFileError):
        return None


def _figure(record: EvalRecord) -> dict[str, bytes]:
    from hfcart.plots import draw_accuracy  # as in hfcart.results

    with tempfile.TemporaryDirectory(prefix="hfcart-eval-") as folder:
        return {FIGURE: (Path(folder) / draw_accuracy(record, Path(folder))).read_bytes()}


def _with_model_index(card: str, repo: str, record: EvalRecord) -> str | None:
    """The card with the results in its model-index; None if none is to be reported."""
    entries = [index_entry(result, f"{HUB}/{repo}") for result in reported(record)]
    if not entries:
        return None
    try:
        return with_results(card, repo.partition("/")[2], entries, SOURCE)
    except ValueError as error:
        raise PublishError(
            f"The results cannot be put into the front matter of {repo}/{CARD}: {error}.",
            hint=f"Put it right at {HUB}/{repo}/edit/main/{CARD}, then publish again.",
        ) from None


def benchmark_files(record: EvalRecord, repo: str, progress: Progress) -> dict[str, bytes]:
    """A file for every result whose dataset, at the commit read, declares a task on that configuration and split."""
    files = {}
    for result in reported(record):
        data = result.dataset
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
        files[f"{BENCHMARKS}{result.task}.yaml"] = hub.benchmark_result(
            data.repo, same[0].id, data.commit, share(result), page=page, notes=notes
        )
    return files
