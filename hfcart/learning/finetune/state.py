"""A training at one step, to be saved and restored: weights, AdamW's moments, losses, broken images met."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hfcart.clip.tensor_names import canonical

BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch's own defaults, as published
_MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainingState:
    """A tower in training.

    Attributes:
        parameters: every weight by its canonical name; all of them are trained.
        optimizer: AdamW over all of them, biases and layer norms decayed too, as published.
        step: steps done.
        history: loss and gradient norm of each.
        broken: (task number, index) of the images that could not be decoded.
    """

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float) -> None:
        """Take the tower, on its device, at step 0."""
        model.train().requires_grad_(True)
        self.parameters = {canonical(name) or name: parameter for name, parameter in model.named_parameters()}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=lr, betas=BETAS, eps=EPSILON, weight_decay=weight_decay
        )
        self.step = 0
        self.history: list[tuple[float, float]] = []
        self.broken: set[tuple[int, int]] = set()

    def checkpoint(self) -> dict[str, Tensor]:
        """All of it as tensors on the CPU; there must have been a step."""
        tensors = {
            "history": torch.tensor(self.history, dtype=torch.float64),
            "broken": torch.tensor(sorted(self.broken), dtype=torch.int64).reshape(-1, 2),
        }
        for name, parameter in self.parameters.items():
            tensors[f"weight/{name}"] = parameter.detach().cpu()
            for key in _MOMENTS:
                tensors[f"{key}/{name}"] = self.optimizer.state[parameter][key].cpu()
        return tensors

    def told(self) -> tuple[int, list[tuple[float, float]], set[tuple[int, int]]]:
        """What of the state is no large tensor, for `expect` in another process."""
        return self.step, self.history, self.broken

    def expect(self, step: int, history: list[tuple[float, float]], broken: set[tuple[int, int]]) -> None:
        """Be at `step`, with moments that are still to be filled in (through `shared`)."""
        self.step, self.history, self.broken = step, history, broken
        if step == 0:
            return
        state = {
            i: {"step": torch.tensor(float(step)), **{key: torch.zeros_like(parameter) for key in _MOMENTS}}
            for i, parameter in enumerate(self.parameters.values())
        }
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Be what `checkpoint` gave after `step` steps."""
        history = [(loss, norm) for loss, norm in tensors["history"].tolist()]
        self.expect(step, history, {(task, index) for task, index in tensors["broken"].tolist()})
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"weight/{name}"])
                for key in _MOMENTS:
                    self.optimizer.state[parameter][key].copy_(tensors[f"{key}/{name}"])

    def shared(self) -> Iterator[Tensor]:
        """Weights and moments, to be overwritten in place by those of another process."""
        for parameter in self.parameters.values():
            yield parameter.data
            yield from (self.optimizer.state[parameter][key] for key in _MOMENTS)

    def finite(self) -> bool:
        """Whether no weight is NaN or Inf."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.parameters.values())

    def weights(self) -> dict[str, Tensor]:
        """The weights on the CPU, by canonical name."""
        return {name: parameter.detach().cpu() for name, parameter in self.parameters.items()}

    def undecodable(self, tasks: int) -> list[int]:
        """Broken images met, one number a task."""
        return [sum(task == number for task, _ in self.broken) for number in range(tasks)]
