"""The figure of a fine-tuning: loss and validation accuracy over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfcart.records import TrainedTask, TrainingCurve, Validation
from hfcart.report.accuracy import look_interval
from hfcart.report.plots._canvas import BEST, OWN, TOWERS, drawable, entitle, key, planes, save, shortened, stroke

TRAINING = "figures/training.png"
_MOST_TASKS = 6  # lines of single tasks; beyond that they hide the mean


def draw_training(curve: TrainingCurve, tasks: Sequence[TrainedTask], folder: Path) -> str:
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


def _draw(curve: TrainingCurve, tasks: Sequence[TrainedTask]) -> Figure:
    seen = curve.validation
    figure, panels = planes(5.2 if seen else 2.8, 2 if seen else 1)
    for axes in panels:
        kept = axes.axvline(curve.kept, color=BEST, linestyle=":", linewidth=1.6, label=f"kept: step {curve.kept}")
    middles = (np.array([0, *curve.steps[:-1]]) + np.array(curve.steps)) / 2
    panels[0].plot(middles, curve.losses, color="0.25", linewidth=1.4)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("training loss")
    panels[-1].set_xlabel("step")
    panels[-1].set_xlim(0, 1.02 * curve.steps[-1])
    handles: list[Artist] = []
    below = "loss on training images"
    if seen is not None:
        handles = _draw_accuracy(panels[1], seen, tasks, curve.kept)
        below += f"; accuracy on {sum(seen.images):,} validation images, the band is its 95% interval"
    entitle(figure, panels[0], "Loss and accuracy over the training" if seen else "Loss over the training", below)
    key(figure, [*handles, kept])
    return figure


def _draw_accuracy(axes: Axes, seen: Validation, tasks: Sequence[TrainedTask], kept: int) -> list[Artist]:
    """The mean with its band, and where there are few tasks a line for each; what the legend is to show."""
    steps = [look.step for look in seen.looks]
    means = [100 * seen.accuracy(look) for look in seen.looks]
    low, high = 100 * np.array([look_interval(seen, look) for look in seen.looks]).T
    name = f"mean of {len(tasks)} tasks" if len(tasks) > 1 else "accuracy"
    blue = TOWERS[OWN]
    axes.fill_between(steps, low, high, color=blue, alpha=0.15, linewidth=0)
    handles: list[Artist] = [*axes.plot(steps, means, color=blue, linewidth=2, marker="o", ms=4, label=name, zorder=3)]
    if 1 < len(tasks) <= _MOST_TASKS:
        shares = 100 * np.array([look.correct for look in seen.looks]) / seen.images
        low, high = np.minimum(low, shares.min(axis=1)), np.maximum(high, shares.max(axis=1))
        for i, (task, values) in enumerate(zip(tasks, shares.T, strict=True)):
            colour, dashes = stroke(i + 1)
            label = drawable(shortened(task.title))
            handles += axes.plot(steps, values, color=colour, linestyle=dashes, linewidth=1.1, label=label)
    if kept in steps:
        axes.plot(kept, means[steps.index(kept)], "o", ms=11, mfc="none", mec=BEST, mew=1.6, zorder=4)
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(max(0.0, low.min() - 4), min(106.0, high.max() + 6))
    return handles
