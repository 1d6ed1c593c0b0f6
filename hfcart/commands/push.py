"""`hfcart push`: a finished folder to the Hub, in one commit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hfcart import hub
from hfcart.commands.merge_adapters import adapter_configs
from hfcart.commands.push_space import is_space, push_space
from hfcart.errors import OutputError, VerifyError
from hfcart.progress import Progress
from hfcart.recipes.finished_finetuning import commit_message, read_any
from hfcart.recipes.finished_merge import check_files
from hfcart.records import (
    AdaptedTask,
    EvalRecord,
    FinetuneRecord,
    ImagesRecord,
    Selected,
    SourceData,
    TaskResult,
    TrainedTask,
)
from hfcart.records.file_names import RECORD
from hfcart.report.accuracy import belongs
from hfcart.results.benchmarks import BENCHMARKS, benchmark_files, files_of
from hfcart.results.card import CARD, Record, fresh_card, render_any
from hfcart.results.combine import combined
from hfcart.results.confusion import confusion_name, is_confusion_of, max_size
from hfcart.results.files import (
    FIGURE,
    MAX_RESULTS,
    RESULTS,
    believed,
    read_results,
    refuse_links,
    replace,
    results_in,
)
from hfcart.results.publish import accuracy_figure, publish_results_of
from hfcart.sources.replacing import artefact_of, refuse_replacing
from hfcart.system.disk import explain_os_errors
from hfcart.tasks.copies import copies_in, copy_name

LOGS = ("results/training.csv", "results/adaptation.csv")  # of a fine-tuning, and of a merge that learned
_RESULT_PARTS = (RESULTS, "results/", BENCHMARKS, FIGURE, "tasks/")


def run_push(
    folder: Path,
    repo: str,
    *,
    overwrite: bool,
    private: bool,
    create_pr: bool,
    message: str | None,
    progress: Progress,
    target: hub.Target | None = None,
) -> hub.Published:
    """Publish a folder that hfcart made, with its results if it has any. Safe to repeat: what is there is not resent.

    Results of the same weights that the repo has stay, task by task. A folder that holds nothing but results
    (`hfcart eval` of a repo writes one) is published as those, in the repo of the tower they were measured on.

    Args:
        folder: a merge, a fine-tuning, results, or a Space.
        repo: `user/name`.
        overwrite: replace whatever is there, the result of a whole split by a sample too.
        private: for a repo that has to be created.
        create_pr: open a pull request, and leave main alone.
        message: of the commit.
        progress: told of each stage, and of what is left out.
        target: `repo` as it was before the work, if it was looked at then and found fit for this very thing.

    Raises:
        OutputError: the folder is not finished, or a file is not what its record says.
        PublishError: no write access, a target that may not be replaced (without overwrite), or the Hub refused.
    """
    if not folder.is_dir():
        hint = "Give the folder that `hfcart merge` or `hfcart finetune` made."
        raise OutputError(f"There is no folder {folder}.", hint=hint)
    if is_space(folder):
        return push_space(
            folder,
            repo,
            overwrite=overwrite,
            private=private,
            create_pr=create_pr,
            message=message,
            progress=progress,
        )
    if not (folder / RECORD).is_file() and (folder / RESULTS).is_file():
        return publish_results_of(
            folder, repo, create_pr=create_pr, overwrite=overwrite, message=message, progress=progress
        )
    if not (folder / RECORD).is_file():
        raise OutputError(
            f"{folder} is not a finished tower of hfcart's: it has no {RECORD}.",
            hint="Finish it first with the same `hfcart merge` or `hfcart finetune` command.",
        )
    hub.set_notifier(progress.note)
    progress.step(f"Checking {folder}")
    record = read_any((folder / RECORD).read_bytes(), str(folder / RECORD))
    check_files(record, folder)
    refuse_links(folder)
    results = _results_to_push(folder, record, progress)
    if target is None:
        target = hub.check_target(repo, private=private, overwrite=overwrite, create_pr=create_pr)
        if not create_pr:
            refuse_replacing(target, artefact_of(record), overwrite=overwrite, progress=progress)
    shown, kept = _with_online(record, results, target, overwrite=overwrite, progress=progress)
    with explain_os_errors(folder):
        instead = _prepare(folder, record, results, shown, repo, progress) | kept
        instead |= adapter_configs(folder, record, repo)
    instead = copies_in(folder, _used(record, results)) | instead
    own = {*record.files, RECORD, CARD, *LOGS}
    left = [name for name in hub.publishable(folder) if name not in own and not _is_figure(name)]
    if foreign := [name for name in left if not name.startswith(_RESULT_PARTS)]:
        more = ", …" if len(foreign) > 5 else ""
        progress.note(f"Not published, for hfcart did not write it: {', '.join(foreign[:5])}{more}.")
    progress.step(f"Publishing to {repo}")
    published = hub.publish(
        folder,
        target,
        private=private,
        create_pr=create_pr,
        message=message or commit_message(record),
        overwrite=overwrite,
        leave=left,
        instead=instead,
    )
    if not published.changed:
        progress.note(f"{repo} holds exactly this already: nothing was sent.")
    return published


def _used(record: Record, results: EvalRecord | None) -> dict[tuple[str, str], ImagesRecord]:
    """The task cards that a folder's record and its results speak of, by id and digest, and their images."""
    tasks: list[TrainedTask | AdaptedTask | SourceData | Selected | TaskResult] = [
        *(results.results if results else ())
    ]
    if isinstance(record, FinetuneRecord):
        tasks += record.tasks
    else:
        tasks += record.data
        tasks += record.adaptation.tasks if record.adaptation else ()
        tasks += record.selection.sources if record.selection else ()
    return {(task.task, task.card_sha256): task.dataset for task in tasks}


