"""Figures of a sweep (curve and grid) and of a comparison of methods."""

from __future__ import annotations

from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from hfcart.records import CompareRecord, SweepRecord
from hfcart.report.plots._canvas import (
    OTHER,
    OWN,
    TOWERS,
    Grid,
    blank,
    colour_bar,
    heat_map,
    number,
    save,
)

COMPARISON = "figures/compare.png"


def draw_sweep(record: SweepRecord, folder: Path) -> list[str]:
    """Draw a sweep: accuracy over rank (or over scale, for a method without rank), and the whole grid as a heat map.

    Args:
        record: the sweep.
        folder: the output folder; the figures go to `folder/figures/`.

    Returns:
        Names of the files written, relative to `folder`.
    """
    reached = np.array([[100 * record.accuracy(point) for point in row] for row in record.rows()])
    with matplotlib.style.context("default"):
        figures = {"figures/curve.png": _draw_curve(record, reached)}
        if min(reached.shape) > 1:
            figures["figures/grid.png"] = _draw_grid(record, reached.T)
        for name, figure in figures.items():
            save(figure, folder / name)
    return list(figures)


def draw_compare(record: CompareRecord, folder: Path) -> str:
    """Draw each method's average accuracy, the best on top, beside the base and the individual towers.

    Args:
        record: the comparison.
        folder: the output folder; the figure goes to `folder/figures/`.

    Returns:
        Name of the file written, relative to `folder`.
    """
    known = [(100 * value, row.name) for row in record.rows if (value := record.average(row)) is not None]
    known.sort(key=lambda pair: -pair[0])
    best = record.best.name if record.best else ""
    with matplotlib.style.context("default"):
        figure, axes = blank(1.3 + 0.26 * max(1, len(known)))
        colours = {**TOWERS, "average": OTHER, best: TOWERS[OWN]}
        for y, (value, name) in enumerate(known):
            axes.barh(y, value, 0.76, color=colours.get(name, OTHER))
            axes.text(value + 0.8, y, number(value, 1), va="center", fontsize=9)
        axes.set_yticks(range(len(known)), [name for _, name in known])
        axes.invert_yaxis()
        axes.set_xlim(0, 108)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("mean accuracy (%)")
        axes.set_title(f"{_images(record)}, {len(record.sources)} towers, default parameters")
        save(figure, folder / COMPARISON)
    return COMPARISON


def _draw_curve(record: SweepRecord, reached: Grid) -> Figure:
    """`reached`: accuracy in per cent, a row for each rank, a column for each scale."""
    figure, axes = blank(4.4)
    axes.spines[["left", "bottom"]].set_visible(True)
    axes.tick_params(length=3)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    anchor = 100 * record.accuracy(record.points[0])
    name = "weight average" if record.anchor == "average" else "pretrained"
    axes.axhline(anchor, color="0.35", linestyle="--", linewidth=1.2)
    row, column = divmod(record.best - 1, len(record.scales))
    if record.ranks:
        colours = colormaps["viridis"](np.linspace(0.05, 0.85, len(record.scales)))
        for scale, values, colour in zip(record.scales, reached.T, colours, strict=True):
            axes.plot(range(len(values)), values, marker="o", markersize=4, color=colour, label=f"λ = {scale:g}")
        axes.set_xticks(range(len(record.ranks)), [_rank_name(rank) for rank in record.ranks])
        kept = "lowest" if record.reverse else "top"
        axes.set_xlabel(f"{kept} singular directions kept (share of full rank, or number)")
        axes.legend(frameon=False, ncols=min(5, len(record.scales)), loc="best")
    else:
        axes.plot(record.scales, reached[0], marker="o", markersize=4, color="#0072B2")
        axes.set_xlabel("λ")
    x = row if record.ranks else record.scales[column]
    axes.plot(x, reached[row, column], "o", ms=11, mfc="none", mec="#D55E00")
    axes.annotate(
        f"{name} {anchor:.1f}", (1, anchor), xycoords=("axes fraction", "data"), xytext=(-4, -4),
        textcoords="offset points", ha="right", va="top", color="0.25", fontsize=9,
    )  # fmt: skip
    axes.set_ylabel("mean accuracy (%)")
    axes.set_title(f"{_sweep_title(record)}, {len(record.sources)} towers")
    return figure


def _draw_grid(record: SweepRecord, grid: Grid) -> Figure:
    """`grid`: accuracy in per cent, a row for each scale, a column for each rank."""
    figure, axes = blank(1.8 + 0.42 * len(record.scales))
    scale = Normalize(grid.min(), max(grid.max(), grid.min() + 1))
    heat_map(axes, grid, "cividis", scale, 1)
    colour_bar(figure, axes, "cividis", scale, "mean accuracy (%)")
    axes.set_title(_sweep_title(record))
    axes.set_xlabel("rank")
    axes.set_ylabel("λ")
    axes.set_xticks(range(len(record.ranks)), [_rank_name(rank) for rank in record.ranks])
    axes.set_yticks(range(len(record.scales)), [f"{value:g}" for value in record.scales])
    return figure


def _sweep_title(record: SweepRecord) -> str:
    return f"{record.method}: {_images(record)}"


def _images(record: SweepRecord | CompareRecord) -> str:
    tasks = f"{len(record.tasks)} task{'s' * (len(record.tasks) != 1)}"
    sample = f" (samples of {record.limit})" if record.limit else ""
    return f"{record.part} images{sample} of {tasks}"


def _rank_name(rank: int | float) -> str:
    return str(rank) if isinstance(rank, int) else f"{100 * rank:g}%"
