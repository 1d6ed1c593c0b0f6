"""What adaptation minimises over images without labels, from what the merged tower says of them.

- entropy (AdaMerging, arXiv 2310.02575, Eq. 5): how undecided it is. A tower that is often wrong becomes sure of one
  class.
- infomax (SHOT, arXiv 2002.08546, Eq. 3 and 4): the same, less how evenly its predictions are spread over the classes.
- distill: how far its predictions are from those of the tower that was fine-tuned on the task (cross-entropy, as in
  Hinton's distillation, arXiv 1503.02531, at temperature 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional

from hfcart.maths.moments import double_home

_MEMORY = 0.95  # of the running mean prediction, a step: about twenty batches
_LEAST = 1e-30  # of a share, so that its logarithm is finite


def log_predictions(
    features: Float[Tensor, "b width"],
    head: Float[Tensor, "classes dim"],
    projection: Float[Tensor, "dim width"],
    scale: float,
) -> Float[Tensor, "b classes"]:
    """Log of softmax(scale · cos(image, class)).

    Args:
        features: the tower's pooled output.
        head: a zero-shot head, unit rows.
        projection: CLIP's visual projection.
        scale: CLIP's logit scale, as a factor (not its logarithm).
    """
    images = functional.normalize(features.float() @ projection.T, dim=-1)
    return torch.log_softmax(scale * images @ head.T, dim=-1)


def entropy(log_p: Float[Tensor, "b classes"]) -> Float[Tensor, ""]:
    """Mean Shannon entropy of the predictions, in nats."""
    return -(log_p.exp() * log_p).sum(dim=-1).mean()


def infomax(log_p: Float[Tensor, "b classes"], seen: Float[Tensor, " classes"]) -> Float[Tensor, ""]:
    """Mean entropy of the predictions less the entropy of their mean, in nats, up to what does not change.

    Sixteen images say little of how predictions are spread over a hundred classes. So the mean is `seen`, over many
    batches with this one. Minus the gradient of its entropy is Σ_c log seen_c · ∇(seen_c), up to what sums to zero;
    this batch stands for all others in it, with a gradient that is not made smaller by its small part in the mean.
    """
    return entropy(log_p) + (log_p.exp().mean(dim=0) * seen.clamp_min(_LEAST).log()).sum()


def cross_entropy(log_p: Float[Tensor, "b classes"], own: Float[Tensor, "b classes"]) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, of the predictions against the log predictions of the task's own tower."""
    return -(own.exp() * log_p).sum(dim=-1).mean()


class MeanPredictions:
    """The mean prediction on each task's images, over the latest steps and over the first, on the CPU in float64.

    Attributes:
        first: steps that the mean at the start is over.
    """

    def __init__(self, classes: Sequence[int], first: int) -> None:
        """Nothing seen yet.

        Args:
            classes: how many each task has.
            first: steps that the mean at the start is over.
        """
        self._classes, self.first = list(classes), first
        self.step = 0
        self._recent, self._first = torch.zeros(2, sum(classes), dtype=torch.float64)

    def with_batch(self, task: int, batch: Float[Tensor, " classes"]) -> Float64[Tensor, " classes"]:
        """The running mean of one task's predictions, a further batch's mean among them, where the batch is."""
        weight, home = 1 - _MEMORY**self.step, double_home(batch.device)
        recent = torch.split(self._recent, self._classes)[task].to(home, non_blocking=True)
        return (_MEMORY * recent + (1 - _MEMORY) * batch.to(home).double()) / (_MEMORY * weight + 1 - _MEMORY)

    def update(self, means: Float64[Tensor, " all_classes"]) -> None:
        """One step more. Args: the mean prediction on each task's images of this step, one task after the other."""
        self._recent.mul_(_MEMORY).add_(means, alpha=1 - _MEMORY)
        if self.step < self.first:
            self._first.add_(means, alpha=1 / self.first)
        self.step += 1

    def shares(self, task: int) -> tuple[float, float, int]:
        """The share of the class that most of a task's images fall into, over the first and the latest steps.

        Returns:
            The largest share at the start, the largest now, and the class that has it now.
        """
        first, now = (torch.split(mean, self._classes)[task] for mean in (self._first, self._now()))
        return float(first.max()), float(now.max()), int(now.argmax())

    def collapsed(self, task: int) -> bool:
        """Whether a task's images fall into far fewer classes than at the start: half of those beyond one, or less.

        What is counted are as many equally frequent classes as have the entropy of the mean prediction.
        """
        first, now = (
            float(torch.special.entr(torch.split(mean, self._classes)[task]).sum().exp())
            for mean in (self._first, self._now())
        )
        return now - 1 < (first - 1) / 2

    def _now(self) -> Tensor:
        found: Tensor = self._recent / (1 - _MEMORY**self.step)
        return found

    def checkpoint(self) -> dict[str, Tensor]:
        """All of it as tensors."""
        return {"predicted": self._recent.clone(), "predicted_first": self._first.clone()}

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Be what `checkpoint` gave after `step` steps."""
        self.step, self._recent, self._first = step, tensors["predicted"], tensors["predicted_first"]
