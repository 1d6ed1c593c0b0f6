"""An evaluation as files: results.json, confusion matrices, the figure, and the card written anew.

results.json may be anybody's: `read_results` believes nothing of it that it cannot check.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hfcart.errors import CorruptFileError, OutputError, VerifyError
from hfcart.formats.markdown import one_line
from hfcart.formats.record_json import as_record, record_json, unlike
from hfcart.formats.safetensors_file import strict_json
from hfcart.progress import Progress
from hfcart.quoting import quoted
from hfcart.recipes.finished_finetuning import read_any
from hfcart.records import RECORD_FORMAT, EvalRecord
from hfcart.records.file_names import MAX_RECORD, RECORD
from hfcart.report.accuracy import belongs
from hfcart.results.card import CARD, Record, fresh_card
from hfcart.results.check import faults
from hfcart.results.combine import Combined, combined
from hfcart.results.confusion import FOLDER, Confusion, confusion_csv, confusion_name, matrices_among
from hfcart.system.disk import explain_os_errors
from hfcart.tasks.copies import FOLDER as CARDS
from hfcart.tasks.copies import copy_name

RESULTS = "results.json"
FIGURE = "figures/accuracy.png"
_UPDATE = "Update hfcart: pip install -U hfcart"
MAX_RESULTS = 20_000_000  # bytes; twenty tasks of a thousand classes take two millions


def read_results(data: bytes, where: str) -> EvalRecord:
    """Parse and check a results.json: types, ranges, counts that agree, commits, digests, names of one plain line.

    Args:
        data: the file's bytes.
        where: its name in messages.

    Raises:
        VerifyError: it is not an evaluation of a format this release reads; the sentence says what is wrong.
    """
    hint = "Evaluate again with `hfcart eval`, which writes a new one."
    if len(data) > MAX_RESULTS:
        raise VerifyError(f"{where} has {len(data):,} bytes, expected at most {MAX_RESULTS:,}.", hint=hint)
    try:
        found = record_json(data)
        if isinstance(found, dict) and type(number := found.get("format")) is int and number > RECORD_FORMAT:
            raise VerifyError(
                f"{where} has format {number}, this hfcart reads format {RECORD_FORMAT}.",
                hint=_UPDATE,
            )
        record = as_record(data, EvalRecord)
        if (field := unlike(found, strict_json(record.to_json().encode()))) is not None:
            raise ValueError(f"no evaluation writes such a {quoted(field, 200)}")
    except ValueError as error:
        raise VerifyError(f"{where} is not an evaluation by hfcart: {error}.", hint=hint) from None
    if wrong := next(faults(record), None):
        raise VerifyError(f"{where} is not an evaluation by hfcart: {wrong}.", hint=hint)
    return record


def results_files(
    found: Combined, confusions: Mapping[str, Confusion], cards: Mapping[str, bytes] | None
) -> dict[str, bytes]:
    """results.json, the confusion matrices and the task cards, by their names relative to the folder.

    Args:
        found: the new results, put together with those that are there.
        confusions: task -> its confusion matrix; tasks that are left out get no file.
        cards: copies of the new results' task cards, by their file.

    Raises:
        ValueError: a matrix that does not agree with the record.
    """
    matrices = {
        confusion_name(result.task): confusion_csv(result, confusions[result.task])
        for result in found.record.results
        if result.task in confusions and result.task not in found.less
    }
    copied = {name: card for name, card in (cards or {}).items() if name not in map(copy_name, found.less)}
    return {RESULTS: found.record.to_json().encode(), **matrices, **copied}


def write_results(
    folder: Path,
    record: EvalRecord,
    confusions: Mapping[str, Confusion],
    progress: Progress | None = None,
    *,
    cards: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
) -> EvalRecord:
    """Write an evaluation into a folder: results.json, results/confusion-<task>.csv, figures/accuracy.png, task cards.

    Results of the same weights that the folder holds stay, task by task: see `combine`. In a folder that hfcart made
    the card is written anew as well, if the results are of its weights and nobody has edited the card. Every file is
    replaced as a whole; results.json comes last, so that it is never there without the rest, and the same call again
    finishes what an interrupted one left.

    Args:
        folder: an existing folder or a new one.
        record: the evaluation.
        confusions: task -> its confusion matrix.
        progress: told of a card that is left alone.
        cards: copies of the tasks' cards, by their file.
        overwrite: let a sample replace the result of a whole split.

    Returns:
        What the folder holds now.

    Raises:
        OutputError: the folder cannot be written to, or a subfolder is a link.
        ValueError: a matrix that does not agree with the record.
    """
    from hfcart.report.plots import draw_accuracy  # matplotlib takes a second that readers of results need not spend

    progress = progress or Progress()
    refuse_links(folder)
    before = _earlier_in(folder)
    found = combined(before, record, str(folder), progress, overwrite=overwrite)
    if before and before.weights_sha256 != record.weights_sha256:
        progress.warn(f"{folder} had results of other weights ({one_line(before.tower, 100)}): they are replaced.")
    shown, files = found.record, results_files(found, confusions, cards)
    results, kept = files.pop(RESULTS), {confusion_name(result.task) for result in found.kept}
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in matrices_among(f"{FOLDER}/{path.name}" for path in (folder / FOLDER).glob("*.csv")):
            if name not in files and name not in kept:
                (folder / name).unlink()
        for name, data in files.items():
            replace(folder / name, data)
        draw_accuracy(shown, folder)
        _refresh_card(folder, shown, [before, record], progress)
        replace(folder / RESULTS, results)
    return shown


def replace(path: Path, data: bytes) -> None:
    """Write a file under another name and rename it: whoever looks sees the old file or the new one, whole.

    A link in its place, or in that of the other name, is replaced and not followed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with new.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def check_place(folder: Path) -> None:
    """Find out, before the work, whether results can be written to a folder.

    Raises:
        OutputError: it is no folder, may not be written to, or one of its subfolders is a link.
        VerifyError: it has results of a newer release.
    """
    refuse_links(folder)
    _earlier_in(folder)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "may not be written to" if there.is_dir() else "is no folder"
        raise OutputError(f"{there} {what}: the results would have no place.", hint="Give another --out FOLDER.")


