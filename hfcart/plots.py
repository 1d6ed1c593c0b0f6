"""The card's figures, drawn from the records alone. The only module that imports matplotlib.

Same record and same matplotlib, same bytes: no dates or versions in the files, no settings of the user's, fonts that
come with matplotlib. The object-oriented API is used throughout, so no state is shared with anyone's pyplot.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from hfcart.names import layer_and_matrix
from hfcart.records import CompareRecord, EvalRecord, MergeRecord, Reference, Similarity, SourceRecord, SweepRecord
from hfcart.scores import accuracy, wilson

Grid = NDArray[np.float64]
ACCURACY = "figures/accuracy.png"
COMPARISON = "figures/compare.png"

_MATRICES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_WIDTH = 8.0  # inches; at 150 dots each it fills a README's column and stays sharp on a dense screen
_DPI = 150
_MOST_NUMBERS = 24  # columns; beyond that a number no longer fits its cell
_FONT = "DejaVu Sans"  # comes with matplotlib
_LONGEST_TITLE = 28  # characters
_OWN = "this tower"
# Told apart by the colour-blind and in grey (Okabe and Ito's blue and orange): the figure is about the dark one.
_TOWERS = {"pretrained": "#BBBBBB", "average": "#009E73", _OWN: "#0072B2", "individual": "#E69F00"}
_OTHER = "#7FB4D6"
_HATCH = "////"


@dataclass(frozen=True)
class _Bar:
    """A tower's accuracy on one task in [0, 1], whether it is a published figure, and its interval if counted."""

    value: float
    published: bool = False
    interval: tuple[float, float] | None = None


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
            _save(figure, folder / name)
    return list(figures)


def draw_accuracy(record: EvalRecord, folder: Path) -> str:
    """Draw the accuracy on every task, beside that of the base and of the individual tower where they are known.

    Args:
        record: the evaluation.
        folder: the output folder; the figure goes to `folder/figures/`.

    Returns:
        Name of the file written, relative to `folder`, with forward slashes.
    """
    with matplotlib.style.context("default"):
        _save(_draw_accuracy(record), folder / ACCURACY)
    return ACCURACY


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
            _save(figure, folder / name)
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
        figure, axes = _blank(1.3 + 0.26 * max(1, len(known)))
        colours = {**_TOWERS, "average": _OTHER, best: _TOWERS[_OWN]}
        for y, (value, name) in enumerate(known):
            axes.barh(y, value, 0.76, color=colours.get(name, _OTHER))
            axes.text(value + 0.8, y, _number(value, 1), va="center", fontsize=9)
        axes.set_yticks(range(len(known)), [name for _, name in known])
        axes.invert_yaxis()
        axes.set_xlim(0, 108)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("mean accuracy (%)")
        tasks = f"{len(record.tasks)} task{'s' * (len(record.tasks) != 1)}"
        axes.set_title(f"{record.part} images of {tasks}, {len(record.sources)} towers, default parameters")
        _save(figure, folder / COMPARISON)
    return COMPARISON


def _draw_curve(record: SweepRecord, reached: Grid) -> Figure:
    """`reached`: accuracy in per cent, a row for each rank, a column for each scale."""
    figure, axes = _blank(4.4)
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
    figure, axes = _blank(1.8 + 0.42 * len(record.scales))
    scale = Normalize(grid.min(), max(grid.max(), grid.min() + 1))
    _heat_map(axes, grid, "cividis", scale, 1)
    _bar(figure, axes, "cividis", scale, "mean accuracy (%)")
    axes.set_title(_sweep_title(record))
    axes.set_xlabel("rank")
    axes.set_ylabel("λ")
    axes.set_xticks(range(len(record.ranks)), [_rank_name(rank) for rank in record.ranks])
    axes.set_yticks(range(len(record.scales)), [f"{value:g}" for value in record.scales])
    return figure


def _sweep_title(record: SweepRecord) -> str:
    tasks = f"{len(record.tasks)} task{'s' * (len(record.tasks) != 1)}"
    sample = f" (samples of {record.limit})" if record.limit else ""
    return f"{record.method}: {record.part} images{sample} of {tasks}"


def _rank_name(rank: int | float) -> str:
    return str(rank) if isinstance(rank, int) else f"{100 * rank:g}%"


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # in a folder of a stranger's it may be a link to a file elsewhere
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})


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


def _draw_accuracy(record: EvalRecord) -> Figure:
    series = {name: bars for name, bars in _series(record).items() if any(bars)}
    rows = [_row_name(result.title, partial=result.partial) for result in record.results]
    rows += ["mean"] * (len(rows) > 1)
    thick = 0.8 / max(1, len(series))
    inches = 0.17 if len(rows) <= 10 else 0.13  # a bar
    figure, axes = _blank(1.5 + len(rows) * (0.14 + inches * max(1, len(series))))
    legend = []
    for k, (name, bars) in enumerate(series.items()):
        offset = (k - (len(series) - 1) / 2) * thick
        for row, bar in enumerate(bars):
            if bar is not None:
                _draw_bar(axes, row + offset, thick, bar, _TOWERS[name], numbered=name == _OWN)
        legend.append(Patch(facecolor=_TOWERS[name], label=name))
    if any(bar and bar.published for bars in series.values() for bar in bars):
        legend.append(Patch(facecolor="white", edgecolor="0.4", hatch=_HATCH, label="published, not measured here"))
    if len(rows) > 1:
        axes.axhline(len(rows) - 1.5, color="0.6", linewidth=0.8)
    axes.set_title("Zero-shot accuracy")
    axes.set_xlabel("top-1 accuracy (%), with 95% intervals")
    axes.set_xlim(0, 107)
    axes.set_xticks(range(0, 101, 20))
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    if len(legend) > 1:
        figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False)
    return figure


def _series(record: EvalRecord) -> dict[str, list[_Bar | None]]:
    """For every kind of tower one bar a task, and their mean where there are several tasks and none is missing."""
    results = record.results
    series: dict[str, list[_Bar | None]] = {
        "pretrained": [_reference_bar(result.pretrained) for result in results],
        "average": [_reference_bar(result.average) for result in results],
        _OWN: [
            None if (value := accuracy(r)) is None else _Bar(value, interval=wilson(r.correct, r.n)) for r in results
        ],
        "individual": [_reference_bar(result.individual) for result in results],
    }
    if len(results) > 1:
        for bars in series.values():
            known = [bar for bar in bars if bar is not None]
            # A mean over other tasks than those of its neighbours would be no comparison.
            mean = _Bar(sum(bar.value for bar in known) / len(results), any(bar.published for bar in known))
            bars.append(mean if len(known) == len(results) else None)
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
        axes.text(high + 1, y, f"{value:.1f}", ha="left", va="center", fontsize=8)


def _row_name(title: str, *, partial: bool) -> str:
    short = title if len(title) <= _LONGEST_TITLE else title[: _LONGEST_TITLE - 1] + "…"
    return _drawable(short) + " (sample)" * partial


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
