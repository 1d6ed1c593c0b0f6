"""Figures of a merge: energy kept, and similarity of the task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from hfcart.clip.tensor_names import layer_and_matrix
from hfcart.records import MergeRecord, Similarity, SourceRecord
from hfcart.report.plots._adaptation import (
    coefficient_grid,
    direction_grid,
    draw_coefficients,
    draw_directions,
    draw_learning,
)
from hfcart.report.plots._canvas import (
    Grid,
    blank,
    colour_bar,
    entitle,
    heat_map,
    number,
    save,
    short_names,
    ticks,
)

_MATRICES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def draw_figures(record: MergeRecord, folder: Path, history: Sequence[Sequence[float]] = ()) -> list[str]:
    """Draw what applies to this merge: energy needs a low-rank method, similarity two towers or more.

    Args:
        record: the merge.
        history: of its adaptation, a row for each step, as in results/adaptation.csv.
        folder: the output folder; the figures go to `folder/figures/`.

    Returns:
        Names of the files written, relative to `folder`, with forward slashes.
    """
    figures: dict[str, Figure] = {}
    # A matplotlibrc of the user's must not change the bytes.
    with matplotlib.style.context("default"):
        energy, rows = _energy_grid(record)
        if rows:
            figures["figures/energy.png"] = _draw_energy(energy, rows)
        if record.similarity is not None and _tells_anything(record.similarity):
            figures["figures/similarity.png"] = _draw_similarity(record.similarity, record.sources)
        if (coefficients := coefficient_grid(record)).size:
            figures["figures/coefficients.png"] = draw_coefficients(record, coefficients)
        if (directions := direction_grid(record)).size:
            figures["figures/directions.png"] = draw_directions(record, directions)
        if record.adaptation is not None and history:
            name, figure = draw_learning(record.adaptation, history)
            figures[f"figures/{name}"] = figure
        for name, figure in figures.items():
            save(figure, folder / name)
    return list(figures)


def _tells_anything(similarity: Similarity) -> bool:
    # Of two towers it is one number, which the card says in words (and -1 if it is seen from their mean).
    return len(similarity.cosine) > 2


def _energy_grid(record: MergeRecord) -> tuple[Grid, list[str]]:
    """Energy in per cent, matrix by layer (NaN where there is none), and the names of the rows."""
    cells = {
        matrix: 100 * tensor.energy
        for tensor in record.tensors
        if tensor.energy is not None and (matrix := layer_and_matrix(tensor.name))
    }
    names = [name for name in _MATRICES if any(matrix == name for _, matrix in cells)]
    if record.recipe.get("qkv") == "fused":
        # One decomposition, one row: the records of q, k and v repeat it.
        names = [name for name in names if name not in ("k_proj", "v_proj")]
    layers = 1 + max((layer for layer, _ in cells), default=-1)
    grid = np.array([[cells.get((layer, name), np.nan) for layer in range(layers)] for name in names])
    if record.recipe.get("qkv") == "fused":
        names = ["q, k, v fused" if name == "q_proj" else name for name in names]
    return grid, names


def _draw_energy(grid: Grid, rows: list[str]) -> Figure:
    figure, axes = blank(1.55 + 0.38 * len(rows))
    low, high = np.floor(np.nanmin(grid) / 5) * 5, np.ceil(np.nanmax(grid) / 5) * 5
    scale = Normalize(low, max(high, low + 5))
    heat_map(axes, grid, "cividis", scale, 0)
    colour_bar(figure, axes, "cividis", scale, "energy kept (%)")
    entitle(
        figure,
        axes,
        "Energy kept by the low-rank approximation",
        "share of the task vectors' squared norm, in per cent",
    )
    axes.set_xlabel("layer (0 is next to the input)")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(ticks(grid.shape[1]))
    return figure


def _draw_similarity(similarity: Similarity, sources: Sequence[SourceRecord]) -> Figure:
    grid = np.array(similarity.cosine, dtype=np.float64)
    towers = len(grid)
    # A vector's cosine with itself says nothing, and its 1 would bleach everything else.
    np.fill_diagonal(grid, np.nan)
    figure, axes = blank(min(10.0, 2.0 + 0.42 * towers))
    centred = similarity.centred_on == "mean"
    # White is what unrelated towers show: centred task vectors add up to zero, which pulls their cosines below it.
    white = -1 / (towers - 1) if centred else 0.0
    reach = max(0.1, np.nanmax(np.abs(grid - white))) if np.isfinite(grid).any() else 1.0
    scale = Normalize(white - reach, white + reach)
    heat_map(axes, grid, "RdBu_r", scale, 2)
    colour_bar(figure, axes, "RdBu_r", scale, "cosine")
    kind = r"centred task vectors $\theta_t - \bar\theta$" if centred else r"task vectors $\theta_t - \theta_0$"
    entitle(
        figure,
        axes,
        "How alike the towers' task vectors are",
        f"cosine of the {kind}; white: {number(white, 2)}, unrelated",
    )
    axes.set_xlabel("tower")
    names = short_names([source.label for source in sources])
    shown = ticks(towers)
    axes.set_xticks(shown, [str(i + 1) for i in shown])
    axes.set_yticks(shown, [f"{names[i]}  {i + 1}" for i in shown], parse_math=False)
    return figure
