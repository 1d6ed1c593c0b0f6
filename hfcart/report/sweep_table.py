"""SweepRecord -> the table of its grid, in words. Pure."""

from __future__ import annotations

from hfcart.quoting import plural
from hfcart.records import SweepRecord


def columns(record: SweepRecord) -> list[str]:
    """Headings of the table."""
    return ["rank", *(f"scale {scale:g}" for scale in record.scales)]


def rows(record: SweepRecord) -> list[tuple[str, ...]]:
    """A line for each rank, mean accuracy in per cent for each scale; a star marks the best."""
    best = record.points[record.best]
    return [
        (
            rank_in_words(row[0].rank),
            *(f"{100 * record.accuracy(point):.1f}" + " *" * (point is best) for point in row),
        )
        for row in record.rows()
    ]


def remarks(record: SweepRecord) -> list[str]:
    """What the numbers are, and what qualifies them."""
    tasks = plural(len(record.tasks), "task")
    anchor = f"the {record.anchor} alone reaches {100 * record.accuracy(record.points[0]):.1f}"
    found = [f"Mean accuracy in % over {tasks}, {sum(record.images):,} {record.part} images; {anchor}."]
    if record.limit:
        found.append(f"Partial: samples of at most {plural(record.limit, 'image')} a task.")
    if record.part == "test":
        found.append("Measured on test images: draw the curve, but do not report a setting chosen here.")
    return found


def rank_in_words(rank: int | float | None) -> str:
    """A number of directions, a share in per cent, or all."""
    if rank is None:
        return "all"
    return str(rank) if isinstance(rank, int) else f"{100 * rank:g} %"