def refuse_links(folder: Path) -> None:
    """Refuse a folder, a stranger's clone it may be, whose subfolders lead to other places: nothing is written there.

    Raises:
        OutputError: one of those that hfcart writes into is a link.
    """
    for name in (FOLDER, CARDS, FIGURE.partition("/")[0], ".eval_results"):
        if (folder / name).is_symlink():
            raise OutputError(
                f"{folder / name} is a link to another place, and nothing is written through it.",
                hint="Remove it, or write the results to a folder of their own: --out FOLDER",
            )


def results_in(folder: Path) -> EvalRecord | None:
    """The results that a folder holds, None if it holds none. Raises VerifyError if they cannot be believed."""
    path = folder / RESULTS
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_RESULTS:
        raise VerifyError(f"{path} has {path.stat().st_size:,} bytes, expected at most {MAX_RESULTS:,}.")
    return read_results(path.read_bytes(), str(path))


def _earlier_in(folder: Path) -> EvalRecord | None:
    return believed(lambda: results_in(folder))


def believed(read: Callable[[], EvalRecord | None]) -> EvalRecord | None:
    """The results that a place has already; None if it has none that can be believed.

    Raises:
        VerifyError: a newer release wrote them: this one could not take them along, so it does not replace them.
    """
    try:
        return read()
    except CorruptFileError:
        return None
    except VerifyError as error:
        if error.hint == _UPDATE:
            raise
        return None


def _refresh_card(folder: Path, record: EvalRecord, earlier: Sequence[EvalRecord | None], progress: Progress) -> None:
    made = record_in(folder)
    if made is None:
        return
    if not belongs(record, made):
        progress.warn(
            f"{folder.name}/{CARD} does not show these results: they were measured with other weights than those of "
            f"the folder's {RECORD}."
        )
        return
    path = folder / CARD
    card = path.read_bytes().decode("utf-8", "replace") if path.is_file() else None
    fresh = fresh_card(card, made, record, earlier)
    if fresh is None:
        progress.warn(
            f"{folder.name}/{CARD} was edited after hfcart wrote it, so it is left as it is. To have the accuracies on "
            f"it, move it away, run the same command again, and copy your changes into the new {CARD}."
        )
        return
    replace(path, fresh.encode())


def record_in(folder: Path) -> Record | None:
    """The record of what made a folder; None if hfcart did not, or its record cannot be believed."""
    path = folder / RECORD
    try:
        return read_any(path.read_bytes(), RECORD) if path.stat().st_size <= MAX_RECORD else None
    except (OSError, VerifyError):
        return None


def refuse_other_weights(where: str, measured: str, found: str) -> None:
    """Refuse to put results beside weights they were not measured with. Both are told by their digests.

    Raises:
        OutputError: the digests differ.
    """
    if measured != found:
        raise OutputError(
            f"The results are of weights with sha256 {measured[:12]}…, {where} holds {found[:12]}….",
            hint="Evaluate what is there now, and publish those results.",
        )
