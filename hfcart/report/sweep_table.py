"""SweepRecord -> the table of its grid, in words. Pure."""

from __future__ import annotations

from hfcart.quoting import plural
from hfcart.records import AdapterSweep, CompareRecord, SweepPoint, SweepRecord
from hfcart.report.paired_test import HOW, LEVEL, MARKS, mark, verdict


def columns(record: SweepRecord) -> list[str]:
    """Headings of the table."""
    if record.adapters:
        return ["accuracy %", record.anchor, *map(rank_in_words, record.ranks), "individual"]
    return ["rank", *(f"scale {scale:g}" for scale in record.scales)]


def rows(record: SweepRecord) -> list[tuple[str, ...]]:
    """A line for each rank, mean accuracy in per cent for each scale; of adapters one for each task, and the mean.

    The best is marked, and what cannot be told from it.
    """
    if record.adapters:
        return _by_task(record, record.adapters)
    return [
        (
            rank_in_words(row[0].rank),
            *(f"{100 * record.accuracy(point):.1f}{marked(record, point)}" for point in row),
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
            f"{carried}. Its size is in % of the tower's. {over[0].upper()}{over[1:]}."
        ]
    else:
        anchor = f"the {record.anchor} alone reaches {100 * record.accuracy(record.points[0]):.1f}"
        found = [f"Mean accuracy in % {over}; {anchor}."]
    found += _evidence(record)
    if record.limit:
        found.append(f"Partial: samples of at most {plural(record.limit, 'image')} a task.")
    if record.part == "test":
        found.append("Measured on test images: draw the curve, but do not report a setting chosen here.")
    return found


def _evidence(record: SweepRecord) -> list[str]:
    """What the images say of the settings; nothing of test images, by which none is chosen, nor of an older record."""
    (anchor, *points), best = record.points, record.points[record.best]
    if record.part == "test" or anchor.p is None:
        return []
    name = _in_words(record, best)
    others = [(_in_words(record, point), point.p) for point in points if point.p is not None]
    found = verdict(name, others, sum(record.images), record.part)
    found = f"{found[:1].upper()}{found[1:]} " if found else ""
    found += f"The {record.anchor} alone is {_beside(record, anchor)} {name}."
    if record.adapters and (small := smallest(record)) is not best:
        found += f" {rank_in_words(small.rank)} is the smallest rank that is not distinguishable from the best."
    marks = any(marked(record, point) for point in record.points)
    return [found, HOW + f" {MARKS}" * marks, *_beyond(record)]


def _beyond(record: SweepRecord) -> list[str]:
    """Where the best scale is at an end of those tried, what that says of others."""
    scale, tried = record.points[record.best].scale, sorted(set(record.scales))
    if len(tried) == 1 or scale not in (tried[0], tried[-1]):
        return []
    end, others = ("smallest", "smaller") if scale == tried[0] else ("largest", "larger")
    return [f"The best scale is the {end} of those tried: {others} ones may be better."]


def _beside(record: SweepRecord, anchor: SweepPoint) -> str:
    if anchor.p is None or anchor.p >= LEVEL:
        return "not distinguishable from"
    return "worse than" if record.accuracy(anchor) < record.accuracy(record.points[record.best]) else "better than"


def marked(record: SweepRecord, point: SweepPoint) -> str:
    """The mark behind a point's mean; none on test images, in an older record, and where the anchor alone is best."""
    known = [other.p for other in record.points if other.p is not None]
    if record.part == "test" or not known or _beside(record, record.points[0]) == "better than":
        return ""
    best = point is record.points[record.best]
    return mark(point.p, best=best, stands_out=all(p < LEVEL for p in known))


def smallest(record: SweepRecord) -> SweepPoint:
    """Of adapters, the smallest that is not distinguishable from the best."""
    assert record.adapters is not None
    best = record.points[record.best]
    pairs = zip(record.adapters.sizes, record.points[1:], strict=True)
    good = [(size, point) for size, point in pairs if point is best or (point.p is not None and point.p >= LEVEL)]
    return min(good, key=lambda pair: pair[0])[1]


def _in_words(record: SweepRecord, point: SweepPoint) -> str:
    """A setting in a sentence."""
    if point.rank is None:
        return f"scale {point.scale:g}"
    rank = f"rank {rank_in_words(point.rank)}"
    return rank if record.adapters or len(record.scales) == 1 else f"{rank} at scale {point.scale:g}"


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
    stars = [marked(record, point) for point in record.points] + [""]
    lines.append(("mean", *(f"{100 * mean:.1f}{star}" for mean, star in zip(means, stars, strict=True))))
    # Of the tower's: an adapter of full rank is larger than what it adds to.
    shares = [f"{100 * size / adapters.parameters:.1f} %" for size in adapters.sizes]
    return [*lines, ("adapter's size", "", *shares, "")]


def individual(record: SweepRecord) -> float:
    """Of a sweep of adapters, the mean accuracy of the tasks' own towers, in [0, 1]."""
    assert record.adapters is not None
    shares = [right / n for right, n in zip(record.adapters.individual, record.images, strict=True)]
    return sum(shares) / len(shares)
