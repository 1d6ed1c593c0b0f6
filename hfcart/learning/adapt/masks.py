"""Which singular directions of each tower stay: a number for each, learned beside the coefficients.

AdaRank (arXiv 2503.22178): direction i of tower t in matrix l acts where b = 1[σ(m / temperature) > 0.5], and the
gradient goes straight through the step, to σ: dL/dm = dL/db · σ'(m / temperature) / temperature. The start is its
authors': the strongest directions on, and every number as far from the step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from hfcart.learning.adapt.parts import Adapted
from hfcart.learning.adapt.state import BETAS, EPSILON
from hfcart.learning.adapt.work import Work
from hfcart.maths.low_rank import rank_of
from hfcart.methods.shared.directions import as_hex

START, TEMPERATURE = 0.1, 10.0
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Masks:
    """One number for each tower, matrix and direction, on the CPU in float64.

    Attributes:
        raw: what is learned, all of them in a row.
        shapes: of each matrix: (towers, directions).
    """

    def __init__(self, towers: int, directions: Sequence[int], on: Sequence[int], *, lr: float) -> None:
        """At the start.

        Args:
            towers: T.
            directions: of each matrix.
            on: how many of them are on at the start; more than there are means all.
            lr: learning rate of Adam.
        """
        self.shapes = [(towers, count) for count in directions]
        rows = [torch.where(torch.arange(k) < first, START, -START) for k, first in zip(directions, on, strict=True)]
        self.raw = torch.cat([row.double().repeat(towers) for row in rows])
        self.raw.grad = torch.zeros_like(self.raw)
        self._optimizer = torch.optim.Adam([self.raw], lr=lr, betas=BETAS, eps=EPSILON)

    def kept(self) -> list[Bool[Tensor, "tower direction"]]:
        """Of each matrix, which directions of each tower are on."""
        return [each > 0 for each in self.split(self.raw)]

    def split(self, flat: Tensor) -> list[Tensor]:
        """A row of numbers, one for each direction, matrix by matrix."""
        parts = torch.split(flat, [towers * count for towers, count in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def update(self, gradient: Float64[Tensor, " number"]) -> None:
        """One step of Adam. Args: the loss's gradient to whether each direction is on."""
        soft = torch.sigmoid(self.raw / TEMPERATURE)
        assert self.raw.grad is not None
        self.raw.grad.copy_(gradient * soft * (1 - soft) / TEMPERATURE)
        self._optimizer.step()

    def shares(self) -> list[float]:
        """Of each tower, the share of all its directions that are on."""
        kept, total = self.kept(), sum(count for _, count in self.shapes)
        return [sum(int(each[tower].sum()) for each in kept) / total for tower in range(self.shapes[0][0])]

    def final(self) -> list[tuple[str, ...]]:
        """Of each matrix, every tower's choice as a recipe has it."""
        return [tuple(as_hex(row) for row in each.tolist()) for each in self.kept()]

    def checkpoint(self) -> dict[str, Tensor]:
        """All of it as tensors; there must have been a step."""
        moments = self._optimizer.state[self.raw]
        return {"masks": self.raw.clone(), **{f"masks_{key}": moments[key].clone() for key in _MOMENTS}}

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Be what `checkpoint` gave after `step` steps."""
        self.raw.copy_(tensors["masks"])
        moments = {"step": torch.tensor(float(step)), **{key: tensors[f"masks_{key}"] for key in _MOMENTS}}
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": {0: moments}})


def masks_of(work: Work, adapted: Sequence[Adapted]) -> Masks | None:
    """Of the matrices whose directions are chosen, at the start; None if none are."""
    chosen = [each for each in adapted if each.chosen]
    if work.rank is None:
        return None
    on = [rank_of(work.rank, *each.shape) for each in chosen]
    return Masks(len(work.plan.towers), [each.rank or 0 for each in chosen], on, lr=work.setting("lr"))
