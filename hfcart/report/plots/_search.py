"""Figures of a sweep (curve and grid) and of a comparison of methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hfcart.methods import METHODS
from hfcart.quoting import plural
from hfcart.records import CompareRecord, SweepPoint, SweepRecord
from hfcart.report.accuracy import mean_interval
from hfcart.report.compare_table import bars, marked
from hfcart.report.plots._adapters import draw_adapters
from hfcart.report.plots._canvas import (
    BEST,
    MARKERS,
    OTHER,
    OWN,
    TOWERS,
    Grid,
    blank,
    colour_bar,
    entitle,
    heat_map,
    key,
    number,
    plane,
    save,
)
from hfcart.report.sweep_table import images_in_words

COMPARISON = "figures/compare.png"


def draw_sweep(record: SweepRecord, folder: Path) -> list[str]:
    """Draw a sweep: accuracy over rank (or over scale, for a method without rank), and the whole grid as a heat map.

    Args:
        record: the sweep.
        folder: the output folder; the figures go to `folder/figures/`.

    Returns:
        Names of the files written, relative to `folder`: none for a single point. (Of adapters there is always a
        curve: it has the average and the towers themselves at its ends.)
    """
    reached = np.array([[100 * record.accuracy(point) for point in row] for row in record.rows()])
    figures: dict[str, Figure] = {}
    with matplotlib.style.context("default"):
        if record.adapters:
            figures["figures/curve.png"] = draw_adapters(record, record.adapters)
        elif reached.size > 1:
            figures["figures/curve.png"] = _draw_curve(record)
        if min(reached.shape) > 1:
            figures["figures/grid.png"] = _draw_grid(record, reached.T)
        for name, figure in figures.items():
            save(figure, folder / name)
    return list(figures)


def draw_compare(record: CompareRecord, folder: Path) -> str | None:
    """Draw each method's average accuracy, the best on top, beside the base and the individual towers.

    Args:
        record: the comparison.
        folder: the output folder; the figure goes to `folder/figures/`.

    Returns:
        Name of the file written, relative to `folder`; None where there are no two bars to compare.
    """
    known = bars(record)
    if len(known) < 2:
        return None
    # As in the table: what stands out, or what cannot be told from the highest.
    top = {row.name: TOWERS[OWN] for row in record.merges if marked(record, row)}
    with matplotlib.style.context("default"):
        figure, axes = blank(1.3 + 0.28 * len(known))
        colours = {**TOWERS, "average": OTHER, **top}
        for y, (value, row) in enumerate(known):
            axes.barh(y, 100 * value, 0.76, color=colours.get(row.name, OTHER))
            counts = [(c or 0, n) for c, n in zip(row.correct, record.images, strict=True)]
            low, high = (100 * end for end in mean_interval(counts))
            axes.plot([low, high], [y, y], color="black", linewidth=1.0, marker="|", markersize=4)
            axes.text(high + 1, y, number(100 * value, 1), va="center", fontsize=9)
        axes.set_yticks(range(len(known)), [row.name for _, row in known])
        axes.invert_yaxis()
        axes.set_xlim(0, 108)
        axes.set_xticks(range(0, 101, 20))
        axes.grid(axis="x", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel("accuracy (%)" + _meaning_of_colour(len(top)))
        entitle(
            figure,
            axes,
            "Mean accuracy with each method",
            f"{images_in_words(record)}, {plural(len(record.sources), 'tower')}, default parameters; "
            "lines are 95% intervals",
        )
        save(figure, folder / COMPARISON)
    return COMPARISON


def _meaning_of_colour(top: int) -> str:
    if not top:
        return ""
    return "; dark: better than all other methods" if top == 1 else "; dark: not distinguishable from the best method"


def _draw_curve(record: SweepRecord) -> Figure:
    figure, axes = plane(4.6)
    anchor = 100 * record.accuracy(record.points[0])
    handles: list[Line2D] = []
    if record.ranks:
        colours = colormaps["viridis"](np.linspace(0.05, 0.85, len(record.scales)))
        for i, (scale, colour) in enumerate(zip(record.scales, colours, strict=True)):
            points = [row[i] for row in record.rows()]
            label = rf"$\lambda = {scale:g}$"
            handles.append(_line(axes, record, range(len(points)), points, to_hex(colour), MARKERS[i % 8], label))
        axes.set_xticks(range(len(record.ranks)), [_rank_name(rank) for rank in record.ranks])
        end = "bottom" if record.reverse else "top"
        axes.set_xlabel(f"rank: how many singular directions are kept, from the {end}")
    else:
        handles.append(_line(axes, record, record.scales, record.rows()[0], TOWERS[OWN], "o", "merged"))
        axes.set_xlabel(r"scale $\lambda$")
    name = "average alone" if record.anchor == "average" else "base alone"
    label = f"{name}, {number(anchor, 1)}"
    handles.append(axes.axhline(anchor, color="0.35", linestyle="--", linewidth=1.2, label=label))
    if record.part != "test":  # by which nothing is chosen
        row, column = divmod(record.best - 1, len(record.scales))
        best = 100 * record.accuracy(record.points[record.best])
        handles += axes.plot(
            [row if record.ranks else record.scales[column]], [best], "o", ms=12, mfc="none", mec=BEST, mew=1.6,
            label=f"best, {number(best, 1)}",
        )  # fmt: skip
    axes.set_ylabel("mean accuracy (%)")
    over = r"rank, for each scale $\mathbf{\lambda}$" if record.ranks else r"scale $\mathbf{\lambda}$"
    entitle(figure, axes, f"Accuracy over {over}", _of(record) + "; bands are 95% intervals")
    key(figure, handles, columns=6, math=True)
    return figure


def _line(
    axes: Axes,
    record: SweepRecord,
    x: Sequence[float],
    points: Sequence[SweepPoint],
    colour: str,
    marker: str,
    label: str,
) -> Line2D:
    """A line through these points of a sweep, and the band of their intervals."""
    bands = [mean_interval(list(zip(point.correct, record.images, strict=True))) for point in points]
    low, high = 100 * np.array(bands).T
    axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    reached = [100 * record.accuracy(point) for point in points]
    (line,) = axes.plot(x, reached, marker=marker, markersize=5, color=colour, label=label)
    return line


def _draw_grid(record: SweepRecord, grid: Grid) -> Figure:
    """`grid`: accuracy in per cent, a row for each scale, a column for each rank."""
    figure, axes = blank(1.8 + 0.42 * len(record.scales))
    # White is what the anchor alone reaches: green is better than that, brown is worse.
    anchor = 100 * record.accuracy(record.points[0])
    reach = max(1.0, float(np.abs(grid - anchor).max()))
    scale = Normalize(anchor - reach, anchor + reach)
    heat_map(axes, grid, "BrBG", scale, 1)
    colour_bar(figure, axes, "BrBG", scale, "accuracy (%)")
    name = "average" if record.anchor == "average" else "base"
    entitle(
        figure,
        axes,
        "Accuracy at each rank and scale",
        f"{_of(record)}; white: the {name} alone, {number(anchor, 1)}",
    )
    axes.set_xlabel("rank")
    axes.set_ylabel(r"scale $\lambda$")
    axes.set_xticks(range(len(record.ranks)), [_rank_name(rank) for rank in record.ranks])
    axes.set_yticks(range(len(record.scales)), [f"{value:g}" for value in record.scales])
    return figure


def _of(record: SweepRecord) -> str:
    """What was measured: the method by its paper's name, the images, the towers."""
    method = METHODS.get(record.method)
    name = method.title.partition(" (")[0] if method else record.method
    return f"{name}, {plural(len(record.sources), 'tower')}, mean over {images_in_words(record)}"


def _rank_name(rank: int | float) -> str:
    return str(rank) if isinstance(rank, int) else f"{100 * rank:g}%"
