"""The figure of a fine-tuning: loss and validation accuracy over the steps."""

from __future__ import annotations

from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hfcart.records import TrainedTask, TrainingCurve, Validation
from hfcart.report.accuracy import look_interval
from hfcart.report.plots._canvas import OWN, TOWERS, drawable, save

TRAINING = "figures/training.png"
_WIDTH = 8.0  # inches, as every figure
_KEPT = "#D55E00"
_MOST_TASKS = 8  # lines of single tasks; beyond that they hide the mean
_LONGEST_TITLE = 28  # characters


def draw_training(curve: TrainingCurve, tasks: tuple[TrainedTask, ...], folder: Path) -> str:
    """Draw how a training went: the mean loss of each stretch of steps, and below it the accuracy in validation.

    Args:
        curve: what was noted of it.
        tasks: what was trained on, in the order of the curve's counts.
        folder: the output folder; the figure goes to `folder/figures/`.

    Returns:
        Name of the file written, relative to `folder`, with forward slashes.
    """
    with matplotlib.style.context("default"):
        save(_draw(curve, tasks), folder / TRAINING)
    return TRAINING


def _draw(curve: TrainingCurve, tasks: tuple[TrainedTask, ...]) -> Figure:
    seen = curve.validation
    figure = Figure(figsize=(_WIDTH, 5.4 if seen else 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 if seen else 1, 1, sharex=True, squeeze=False)[:, 0]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.axvline(curve.kept, color=_KEPT, linestyle=":", linewidth=1.4)
    middles = np.array([0, *curve.steps[:-1]]) / 2 + np.array(curve.steps) / 2
    panels[0].plot(middles, curve.losses, color="0.25", linewidth=1.4)
    panels[0].set_ylabel("training loss")
    panels[0].set_ylim(bottom=0)
    panels[0].set_title("Loss on training images, accuracy on validation images" if seen else "Loss on training images")
    if seen is not None:
        _draw_accuracy(panels[1], seen, tasks, curve.kept)
    late = curve.kept > curve.steps[-1] / 2
    panels[0].annotate(
        f"kept: step {curve.kept}", (curve.kept, 1), xycoords=("data", "axes fraction"), xytext=(-5 if late else 5, -4),
        textcoords="offset points", ha="right" if late else "left", va="top", color=_KEPT, fontsize=9,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )  # fmt: skip
    panels[-1].set_xlabel("step")
    panels[-1].set_xlim(0, curve.steps[-1] * 1.02)
    return figure


def _draw_accuracy(axes: Axes, seen: Validation, tasks: tuple[TrainedTask, ...], kept: int) -> None:
    steps = [look.step for look in seen.looks]
    means = [100 * seen.accuracy(look) for look in seen.looks]
    low, high = 100 * np.array([look_interval(seen, look) for look in seen.looks]).T
    shares = 100 * np.array([look.correct for look in seen.looks]) / seen.images
    several = len(tasks) > 1
    name = f"mean of {len(tasks)} tasks" if several else "accuracy"
    axes.plot(steps, means, color=TOWERS[OWN], linewidth=2.0, marker="o", markersize=4, label=name, zorder=3)
    axes.fill_between(steps, low, high, color=TOWERS[OWN], alpha=0.18, linewidth=0, label="its 95 % interval")
    if several and len(tasks) <= _MOST_TASKS:
        low, high = np.minimum(low, shares.min(axis=1)), np.maximum(high, shares.max(axis=1))
        colours = colormaps["viridis"](np.linspace(0.1, 0.9, len(tasks)))
        for task, values, colour in zip(tasks, shares.T, colours, strict=True):
            axes.plot(steps, values, color=colour, linewidth=1.0, label=drawable(task.title[:_LONGEST_TITLE]))
    if kept in steps:
        axes.plot(kept, means[steps.index(kept)], "o", markersize=10, mfc="none", mec=_KEPT, zorder=4)
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(max(0.0, low.min() - 4), min(103.0, high.max() + 4))
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    for entry in axes.get_legend().get_texts():  # type: ignore[union-attr]
        entry.set_parse_math(False)
