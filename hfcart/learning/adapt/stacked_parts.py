"""Parts that stay on a device, all towers' of a group side by side: merging it, and its gradients, are a few products.

A device waits for whoever gives it work: one tower after another, giving it eight times as much takes most of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from types import TracebackType

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hfcart.engine.plan import Plan
from hfcart.learning.adapt.parts import Adapted, PartsFile

_Stack = tuple[Tensor, Tensor | None]


class StackedParts(PartsFile):
    """As PartsFile, for a device; of a group for which the budget is too small each tower's part is read by itself."""

    def __init__(self, plan: Plan, path: Path, device: torch.device, *, budget: int) -> None:
        """As PartsFile."""
        super().__init__(plan, path, device, budget=budget)
        self._stacks: dict[str, _Stack | None] = {}

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        """As PartsFile: the device's memory is free, whatever still holds this."""
        super().__exit__(_type, _error, _at)
        self._stacks.clear()

    def merge_all(
        self,
        values: Float[Tensor, "task group"],
        out: Sequence[Sequence[Tensor]],
        kept: Sequence[Bool[Tensor, "task k"] | None],
    ) -> None:
        """As PartsFile.merge_all, but for rounding."""
        columns = values.float().to(self._device, non_blocking=True).unbind(1)
        for number, (adapted, tensors, mask) in enumerate(zip(self.adapted, out, kept, strict=True)):
            if (stack := self._stack(adapted)) is None:
                self.merge(adapted, values[:, number].tolist(), tensors, mask)
                continue
            left, right = stack
            rows = [len(tensor) for tensor in tensors]
            if right is None:
                added = torch.tensordot(columns[number], left, 1)
            else:
                weights = columns[number][:, None]
                weights = weights if mask is None else weights * mask.to(self._device, non_blocking=True)
                added = (left * weights).flatten(1)
            for name, tensor, own in zip(adapted.group.names, tensors, torch.split(added, rows), strict=True):
                anchor = self._get(f"anchor.{name}")
                if right is None:
                    torch.add(anchor, own, out=tensor)
                else:
                    torch.addmm(anchor, own, right.T, out=tensor)

    def inner(self, adapted: Adapted, gradient: Float[Tensor, " *shape"]) -> Float[Tensor, " task"]:
        """As PartsFile.inner, but for rounding."""
        if (stack := self._stack(adapted)) is None:
            return super().inner(adapted, gradient)
        if stack[1] is None:
            return stack[0].flatten(1) @ gradient.reshape(-1)
        return self.along(adapted, gradient).sum(dim=1)

    def along(self, adapted: Adapted, gradient: Float[Tensor, " *shape"]) -> Float[Tensor, "task k"]:
        """As PartsFile.along, but for rounding."""
        if (stack := self._stack(adapted)) is None:
            return super().along(adapted, gradient)
        left, right = stack
        assert right is not None  # of factors
        return ((gradient @ right).view(left.shape) * left).sum(dim=0)

    def _stack(self, adapted: Adapted) -> _Stack | None:
        """Factors as m × task × k and n × (task k), or task × shape and None, on the device; None without room."""
        key = adapted.group.key
        if key not in self._stacks:
            names = [f"left.{key}"] if adapted.rank is None else [f"left.{key}", f"right.{key}"]
            size = 4 * sum(prod(self._slots[name].shape) for name in names)
            self._stacks[key] = None
            if size <= self._left:
                self._left -= size
                read = [self._read(name).to(self._device) for name in names]
                if adapted.rank is None:
                    self._stacks[key] = read[0], None
                else:
                    left, right = (part.transpose(0, 1).contiguous() for part in read)
                    self._stacks[key] = left, right.flatten(1)
        return self._stacks[key]
