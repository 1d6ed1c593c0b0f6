"""The card's figures, drawn from a MergeRecord alone. The only module that imports matplotlib.

Same record and same matplotlib, same bytes: no dates or versions in the files, no settings of the user's, fonts that
come with matplotlib. The object-oriented API is used throughout, so no state is shared with anyone's pyplot.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hfcart.names import layer_and_matrix
from hfcart.records import MergeRecord, Similarity, SourceRecord

Grid = NDArray[np.float64]

_MATRICES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_WIDTH = 8.0  # inches; at 150 dots each it fills a README's column and stays sharp on a dense screen
_DPI = 150
_MOST_NUMBERS = 24  # columns; beyond that a number no longer fits its cell
_FONT = "DejaVu Sans"  # comes with matplotlib


def draw_figures(record: MergeRecord, folder: Path) -> list[str]:
    """Draw what applies to this merge: energy needs a low-rank method, similarity two towers or more.

    Args:
        record: the merge.
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
        for name, figure in figures.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    return list(figures)


def _tells_anything(similarity: Similarity) -> bool:
    # Two towers are opposite when seen from their mean, whatever they are.
    towers = len(similarity.cosine)
    return towers > 2 or (towers == 2 and similarity.centred_on == "base")


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
    figure, axes = _blank(1.55 + 0.38 * len(rows))
    low, high = np.floor(np.nanmin(grid) / 5) * 5, np.ceil(np.nanmax(grid) / 5) * 5
    scale = Normalize(low, max(high, low + 5))
    _heat_map(axes, grid, "cividis", scale, 0)
    _bar(figure, axes, "cividis", scale, "energy kept (% of the squared norm)")
    axes.set_title("Energy kept by the low-rank approximation")
    axes.set_xlabel("layer (0 is next to the input)")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(_ticks(grid.shape[1]))
    return figure


def _draw_similarity(similarity: Similarity, sources: Sequence[SourceRecord]) -> Figure:
    grid = np.array(similarity.cosine, dtype=np.float64)
    towers = len(grid)
    # A vector's cosine with itself says nothing, and its 1 would bleach everything else.
    np.fill_diagonal(grid, np.nan)
    figure, axes = _blank(min(10.0, 2.0 + 0.42 * towers))
    centred = similarity.centred_on == "mean"
    # White is what unrelated towers show: centred task vectors add up to zero, which pulls their cosines below it.
    white = -1 / (towers - 1) if centred else 0.0
    reach = max(0.1, np.nanmax(np.abs(grid - white))) if np.isfinite(grid).any() else 1.0
    scale = Normalize(white - reach, white + reach)
    _heat_map(axes, grid, "RdBu_r", scale, 2)
    _bar(figure, axes, "RdBu_r", scale, f"cosine (white: {_number(white, 2)}, unrelated)")
    kind = "centred task vectors θ_t − θ̄" if centred else "task vectors θ_t − θ_0"
    axes.set_title(f"Cosine similarity of the {kind}", parse_math=False)
    axes.set_xlabel("tower")
    names = _short_names([source.label for source in sources])
    ticks = _ticks(towers)
    axes.set_xticks(ticks, [str(i + 1) for i in ticks])
    axes.set_yticks(ticks, [f"{names[i]}  {i + 1}" for i in ticks], parse_math=False)
    return figure


def _ticks(count: int) -> range:
    # Every cell has its label while labels of two digits fit side by side.
    return range(0, count, 1 + count // 30)


def _blank(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure, axes


def _heat_map(axes: Axes, grid: Grid, colours: str, scale: Normalize, decimals: int) -> None:
    colormap = colormaps[colours].with_extremes(bad="0.9")
    axes.imshow(grid, cmap=colormap, norm=scale, aspect="auto", interpolation="nearest")
    # White lines between the cells, so that neighbours of one colour stay apart.
    rows, columns = grid.shape
    axes.set_xticks(np.arange(1, columns) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, rows) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.0)
    axes.tick_params(which="minor", length=0)
    if columns <= _MOST_NUMBERS:
        crowded = columns > 14
        for (row, column), value in np.ndenumerate(grid):
            if np.isfinite(value):
                number = _number(value, decimals).replace("0.", ".") if crowded else _number(value, decimals)
                ink = _ink(colormap, float(scale(value)))
                axes.text(column, row, number, ha="center", va="center", color=ink, fontsize=7 if crowded else 9)


def _bar(figure: Figure, axes: Axes, colours: str, scale: Normalize, label: str) -> None:
    # As high as the picture: `aspect` is height over width, and the width is a share of the figure's.
    aspect = max(20.0, 4 * figure.get_figheight())
    bar = figure.colorbar(ScalarMappable(scale, colormaps[colours]), ax=axes, fraction=0.04, pad=0.02, aspect=aspect)
    bar.set_label(label)
    bar.outline.set_visible(False)


def _number(value: float, decimals: int) -> str:
    # + 0.0 turns -0.0 into 0.0; a hyphen is no minus sign.
    return f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "−")


def _ink(colormap: Colormap, place: float) -> str:
    """Black or white, whichever is easier to read on this colour (relative luminance as in WCAG 2)."""
    channels = np.array(colormap(place)[:3])
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return "black" if float(linear @ [0.2126, 0.7152, 0.0722]) > 0.179 else "white"


def _short_names(labels: Sequence[str], longest: int = 26) -> list[str]:
    """What tells the labels apart: without their owners and without the beginning they share, both if possible."""
    names = [label.rpartition("/")[2] for label in labels]
    if len(set(names)) < len(set(labels)):
        names = list(labels)
    if len(set(names)) > 1:
        words = [re.findall(r"[^-_./]*[-_./]?", name) for name in names]
        shared = 0
        while len({"".join(word[: shared + 1]) for word in words}) == 1:
            shared += 1
        cut = ["".join(word[shared:]) for word in words]
        names = cut if all(cut) else names
    return [_drawable(name if len(name) <= longest else name[: longest - 1] + "…") for name in names]


def _drawable(name: str) -> str:
    font = font_manager.get_font(font_manager.findfont(_FONT))
    return "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "?" for c in name)
