"""What every figure shares: its size, heat maps, colours, numbers, and how it is saved."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

# For formulas matplotlib looks up fonts that no figure here shows. Where its list of this machine's fonts is broken, it
# tells of each on stderr, which is ours.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

Grid = NDArray[np.float64]
# 1,200 dots, sharp on a dense screen. The Hub shows a card's figures some 750 wide: ten points are 14 pixels there.
_WIDTH = 7.5  # inches
_DPI = 160
_LEFT = 0.008  # of the width: where titles begin
_FONT = "DejaVu Sans"  # comes with matplotlib
OWN = "this tower"
ADAPTED = "with its adapter"
# Told apart by the colour-blind and in grey (Okabe and Ito's blue and orange): the figure is about the dark one.
TOWERS = {"pretrained": "#BBBBBB", "average": "#009E73", OWN: "#0072B2", ADAPTED: "#CC79A7", "individual": "#E69F00"}
OTHER = "#7FB4D6"
BEST = "#D55E00"
# Lines that have no order, in Okabe and Ito's colours; what is beyond them begins anew with other dashes.
_HUES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_DASHES = ("-", "--", ":", "-.")
MARKERS = "osD^vP*X"


def blank(height: float) -> tuple[Figure, Axes]:
    figure, (axes,) = _figure(height, 1)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure, axes


def plane(height: float) -> tuple[Figure, Axes]:
    """Axes for lines: two spines, and a grid behind."""
    figure, (axes,) = planes(height, 1)
    return figure, axes


def planes(height: float, count: int) -> tuple[Figure, list[Axes]]:
    """Several of them, one below the other, over the same range."""
    figure, panels = _figure(height, count)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=3)
        axes.grid(color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, panels


def _figure(height: float, count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])


def entitle(figure: Figure, axes: Axes, title: str, below: str) -> None:
    """What the figure shows, in words, and below it of what. Ours alone: both may hold formulas between dollars."""
    figure.suptitle(title, x=_LEFT, ha="left", fontsize=12, fontweight="bold")
    _below(axes, below, 0.0)


def _below(axes: Axes, line: str, x: float) -> None:
    axes.set_title(line, loc="left", x=x, fontsize=9, color="0.3")


def key(figure: Figure, handles: Sequence[Artist], columns: int = 5, *, math: bool = False) -> None:
    """The legend, below everything. Labels of strangers' are made `drawable` before, and hold no `math`."""
    legend = figure.legend(
        handles=list(handles), loc="outside lower center", ncols=min(columns, len(handles)), frameon=False, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(math)


def stroke(place: int) -> tuple[str, str]:
    """Colour and dashes of the line in that place, where lines have no order."""
    return _HUES[place % len(_HUES)], _DASHES[place // len(_HUES) % len(_DASHES)]


def heat_map(axes: Axes, grid: Grid, colours: str, scale: Normalize, decimals: int) -> None:
    colormap = colormaps[colours].with_extremes(bad="0.9")
    axes.imshow(grid, cmap=colormap, norm=scale, aspect="auto", interpolation="nearest")
    # White lines between the cells, so that neighbours of one colour stay apart.
    rows, columns = grid.shape
    axes.set_xticks(np.arange(1, columns) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, rows) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.0)
    axes.tick_params(which="minor", length=0)
    shown = {place: number(value, decimals) for place, value in np.ndenumerate(grid) if np.isfinite(value)}
    if size := _size_of_numbers(max(map(len, shown.values()), default=0), columns):
        for (row, column), text in shown.items():
            ink = _ink(colormap, float(scale(grid[row, column])))
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=size)


def _size_of_numbers(longest: int, columns: int) -> int | None:
    """In points, so that numbers of so many characters stand apart; None where they would be too small to read."""
    cell = 0.7 * _WIDTH / columns  # the rest of the width is for names and the scale
    return next((size for size in (9, 8, 7) if 0.62 * longest * size / 72 <= 0.85 * cell), None)


def colour_bar(figure: Figure, axes: Axes, colours: str, scale: Normalize, label: str) -> None:
    # As high as the picture: `aspect` is height over width, and the width is a share of the figure's.
    aspect = max(20.0, 5.5 * figure.get_figheight())
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
    return [drawable(shortened(name, longest)) for name in names]


def shortened(title: str, longest: int = 28) -> str:
    return title if len(title) <= longest else title[: longest - 1] + "…"


def drawable(name: str) -> str:
    font = font_manager.get_font(font_manager.findfont(_FONT))
    return "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "?" for c in name)


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The line below the title begins where the title does, wherever the axes came to be.
    figure.draw_without_rendering()
    for axes in figure.axes[:1]:
        place = axes.get_position()
        _below(axes, axes.get_title(loc="left"), (_LEFT - place.x0) / place.width)
    path.unlink(missing_ok=True)  # in a folder of a stranger's it may be a link to a file elsewhere
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