def _is_figure(name: str) -> bool:
    return name.startswith("figures/") and name != FIGURE


def _results_to_push(folder: Path, record: Record, progress: Progress) -> EvalRecord | None:
    """The folder's results, if it has any and they are of its weights; a warning says why they stay behind."""
    if not (folder / RESULTS).is_file():
        return None
    try:
        results = results_in(folder)
    except VerifyError as error:
        progress.warn(f"Results are not published. {error.message}")
        return None
    if results is not None and not belongs(results, record):
        progress.warn(f"Results are not published: {RESULTS} was measured with other weights than the folder's.")
        return None
    return results


def _with_online(
    record: Record, results: EvalRecord | None, target: hub.Target, *, overwrite: bool, progress: Progress
) -> tuple[EvalRecord | None, dict[str, bytes]]:
    """The results to publish: the folder's, and those of the same weights that the repo has and the folder has not.

    Returns:
        The results, and what the repo has of those that stay: confusion matrices and entries for benchmarks.
    """
    online, there = None, None
    if RESULTS in target.files:
        there = hub.resolve(f"{target.repo}@{target.head}")
        where, snapshot = f"{target.repo}/{RESULTS}", there
        online = believed(lambda: read_results(hub.read_small(snapshot, RESULTS, MAX_RESULTS) or b"", where))
    if there is None or online is None or not belongs(online, record):
        if there is not None and results is None:
            progress.warn(f"{target.repo} has a {RESULTS} of other weights than the folder's: it goes.")
        return results, {}
    shown: EvalRecord = online
    stay: Sequence[TaskResult] = online.results
    if results is not None:
        found = combined(online, results, target.repo, progress, overwrite=overwrite)
        shown, stay = found.record, found.kept
    kept = {}
    for result in stay:
        matrix, entry = files_of(result.task)
        for name, limit in ((matrix, max_size(result)), (entry, MAX_RESULTS), (copy_name(result.task), MAX_RESULTS)):
            if name in there.files and there.files[name].size <= limit:
                kept[name] = hub.read_small(there, name, limit) or b""
        if not is_confusion_of(result, kept.get(matrix, b"")):
            kept.pop(matrix, None)
    return shown, kept


def _prepare(
    folder: Path,
    record: Record,
    results: EvalRecord | None,
    shown: EvalRecord | None,
    repo: str,
    progress: Progress,
) -> dict[str, bytes]:
    """Make what depends on the repo: a card that names it, unless somebody has edited it, and what shows the results.

    Args:
        folder: it gets the card, with its own results.
        record: of the folder.
        results: its own results.
        shown: those that the repo is going to have.
        repo: `user/name`.
        progress: told of what is left out.

    Returns:
        What is published beside the folder's files, or in their place.
    """
    instead = {}
    card = folder / CARD
    old = card.read_bytes().decode("utf-8", "replace") if card.is_file() else None
    if (fresh := fresh_card(old, record, results, [shown], repo=repo)) is not None:
        replace(card, fresh.encode())
        instead[CARD] = render_any(record, repo=repo, results=shown).encode()
    elif shown is not None:
        progress.warn(f"{CARD} was edited after hfcart wrote it: it is published as it is.")
    if shown is None:
        return instead
    for result in results.results if results is not None else ():
        path = folder / confusion_name(result.task)
        if result not in shown.results or not path.is_file():
            continue
        if is_confusion_of(result, data := path.read_bytes()):
            instead[confusion_name(result.task)] = data
        else:
            progress.warn(f"{confusion_name(result.task)} is not published: it does not agree with {RESULTS}.")
    instead |= {RESULTS: shown.to_json().encode()} | accuracy_figure(shown)
    if results is None:
        return instead
    return instead | benchmark_files(
        results, repo, progress, leave=[r.task for r in results.results if r not in shown.results]
    )
