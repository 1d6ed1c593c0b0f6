"""Figures of an adaptation: what the coefficients became, and how the entropy fell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from hfcart.clip.tensor_names import layer_and_matrix
from hfcart.records import AdaptationRecord, MergeRecord
from hfcart.report.plots._canvas import Grid, blank, colour_bar, drawable, heat_map, short_names, ticks


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
    axes.set_title(f"Coefficients, mean of a layer's attention and MLP weights (white: {start:.2f}, {white})")
    axes.set_xlabel("layer (0 is next to the input)")
    axes.set_xticks(ticks(grid.shape[1]))
    names = short_names([source.label for source in record.sources])
    axes.set_yticks(range(len(names)), [f"{name}  {i + 1}" for i, name in enumerate(names)], parse_math=False)
    return figure


def draw_entropy(adaptation: AdaptationRecord, history: Sequence[Sequence[float]]) -> Figure:
    """Every task's entropy over the steps, averaged over some steps each."""
    figure, axes = blank(3.6)
    axes.spines[["left", "bottom"]].set_visible(True)
    axes.tick_params(length=3)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    width = max(1, len(history) // 60)
    colours = colormaps["viridis"](np.linspace(0.0, 0.9, len(adaptation.tasks)))
    for number, (task, colour) in enumerate(zip(adaptation.tasks, colours, strict=True)):
        values = np.array([row[number] for row in history])
        ends = np.arange(width, len(values) + 1, width)
        axes.plot(ends, [values[end - width : end].mean() for end in ends], color=colour, label=drawable(task.title))
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("step")
    axes.set_ylabel("mean entropy (nats)")
    axes.set_title("Entropy of the merged tower's predictions while its coefficients were learned")
    axes.legend(frameon=False, ncols=2 if len(adaptation.tasks) > 8 else 1, loc="center left", bbox_to_anchor=(1, 0.5))
    for entry in axes.get_legend().get_texts():  # type: ignore[union-attr]
        entry.set_parse_math(False)
    return figure
