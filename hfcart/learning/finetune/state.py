"""A training at one step, to be saved and restored: weights, AdamW's moments, losses, broken images, validation."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hfcart.clip.tensor_names import canonical
from hfcart.records import Look, Validation

BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch's own defaults, as published
_MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainingState:
    """A tower in training.

    Attributes:
        parameters: every weight that is trained, by its canonical name.
        frozen: the others.
        optimizer: AdamW over those that are trained, biases and layer norms decayed too, as published.
        step: steps done.
        history: loss and gradient norm of each.
        broken: (task number, index) of the images that could not be decoded.
        validation: what was seen on the validation images so far; None before the first look.
        best: trained weights of the best step so far, on the CPU, by canonical name; None where they are not kept.
    """

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float, frozen: Container[str] = ()) -> None:
        """Take the tower, on its device, at step 0; and the canonical names of what stays as it is."""
        model.train().requires_grad_(True)
        every = {canonical(name) or name: parameter for name, parameter in model.named_parameters()}
        self.parameters = {name: parameter for name, parameter in every.items() if name not in frozen}
        self.frozen = {name: parameter.requires_grad_(False) for name, parameter in every.items() if name in frozen}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=lr, betas=BETAS, eps=EPSILON, weight_decay=weight_decay
        )
        self.step = 0
        self.history: list[tuple[float, float]] = []
        self.broken: set[tuple[int, int]] = set()
        self.validation: Validation | None = None
        self.best: dict[str, Tensor] | None = None

    def checkpoint(self) -> dict[str, Tensor]:
        """All of it as tensors on the CPU; there must have been a step."""
        tensors = {
            "history": torch.tensor(self.history, dtype=torch.float64),
            "broken": torch.tensor(sorted(self.broken), dtype=torch.int64).reshape(-1, 2),
            **{f"best/{name}": tensor for name, tensor in (self.best or {}).items()},
        }
        if self.validation is not None:
            looks = [[look.step, *look.correct] for look in self.validation.looks]
            tensors["looks"] = torch.tensor([[0, *self.validation.images], *looks], dtype=torch.int64)
        for name, parameter in self.parameters.items():
            tensors[f"weight/{name}"] = parameter.detach().cpu()
            for key in _MOMENTS:
                tensors[f"{key}/{name}"] = self.optimizer.state[parameter][key].cpu()
        return tensors

    def told(self) -> dict[str, Any]:
        """What of the state is no large tensor, for `expect` in another process."""
        return {name: getattr(self, name) for name in ("step", "history", "broken", "validation")}

    def expect(self, step: int, **told: Any) -> None:  # noqa: ANN401 (as `told` gives them)
        """Be at `step`, with moments that are still to be filled in (through `shared`)."""
        vars(self).update(step=step, **told)
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
        broken = {(task, index) for task, index in tensors["broken"].tolist()}
        validation = None
        if "looks" in tensors:
            (_, *images), *looks = tensors["looks"].tolist()
            validation = Validation(tuple(images), tuple(Look(after, tuple(correct)) for after, *correct in looks))
        self.expect(step, history=history, broken=broken, validation=validation)
        best = {name.removeprefix("best/"): tensor for name, tensor in tensors.items() if name.startswith("best/")}
        self.best = best or None
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

    def look(self, correct: tuple[int, ...], images: tuple[int, ...], *, keep_best: bool) -> Look:
        """Note how the tower of this step did on the validation images; keep its weights if none before did better."""
        look = Look(self.step, correct)
        looks = self.validation.looks if self.validation else ()
        self.validation = Validation(images, (*looks, look))
        if keep_best and self.validation.best is look:
            self.best = {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.parameters.items()}
        return look

    def finite(self) -> bool:
        """Whether no weight that is trained is NaN or Inf."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.parameters.values())

    def weights(self, *, best: bool = False) -> dict[str, Tensor]:
        """All weights on the CPU, by canonical name: those of this step, or of the best one, which must be kept."""
        trained: Mapping[str, Tensor] = self.parameters
        if best:
            assert self.best is not None
            trained = self.best
        return {name: tensor.detach().cpu() for name, tensor in (*trained.items(), *self.frozen.items())}

    def undecodable(self, tasks: int) -> list[int]:
        """Broken images met, one number a task."""
        return [sum(task == number for task, _ in self.broken) for number in range(tasks)]
