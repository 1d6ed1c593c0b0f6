"""SweepRecord -> the table of its grid, in words. Pure."""

from __future__ import annotations

from hfcart.quoting import plural
from hfcart.records import AdapterSweep, CompareRecord, SweepPoint, SweepRecord
from hfcart.report.accuracy import mean_interval


def columns(record: SweepRecord) -> list[str]:
    """Headings of the table."""
    if record.adapters:
        return ["accuracy %", record.anchor, *map(rank_in_words, record.ranks), "individual"]
    return ["rank", *(f"scale {scale:g}" for scale in record.scales)]


def rows(record: SweepRecord) -> list[tuple[str, ...]]:
    """A line for each rank, mean accuracy in per cent for each scale; of adapters one for each task, and the mean.

    A star marks the best.
    """
    if record.adapters:
        return _by_task(record, record.adapters)
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
    over = f"over {plural(len(record.tasks), 'task')}, {sum(record.images):,} {record.part} images"
    if record.adapters:
        end = "the lowest" if record.reverse else "the top"
        carried = {"all": ", with its tower's own biases, norms and embeddings", "matrices": ""}[record.adapters.carry]
        found = [
            f"Each task through its own tower's adapter: {end} singular directions of its distance from the average"
            f"{carried}. Its size is in % of the tower's. {over[0].upper()}{over[1:]}; * the best mean."
        ]
        if (small := smallest(record)) is not record.points[record.best]:
            found.append(
                f"{rank_in_words(small.rank)} is the smallest rank whose mean is within the best one's 95 % interval."
            )
    else:
        anchor = f"the {record.anchor} alone reaches {100 * record.accuracy(record.points[0]):.1f}"
        found = [f"Mean accuracy in % {over}; {anchor}."]
    if record.limit:
        found.append(f"Partial: samples of at most {plural(record.limit, 'image')} a task.")
    if record.part == "test":
        found.append("Measured on test images: draw the curve, but do not report a setting chosen here.")
    return found


def smallest(record: SweepRecord) -> SweepPoint:
    """Of adapters, the smallest whose mean accuracy lies within the 95 % interval of the best one's."""
    assert record.adapters is not None
    best = record.points[record.best]
    low, _ = mean_interval(zip(best.correct, record.images, strict=True))
    good = [
        pair for pair in zip(record.adapters.sizes, record.points[1:], strict=True) if record.accuracy(pair[1]) >= low
    ]
    return min(good, key=lambda pair: pair[0])[1]


def images_in_words(record: SweepRecord | CompareRecord) -> str:
    """How many images of how many tasks were scored."""
    tasks = plural(len(record.tasks), "task")
    sample = f" (at most {record.limit:,} each)" if record.limit else ""
    return f"{sum(record.images):,} {record.part} images of {tasks}{sample}"


def rank_in_words(rank: int | float | None) -> str:
    """A number of directions, a share in per cent, or all."""
    if rank is None:
        return "all"
    return str(rank) if isinstance(rank, int) else f"{100 * rank:g} %"


def _by_task(record: SweepRecord, adapters: AdapterSweep) -> list[tuple[str, ...]]:
    points = [point.correct for point in record.points] + [adapters.individual]
    lines = [
        (task, *(f"{100 * correct[i] / n:.1f}" for correct in points))
        for i, (task, n) in enumerate(zip(record.tasks, record.images, strict=True))
    ]
    means = [record.accuracy(point) for point in record.points] + [individual(record)]
    stars = [" *" * (n == record.best) for n in range(len(means))]
    lines.append(("mean", *(f"{100 * mean:.1f}{star}" for mean, star in zip(means, stars, strict=True))))
    # Of the tower's: an adapter of full rank is larger than what it adds to.
    shares = [f"{100 * size / adapters.parameters:.1f} %" for size in adapters.sizes]
    return [*lines, ("adapter's size", "", *shares, "")]


def individual(record: SweepRecord) -> float:
    """Of a sweep of adapters, the mean accuracy of the tasks' own towers, in [0, 1]."""
    assert record.adapters is not None
    shares = [right / n for right, n in zip(record.adapters.individual, record.images, strict=True)]
    return sum(shares) / len(shares)
