"""Figure of a sweep of adapters: each task's accuracy through its own, over rank."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hfcart.quoting import plural
from hfcart.records import AdapterSweep, SweepRecord
from hfcart.report.accuracy import mean_interval
from hfcart.report.plots._canvas import BEST, drawable, entitle, key, number, plane, shortened, stroke
from hfcart.report.sweep_table import images_in_words

_MANY = 20  # tasks, beyond which they have no names in the key


def draw_adapters(record: SweepRecord, adapters: AdapterSweep) -> Figure:
    """Lines over the ranks; the average alone and the tasks' own towers are the ends, apart from them."""
    named = len(record.tasks) <= _MANY
    figure, axes = plane(4.6 + 0.2 * math.ceil(len(record.tasks) / 5) * named)
    images = np.array(record.images)
    counts = np.array([*(point.correct for point in record.points), adapters.individual])
    reached = 100 * counts / images
    ranks, last = np.arange(1, len(record.points)), len(record.points)
    handles: list[Line2D] = []
    for i, task in enumerate(record.tasks):
        colour, dashes = stroke(i) if named else ("0.75", "-")
        label = drawable(shortened(task))
        (line,) = axes.plot(ranks, reached[1:last, i], color=colour, linestyle=dashes, linewidth=1.0, label=label)
        axes.plot([0, last], reached[[0, last], i], "o", color=colour, markersize=3, alpha=0.9)
        handles += [line] * named
    bands = 100 * np.array([mean_interval(zip(row, record.images, strict=True)) for row in counts.tolist()])
    mean = reached.mean(axis=1)
    axes.fill_between(ranks, *bands[1:last].T, color="black", alpha=0.10, linewidth=0)
    handles += axes.plot(ranks, mean[1:last], color="black", linewidth=2.2, marker="o", markersize=5, label="mean")
    for place in (0, last):
        axes.plot([place, place], bands[place], color="black", linewidth=1.0)
        axes.plot([place], [mean[place]], "D", color="black", markersize=6, zorder=3)
        axes.axhline(mean[place], color="0.35", linestyle="--", linewidth=1.2, zorder=1)
    if record.part != "test":  # by which nothing is chosen
        best = f"best mean, {number(mean[record.best], 1)}"
        handles += axes.plot([record.best], [mean[record.best]], "o", ms=12, mfc="none", mec=BEST, mew=1.6, label=best)
    for between in (0.5, last - 0.5):
        axes.axvline(between, color="0.8", linewidth=0.8)
    names = [str(rank) if isinstance(rank, int) else f"{100 * rank:g}%" for rank in record.ranks]
    ends = [f"average\n{number(mean[0], 1)}", f"individual\n{number(mean[last], 1)}"]
    axes.set_xticks(range(last + 1), [ends[0], *names, ends[1]])
    axes.set_xlim(-0.5, last + 0.5)
    end = "bottom" if record.reverse else "top"
    axes.set_xlabel(f"rank of each task's adapter: singular directions kept, from the {end}")
    axes.set_ylabel("accuracy (%)")
    carried = "biases, norms and embeddings too" if adapters.carry == "all" else "matrices alone"
    of = f"{plural(len(record.sources), 'tower')}; {carried}; {images_in_words(record)}; the band is a 95% interval"
    entitle(figure, axes, "Accuracy of the average with each task's own adapter, over rank", of)
    key(figure, handles, columns=6)
    return figure
