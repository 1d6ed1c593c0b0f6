"""Coefficients that are being learned: their values, Adam's moments, what each step saw; saved and restored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8
_MOMENTS = ("exp_avg", "exp_avg_sq")
DECIMALS = 6  # of a coefficient as it is used and recorded


class Coefficients:
    """One coefficient for each tower and tensor, or for each tower alone, on the CPU in float64.

    Attributes:
        raw: what is learned, T × L (or T × 1).
        step: steps done.
        history: a row for each step: every task's entropy, then every tower's mean coefficient, then what else
            was told.
        broken: (task number, index) of the images that could not be decoded.
    """

    def __init__(self, towers: int, tensors: int, *, start: float, per_task: bool, clamped: bool, lr: float) -> None:
        """All at `start`, at step 0."""
        self._tensors, self._clamped = tensors, clamped
        self.raw = torch.full((towers, 1 if per_task else tensors), start, dtype=torch.float64)
        self.raw.grad = torch.zeros_like(self.raw)
        self._optimizer = torch.optim.Adam([self.raw], lr=lr, betas=BETAS, eps=EPSILON)
        self.step = 0
        self.history: list[list[float]] = []
        self.broken: set[tuple[int, int]] = set()

    def values(self) -> Float64[Tensor, "tower tensor"]:
        """The coefficients as they act: clamped to [0, 1] if that is the method's way."""
        acting = self.raw.clamp(0, 1) if self._clamped else self.raw
        return acting.expand(-1, self._tensors)

    def final(self) -> Float64[Tensor, "tower tensor"]:
        """The coefficients as the merge uses and records them: rounded."""
        return self.values().round(decimals=DECIMALS)

    def update(
        self, gradient: Float64[Tensor, "tower tensor"], entropies: list[float], told: Sequence[float] = ()
    ) -> None:
        """One step of Adam. Args: the loss's gradient to `values`; for the history, what each task's images gave."""
        if self.raw.shape[1] == 1:
            gradient = gradient.sum(dim=1, keepdim=True)
        if self._clamped:  # beyond the ends the loss does not change; at them it does, as in torch.clamp
            gradient = gradient * ((self.raw >= 0) & (self.raw <= 1))
        assert self.raw.grad is not None
        self.history.append([*entropies, *self.values().mean(dim=1).tolist(), *told])
        self.raw.grad.copy_(gradient)
        self._optimizer.step()
        self.step += 1

    def checkpoint(self) -> dict[str, Tensor]:
        """All of it as tensors; there must have been a step."""
        moments = self._optimizer.state[self.raw]
        return {
            "raw": self.raw.clone(),
            "history": torch.tensor(self.history, dtype=torch.float64),
            "broken": torch.tensor(sorted(self.broken), dtype=torch.int64).reshape(-1, 2),
            **{key: moments[key].clone() for key in _MOMENTS},
        }

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Be what `checkpoint` gave after `step` steps."""
        self.raw.copy_(tensors["raw"])
        moments = {"step": torch.tensor(float(step)), **{key: tensors[key] for key in _MOMENTS}}
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": {0: moments}})
        self.history = tensors["history"].tolist()
        self.broken = {(task, index) for task, index in tensors["broken"].tolist()}
        self.step = step
