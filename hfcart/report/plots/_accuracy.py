"""The chart of an evaluation: this tower beside others, task by task."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hfcart.records import EvalRecord, Reference
from hfcart.report.accuracy import accuracy, has_chart, mean_interval, wilson
from hfcart.report.plots._canvas import (
    ADAPTED,
    OWN,
    TOWERS,
    blank,
    drawable,
    entitle,
    key,
    save,
    shortened,
)

ACCURACY = "figures/accuracy.png"
_HATCH = "////"


@dataclass(frozen=True)
class _Bar:
    """A tower's accuracy on one task in [0, 1], whether it is a published figure, and its interval if counted."""

    value: float
    published: bool = False
    interval: tuple[float, float] | None = None


def draw_accuracy(record: EvalRecord, folder: Path) -> str | None:
    """Draw the accuracy on every task, beside that of the base and of the individual tower where they are known.

    A single bar is no chart: then an earlier figure goes, and none is drawn.

    Args:
        record: the evaluation.
        folder: the output folder; the figure goes to `folder/figures/`.

    Returns:
        Name of the file written, relative to `folder`, with forward slashes; None if there is none.
    """
    if not has_chart(record.results):
        (folder / ACCURACY).unlink(missing_ok=True)
        return None
    with matplotlib.style.context("default"):
        save(_draw_accuracy(record), folder / ACCURACY)
    return ACCURACY


def _draw_accuracy(record: EvalRecord) -> Figure:
    series = {name: bars for name, bars in _series(record).items() if any(bars)}
    rows = [_row_name(result.title, partial=result.partial) for result in record.results]
    rows += ["mean"] * (len(rows) > 1)
    thick = 0.8 / max(1, len(series))
    inches = 0.17 if len(rows) <= 10 else 0.13  # a bar
    figure, axes = blank(1.5 + len(rows) * (0.14 + inches * max(1, len(series))))
    legend = []
    for k, (name, bars) in enumerate(series.items()):
        offset = (k - (len(series) - 1) / 2) * thick
        for row, bar in enumerate(bars):
            if bar is not None:
                _draw_bar(axes, row + offset, thick, bar, TOWERS[name], numbered=name == OWN)
        legend.append(Patch(facecolor=TOWERS[name], label=name))
    if any(bar and bar.published for bars in series.values() for bar in bars):
        legend.append(Patch(facecolor="white", edgecolor="0.4", hatch=_HATCH, label="published, not measured here"))
    if len(rows) > 1:
        axes.axhline(len(rows) - 1.5, color="0.6", linewidth=0.8)
    entitle(figure, axes, "Zero-shot accuracy on each task", "images classified correctly; lines are 95% intervals")
    axes.set_xlabel("accuracy (%)")
    axes.set_xlim(0, 107)
    axes.set_xticks(range(0, 101, 20))
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    if len(legend) > 1:
        key(figure, legend)
    return figure


def _series(record: EvalRecord) -> dict[str, list[_Bar | None]]:
    """For every kind of tower one bar a task, and their mean where there are several tasks and none is missing."""
    results = record.results
    series: dict[str, list[_Bar | None]] = {
        "pretrained": [_reference_bar(result.pretrained) for result in results],
        "average": [_reference_bar(result.average) for result in results],
        OWN: [
            None if (value := accuracy(r)) is None else _Bar(value, interval=wilson(r.correct, r.n)) for r in results
        ],
        ADAPTED: [_reference_bar(result.adapter) for result in results],
        "individual": [_reference_bar(result.individual) for result in results],
    }
    if len(results) > 1:
        for bars in series.values():
            known = [bar for bar in bars if bar is not None]
            # A mean over other tasks than those of its neighbours would be no comparison.
            mean = _Bar(sum(bar.value for bar in known) / len(results), any(bar.published for bar in known))
            bars.append(mean if len(known) == len(results) else None)
        if (own := series[OWN][-1]) is not None:
            series[OWN][-1] = replace(own, interval=mean_interval([(r.correct, r.n) for r in results]))
    return series


def _reference_bar(reference: Reference | None) -> _Bar | None:
    return None if reference is None else _Bar(reference.accuracy, published=not reference.measured)


def _draw_bar(axes: Axes, y: float, thick: float, bar: _Bar, colour: str, *, numbered: bool) -> None:
    value = 100 * bar.value
    hatch = _HATCH if bar.published else None
    axes.barh(y, value, 0.92 * thick, color=colour, edgecolor="white", linewidth=0, hatch=hatch)
    low, high = (100 * end for end in bar.interval or (bar.value, bar.value))
    if bar.interval:
        axes.plot([low, high], [y, y], color="black", linewidth=1.0, solid_capstyle="butt")
        axes.plot([low, high], [y, y], color="black", linewidth=0, marker="|", markersize=4)
    if numbered:
        axes.text(high + 1, y, f"{value:.1f}", ha="left", va="center", fontsize=9)


def _row_name(title: str, *, partial: bool) -> str:
    return drawable(shortened(title)) + " (sample)" * partial
