"""`hfcart push`: a finished folder to the Hub, in one commit."""

from __future__ import annotations

from pathlib import Path

from hfcart import hub
from hfcart.errors import OutputError, VerifyError
from hfcart.merged import RECORD, check_files
from hfcart.progress import Progress
from hfcart.records import EvalRecord, FinetuneRecord
from hfcart.replacing import artefact_of, refuse_replacing
from hfcart.results.confusion import confusion_name, is_confusion_of
from hfcart.results.files import CARD, FIGURE, RESULTS, Record, fresh_card, refuse_links, replace, results_in
from hfcart.results.publish import BENCHMARKS, benchmark_files
from hfcart.scores import belongs
from hfcart.tuned import commit_message, read_any
from hfcart.writer import explain_os_errors

TRAINING = "results/training.csv"  # the losses of a fine-tuning
_RESULT_PARTS = (RESULTS, "results/", BENCHMARKS, FIGURE)


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

    Args:
        folder: a merge or a fine-tuning.
        repo: `user/name`.
        overwrite: replace whatever is there.
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
    if RESULTS in target.files and results is None:
        progress.warn(f"{repo} has a {RESULTS}, and {folder} has none to go with its weights: the old one goes.")
    with explain_os_errors(folder):
        parts = _prepare(folder, record, results, repo, progress)
    own = {*record.files, RECORD, CARD, *parts}
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
    )
    if not published.changed:
        progress.note(f"{repo} holds exactly this already: nothing was sent.")
    return published


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


def _prepare(folder: Path, record: Record, results: EvalRecord | None, repo: str, progress: Progress) -> list[str]:
    """Make what depends on the repo: a card that names it, unless somebody has edited it, and benchmark results.

    Returns:
        The files of the evaluation that are fit to be published.
    """
    card = folder / CARD
    old = card.read_bytes().decode("utf-8", "replace") if card.is_file() else None
    if (fresh := fresh_card(old, record, results, repo=repo)) is not None:
        replace(card, fresh.encode())
    elif (folder / RESULTS).is_file():
        progress.warn(f"{CARD} was edited after hfcart wrote it: it is published as it is.")
    for path in (folder / ".eval_results").glob("hfcart-*.yaml"):
        path.unlink()  # of an older evaluation, or of another repo
    training = isinstance(record, FinetuneRecord) and (folder / TRAINING).is_file()
    if results is None:
        return [TRAINING] * training
    from hfcart.plots import draw_accuracy  # as in hfcart.results

    parts = [RESULTS, draw_accuracy(results, folder), *[TRAINING] * training]
    for result in results.results:
        name = confusion_name(result.task)
        if not (folder / name).is_file():
            continue
        if is_confusion_of(result, (folder / name).read_bytes()):
            parts.append(name)
        else:
            progress.warn(f"{name} is not published: it does not agree with {RESULTS}.")
    for name, data in benchmark_files(results, repo, progress).items():
        replace(folder / name, data)
        parts.append(name)
    return parts
