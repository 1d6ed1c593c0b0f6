"""What fine-tuning minimises, and how fast: pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


def learning_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """The learning rate of one step: a linear warm-up to `peak`, then half a cosine down to nearly 0.

    Args:
        step: 0 .. steps − 1.
        peak: reached at step warmup − 1.
        warmup: steps, 0 .. steps − 1.
        steps: of the whole training.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def example_losses(
    features: Float[Tensor, "b width"],
    labels: Int[Tensor, " b"],
    tasks: Int[Tensor, " b"],
    heads: Sequence[Float[Tensor, "_ dim"]],
    projection: Float[Tensor, "dim width"],
    scale: float,
) -> Float[Tensor, " b"]:
    """Cross entropy of each image under its own task's zero-shot head: softmax of scale · cos(image, class).

    Args:
        features: the tower's pooled output.
        labels: class of each image in its task.
        tasks: which of `heads` each image belongs to.
        heads: one a task, rows of unit length.
        projection: CLIP's visual projection.
        scale: CLIP's logit scale, as a factor (not its logarithm).
    """
    images = functional.normalize(features.float() @ projection.T, dim=-1)
    losses = images.new_zeros(len(images))
    for number, head in enumerate(heads):
        own = (tasks == number).nonzero().squeeze(1)
        logits = scale * images[own] @ head.T
        losses = losses.index_put((own,), functional.cross_entropy(logits, labels[own], reduction="none"))
    return losses


def weights(tasks: Int[Tensor, " b"], usable: Bool[Tensor, " b"]) -> Float[Tensor, " b"]:
    """What each image counts in the loss: the mean over its task's images, averaged over the tasks in the batch.

    Args:
        tasks: task of each image of the whole batch.
        usable: False for an image that could not be decoded: it counts nothing.

    Returns:
        Numbers that add up to 1, or all 0 if no image is usable.
    """
    counts = torch.bincount(tasks[usable], minlength=int(tasks.max()) + 1)
    present = (counts > 0).sum().clamp(min=1)
    return usable / (counts[tasks].clamp(min=1) * present)
