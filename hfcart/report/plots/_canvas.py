"""What every figure shares: its size, heat maps, colours, numbers, and how it is saved."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

Grid = NDArray[np.float64]
_WIDTH = 8.0  # inches; at 150 dots each it fills a README's column and stays sharp on a dense screen
_DPI = 150
_MOST_NUMBERS = 24  # columns; beyond that a number no longer fits its cell
_FONT = "DejaVu Sans"  # comes with matplotlib
OWN = "this tower"
# Told apart by the colour-blind and in grey (Okabe and Ito's blue and orange): the figure is about the dark one.
TOWERS = {"pretrained": "#BBBBBB", "average": "#009E73", OWN: "#0072B2", "individual": "#E69F00"}
OTHER = "#7FB4D6"


def blank(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure, axes


def heat_map(axes: Axes, grid: Grid, colours: str, scale: Normalize, decimals: int) -> None:
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
                shown = number(value, decimals).replace("0.", ".") if crowded else number(value, decimals)
                ink = _ink(colormap, float(scale(value)))
                axes.text(column, row, shown, ha="center", va="center", color=ink, fontsize=7 if crowded else 9)


def colour_bar(figure: Figure, axes: Axes, colours: str, scale: Normalize, label: str) -> None:
    # As high as the picture: `aspect` is height over width, and the width is a share of the figure's.
    aspect = max(20.0, 4 * figure.get_figheight())
    bar = figure.colorbar(ScalarMappable(scale, colormaps[colours]), ax=axes, fraction=0.04, pad=0.02, aspect=aspect)
    bar.set_label(label)
    bar.outline.set_visible(False)


def number(value: float, decimals: int) -> str:
    # + 0.0 turns -0.0 into 0.0; a hyphen is no minus sign.
    return f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "−")


def _ink(colormap: Colormap, place: float) -> str:
    """Black or white, whichever is easier to read on this colour (relative luminance as in WCAG 2)."""
    channels = np.array(colormap(place)[:3])
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return "black" if float(linear @ [0.2126, 0.7152, 0.0722]) > 0.179 else "white"


def ticks(count: int) -> range:
    # Every cell has its label while labels of two digits fit side by side.
    return range(0, count, 1 + count // 30)


def short_names(labels: Sequence[str], longest: int = 26) -> list[str]:
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
    return [drawable(name if len(name) <= longest else name[: longest - 1] + "…") for name in names]


def drawable(name: str) -> str:
    font = font_manager.get_font(font_manager.findfont(_FONT))
    return "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "?" for c in name)


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # in a folder of a stranger's it may be a link to a file elsewhere
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
