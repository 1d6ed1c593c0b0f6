"""EvalRecord -> the table of accuracies, in words. Pure."""

from __future__ import annotations

from hfcart.records import EvalRecord, Reference, TaskResult
from hfcart.report.accuracy import accuracy, mean_accuracy, mean_reference, normalised, wilson

_OTHERS = ("adapter", "pretrained", "average", "individual")
_HEADINGS = {"adapter": "with its adapter"}


def others(record: EvalRecord) -> list[str]:
    """Which other towers the results are held against."""
    return [name for name in _OTHERS if any(getattr(result, name) for result in record.results)]


def columns(record: EvalRecord) -> list[str]:
    """Headings of the table."""
    return ["task", "accuracy %", "95 % interval", "images", *(_HEADINGS.get(name, name) for name in others(record))]


def rows(record: EvalRecord) -> list[tuple[str, ...]]:
    """A line for each task, and one for the mean where there are several; a star marks what was published."""
    found = [_row(result, others(record)) for result in record.results]
    mean = mean_accuracy(record.results)
    if len(found) > 1 and mean.value is not None:
        means = [mean_reference(getattr(r, name) for r in record.results) for name in others(record)]
        cells = [
            f"{100 * m.value:.1f}{'*' * bool(m.published)}" if m.value is not None and m.tasks == mean.tasks else ""
            for m in means
        ]
        found.append((f"mean of {mean.tasks}", f"{100 * mean.value:.1f}", "", "", *cells))
    return found


def remarks(record: EvalRecord) -> list[str]:
    """What qualifies the numbers, a sentence or two each."""
    found = []
    ratio = normalised(record.results)
    if ratio.value is not None:
        kind = "published, not measured here" if ratio.published else "measured on the same images"
        found.append(f"Normalised accuracy: {100 * ratio.value:.1f} % of the individual towers' ({kind}).")
    references = [getattr(result, name) for result in record.results for name in _OTHERS]
    if any(reference is not None and not reference.measured for reference in references):
        found.append("* published for the same base; measured elsewhere.")
    if any(result.partial for result in record.results):
        found.append("Partial: samples, not whole splits. Such numbers are no results to quote.")
    if parts := {result.part for result in record.results} - {"test"}:
        found.append(f"Measured on {' and '.join(sorted(parts))} images, not on the test split.")
    return found


def _row(result: TaskResult, beside: list[str]) -> tuple[str, ...]:
    low, high = wilson(result.correct, result.n)
    own = accuracy(result)
    return (
        result.title,
        "none" if own is None else f"{100 * own:.1f}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{result.n:,}" + (f" of {result.rows:,}" if result.partial else ""),
        *(_figure(getattr(result, name)) for name in beside),
    )


def _figure(reference: Reference | None) -> str:
    return "" if reference is None else f"{100 * reference.accuracy:.1f}{'' if reference.measured else '*'}"
