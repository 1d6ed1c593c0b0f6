"""Confusion matrices as CSV files: which classes a tower takes for which."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

from hfcart.records import TaskResult
from hfcart.records.check import TASK_ID

Confusion = Sequence[Sequence[int]]
"""Counts of images, [true class][class found], in label order; an integer array will do."""

FOLDER = "results"
# A spreadsheet would run a cell that begins so.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NAME = re.compile(rf"{FOLDER}/confusion-({TASK_ID})\.csv")


def confusion_name(task: str) -> str:
    """Where the confusion matrix of a task is, relative to the folder."""
    return f"{FOLDER}/confusion-{task}.csv"


def confusion_csv(result: TaskResult, confusion: Confusion) -> bytes:
    """The confusion matrix as CSV: one line for each true class, one column for each class found.

    A name that a spreadsheet would take for a formula begins with an apostrophe.

    Raises:
        ValueError: counts that do not agree with the result's.
    """
    rows = [[int(count) for count in row] for row in confusion]
    if not _agree(result, rows):
        raise ValueError(f"the confusion matrix of {result.task} does not add up to its counts")
    names = _cells(result)
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["true \\ found", *names])
    writer.writerows([name, *row] for name, row in zip(names, rows, strict=True))
    return out.getvalue().encode()


def max_size(result: TaskResult) -> int:
    """Bytes that a confusion matrix of this result may have."""
    size = len(result.classes)
    return 100_000 + 16 * size * (size + 1) + 2000 * size


def read_confusion(result: TaskResult, data: bytes) -> Confusion | None:
    """The confusion matrix in a file, None unless it is this result's as `confusion_csv` writes it."""
    if len(data) > max_size(result):
        return None
    try:
        lines = list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
        rows = [[int(cell) for cell in line[1:]] for line in lines[1:]]
        return rows if confusion_csv(result, rows) == data else None
    except (ValueError, csv.Error):
        return None


def is_confusion_of(result: TaskResult, data: bytes) -> bool:
    """Whether a file is the confusion matrix of this result, as `confusion_csv` writes it."""
    return read_confusion(result, data) is not None


def _agree(result: TaskResult, rows: list[list[int]]) -> bool:
    size = len(result.classes)
    return (
        len(rows) == size
        and all(len(row) == size and min(row) >= 0 for row in rows)
        and all(sum(row) == score.n for row, score in zip(rows, result.classes, strict=True))
        and all(rows[i][i] == score.correct for i, score in enumerate(result.classes))
    )


def _cells(result: TaskResult) -> list[str]:
    return ["'" + score.name if score.name.startswith(_FORMULA) else score.name for score in result.classes]


def matrices_among(names: Iterable[str]) -> list[str]:
    """Those of the names that confusion matrices of hfcart's have."""
    return [name for name in names if _NAME.fullmatch(name)]
