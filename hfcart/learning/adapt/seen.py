"""What one step of an adaptation sees of its images, by all processes together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Seen:
    """What a step sees, each process its own batches of it: numbers in one row, which are added up over processes."""

    def __init__(self, classes: Sequence[int], images: int) -> None:
        """All zero.

        Args:
            classes: how many each task has.
            images: of the whole step.
        """
        tasks = len(classes)
        self.flat = torch.zeros(2 * tasks + images + sum(classes), dtype=torch.float64)
        parts = torch.split(self.flat, [tasks, tasks, images, sum(classes)])
        self.entropies, self.agreements, self.usable, self.predicted = parts
        self._classes = list(classes)

    def add(self, task: int, batch: Tensor) -> None:
        """A batch of a task: its mean entropy, its share of agreement, then its mean prediction."""
        self.entropies[task] += batch[0]
        self.agreements[task] += batch[1]
        torch.split(self.predicted, self._classes)[task].add_(batch[2:])
