"""Figures of an adaptation: what the coefficients became, and what learning made of the predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from hfcart.clip.tensor_names import layer_and_matrix
from hfcart.records import AdaptationRecord, MergeRecord
from hfcart.report.plots._canvas import (
    Grid,
    blank,
    colour_bar,
    drawable,
    entitle,
    heat_map,
    key,
    number,
    plane,
    short_names,
    shortened,
    stroke,
    ticks,
)


def coefficient_grid(record: MergeRecord) -> Grid:
    """Mean coefficient of the attention and MLP weights, tower by layer."""
    layers: dict[int, list[Sequence[float]]] = {}
    for name, values in (record.recipe.get("coefficients") or {}).items():
        if place := layer_and_matrix(name):
            layers.setdefault(place[0], []).append(values)
    return np.array([np.mean(layers[layer], axis=0) for layer in sorted(layers)]).T


def draw_coefficients(record: MergeRecord, grid: Grid) -> Figure:
    """`grid`: as `coefficient_grid` gives it."""
    figure, axes = blank(min(10.0, 1.9 + 0.34 * len(grid)))
    low, high = float(grid.min()), float(grid.max())
    start = record.adaptation.start if record.adaptation else float(grid.mean())
    reach = max(abs(low - start), abs(high - start), 0.01)
    scale: Normalize = TwoSlopeNorm(start, start - reach, start + reach)
    heat_map(axes, grid, "PuOr_r", scale, 2)
    white = "where all began" if record.adaptation else "their mean"
    colour_bar(figure, axes, "PuOr_r", scale, "coefficient")
    entitle(
        figure,
        axes,
        r"Coefficients $\mathbf{\lambda}$ of each tower, layer by layer",
        f"mean over a layer's attention and MLP weights; white: {number(start, 2)}, {white}",
    )
    axes.set_xlabel("layer (0 is next to the input)")
    axes.set_xticks(ticks(grid.shape[1]))
    names = short_names([source.label for source in record.sources])
    axes.set_yticks(range(len(names)), [f"{name}  {i + 1}" for i, name in enumerate(names)], parse_math=False)
    return figure


def direction_grid(record: MergeRecord) -> Grid:
    """Mean number of singular directions kept of a matrix, tower by layer; empty where none were chosen."""
    layers: dict[int, list[Sequence[int]]] = {}
    for name, chosen in (record.recipe.get("directions") or {}).items():
        if place := layer_and_matrix(name):
            layers.setdefault(place[0], []).append([int(text, 16).bit_count() for text in chosen])
    return np.array([np.mean(layers[layer], axis=0) for layer in sorted(layers)]).T


def draw_directions(record: MergeRecord, grid: Grid) -> Figure:
    """`grid`: as `direction_grid` gives it."""
    figure, axes = blank(min(10.0, 1.9 + 0.34 * len(grid)))
    low, high = np.floor(grid.min()), np.ceil(grid.max())
    scale = Normalize(low, max(high, low + 1))
    heat_map(axes, grid, "cividis", scale, 1 if high < 100 else 0)
    colour_bar(figure, axes, "cividis", scale, "directions")
    from hfcart.maths.low_rank import rank_of  # scipy: a figure without directions takes none

    full = max(tensor.full_rank or 0 for tensor in record.tensors if layer_and_matrix(tensor.name))
    most = rank_of(record.recipe["adapt_ranks"], full, full)
    entitle(
        figure,
        axes,
        "Singular directions that stay of each tower, layer by layer",
        f"mean over a layer's attention and MLP weights, of the {most:,} strongest of each",
    )
    axes.set_xlabel("layer (0 is next to the input)")
    axes.set_xticks(ticks(grid.shape[1]))
    names = short_names([source.label for source in record.sources])
    axes.set_yticks(range(len(names)), [f"{name}  {i + 1}" for i, name in enumerate(names)], parse_math=False)
    return figure


def draw_learning(adaptation: AdaptationRecord, history: Sequence[Sequence[float]]) -> tuple[str, Figure]:
    """Every task's entropy over the steps, or how often its own tower agrees where that was learned; smoothed.

    Returns:
        The figure's name, and the figure.
    """
    figure, axes = plane(3.4 + 0.2 * math.ceil(len(adaptation.tasks) / 5))
    width = max(1, len(history) // 60)
    distilled = adaptation.objective == "distill"
    first = -len(adaptation.tasks) if distilled else 0  # of its columns
    for i, task in enumerate(adaptation.tasks):
        values = np.array([row[first + i] for row in history]) * (100 if distilled else 1)
        ends = np.arange(width, len(values) + 1, width)
        means = [values[end - width : end].mean() for end in ends]
        colour, dashes = stroke(i)
        axes.plot(ends, means, color=colour, linestyle=dashes, label=drawable(shortened(task.title)))
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("step")
    axes.set_ylabel("agreement (%)" if distilled else "entropy (nats)")
    if distilled:
        title = "How often the merged tower says what each task's own tower says"
        entitle(figure, axes, title, "share of a step's images; the higher, the more alike")
    else:
        title = "How sure the merged tower became of its predictions"
        entitle(figure, axes, title, "entropy of the softmax over each task's classes; the lower, the surer")
    key(figure, axes.lines)
    return "agreement.png" if distilled else "entropy.png", figure
