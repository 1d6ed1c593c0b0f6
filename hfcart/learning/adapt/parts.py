"""What coefficients act on: every tensor's anchor and each tower's part of it, on disk, one at a time in memory.

merged_l = anchor_l + Σ_t c_t^l · component_t^l. A component is a pair of low-rank factors or a whole tensor, as the
method's `parts` gives it. Nothing here grows with the number of towers but the file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hfcart.clip.tensor_names import Group
from hfcart.engine.coefficients import directions_in, factors_in, has_coefficients
from hfcart.engine.loop import workers
from hfcart.engine.merging import GroupRules, whole_tower_facts
from hfcart.engine.plan import Plan
from hfcart.engine.reading import GroupReader, Held
from hfcart.engine.writing import GroupWriter
from hfcart.formats.shard_layout import Layout, lay_out
from hfcart.methods import function, keywords_of
from hfcart.progress import Progress


@dataclass(frozen=True)
class Adapted:
    """A group of tensors that has a coefficient for each tower.

    Attributes:
        group: its tensors.
        shape: of the group, q, k and v stacked where they are fused.
        rank: k of its components' factors; None where they are whole tensors.
        chosen: whether it is learned which of those k directions stay.
    """

    group: Group
    shape: tuple[int, ...]
    rank: int | None
    chosen: bool = False


def adapted_groups(plan: Plan) -> list[Adapted]:
    """The groups with coefficients, in output order: the matrices, and all others if that is asked for."""
    found = []
    for group in plan.groups:
        if has_coefficients(plan, group):
            shapes = [plan.shapes[name] for name in group.names]
            shape = shapes[0] if len(shapes) == 1 else (sum(s[0] for s in shapes), *shapes[0][1:])
            chosen = directions_in(plan, group) is not None
            found.append(Adapted(group, shape, factors_in(plan, group), chosen))
    return found


def lay_out_parts(plan: Plan) -> Layout:
    """Where the anchor of every tensor lies, and each tower's parts of those with coefficients."""
    towers = len(plan.towers)
    shapes: dict[str, tuple[int, ...]] = {
        f"anchor.{name}": plan.shapes[name] for group in plan.groups if not group.copied for name in group.names
    }
    for adapted in adapted_groups(plan):
        key, shape, k = adapted.group.key, adapted.shape, adapted.rank
        shapes[f"left.{key}"] = (towers, *shape) if k is None else (towers, shape[0], k)
        if k is not None:
            shapes[f"right.{key}"] = (towers, shape[1], k)
    return lay_out(shapes, "F32", 1 << 62)


def part_bytes(plan: Plan) -> int:
    """Bytes of the file that `lay_out_parts` lays out."""
    return sum(lay_out_parts(plan).sizes.values())


def take_apart(plan: Plan, writer: GroupWriter, device: torch.device, number: int, progress: Progress) -> None:
    """Take every group apart, in place of merging it, and write its parts.

    Args:
        plan: with its towers fetched, in float32.
        writer: of its groups, with the slots of `lay_out_parts`.
        device: where the algebra is done.
        number: of worker threads.
        progress: told the bytes of sources taken apart.
    """
    adaptive = plan.recipe.adaptive
    assert adaptive is not None  # the recipe was checked
    matrix_parts = function(adaptive.parts)
    other_parts = function(adaptive.other_parts) if adaptive.other_parts else None
    if other_parts is None:  # where others have coefficients they are taken apart alike, directions or none
        assert plan.method.adaptive is not None
        other_parts = function(plan.method.adaptive.parts)
    _, other_rule = plan.method.load()
    reader = GroupReader(plan, device)
    with workers(number, device, reader, progress) as pool:
        known = whole_tower_facts(GroupRules(plan, reader, device), writer, pool)

        def apart(group: Group, held: Held) -> tuple[Tensor, Tensor | None, Tensor | None]:
            """The anchor and the factors, on the CPU."""
            thetas, base = held.to(device)
            offered = {**plan.settings, **known, "base": base, "key": group.key}
            if (chosen := directions_in(plan, group)) is not None:
                offered["rank"] = chosen
            if not has_coefficients(plan, group):
                return other_rule(thetas, **keywords_of(other_rule, offered)).tensor.cpu(), None, None
            parts = matrix_parts if group.matrix else other_parts
            found = parts(thetas, **keywords_of(parts, offered))
            return found.anchor.cpu(), found.left.cpu(), None if found.right is None else found.right.cpu()

        def work(group: Group) -> None:
            digests: dict[str, str] = {}
            if not group.copied:
                with reader.held(group) as held:
                    anchor, left, right = pool.drive(apart, group, held)
                    for side, factor in (("left", left), ("right", right)):
                        if factor is not None:
                            digests |= writer.write_whole(f"{side}.{group.key}", factor)
                    digests |= writer.write(group, anchor, "anchor.")
            writer.note({"group": group.key, "sha256": digests})

        pool.each("Taking apart", *writer.to_do(), work)


class PartsFile:
    """The file that `take_apart` filled, read part by part. Use as a context manager."""

    def __init__(self, plan: Plan, path: Path, device: torch.device, *, budget: int = 0) -> None:
        """Open nothing yet.

        Args:
            plan: that was taken apart.
            path: the file.
            device: where parts are needed.
            budget: bytes of parts that may stay there once they are read; the rest is read again each time.
        """
        self.adapted = adapted_groups(plan)
        self.folder = path.parent
        self._plan, self._path, self._device = plan, path, device
        self._slots = lay_out_parts(plan).slots
        self._left = budget
        self._kept: dict[tuple[str, int], Tensor] = {}
        self._file = -1

    def __enter__(self) -> PartsFile:
        """Open the file."""
        self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Close it."""
        os.close(self._file)
        self._kept.clear()

    def anchors(self) -> dict[str, Tensor]:
        """Every tensor of the tower where all coefficients are zero, by name, on the CPU."""
        names = [name for group in self._plan.groups if not group.copied for name in group.names]
        return {name: self._read(f"anchor.{name}") for name in names}

    def merge(
        self,
        adapted: Adapted,
        coefficients: Sequence[float],
        out: Sequence[Tensor],
        kept: Bool[Tensor, "task k"] | None = None,
    ) -> None:
        """Set the tensors of a group to anchor + Σ_t c_t · component_t, in the memory that they have.

        Args:
            adapted: the group.
            coefficients: one for each tower.
            out: one for each of the group's names, contiguous, on the device of the parts.
            kept: which directions of each component there are; None for all.
        """
        for name, tensor in zip(adapted.group.names, out, strict=True):
            if tensor.device.type == "cpu":
                self._read(f"anchor.{name}", out=tensor)
            else:
                tensor.copy_(self._get(f"anchor.{name}"))
        rows = [len(tensor) for tensor in out]
        for task, c in enumerate(coefficients):
            left, right = self._components(adapted, task)
            if kept is not None and right is not None:
                places = kept[task].nonzero()[:, 0].to(left.device, non_blocking=True)
                left, right = left[:, places], right[:, places]
            for tensor, own in zip(out, torch.split(left, rows), strict=True):
                if right is None:
                    tensor.add_(own, alpha=c)
                else:
                    tensor.addmm_(own, right.T, alpha=c)

    def merge_all(
        self,
        values: Float[Tensor, "task group"],
        out: Sequence[Sequence[Tensor]],
        kept: Sequence[Bool[Tensor, "task k"] | None],
    ) -> None:
        """Merge every group. Args: the coefficients, on the CPU; of each group what `merge` takes."""
        for number, (adapted, tensors, mask) in enumerate(zip(self.adapted, out, kept, strict=True)):
            self.merge(adapted, values[:, number].tolist(), tensors, mask)

    def inner(self, adapted: Adapted, gradient: Float[Tensor, " *shape"]) -> Float[Tensor, " task"]:
        """⟨gradient, component_t⟩ for each tower: what the loss's gradient is to its coefficient.

        On factors that is ⟨right_tᵀ gradientᵀ, left_tᵀ⟩: no component is ever multiplied out. (The product has few
        rows and many columns, which is faster on a CPU than few columns.)
        """
        found = []
        for task in range(len(self._plan.towers)):
            left, right = self._components(adapted, task)
            if right is None:
                found.append(torch.dot(gradient.reshape(-1), left.reshape(-1)))
            else:
                found.append(torch.dot((right.T @ gradient.T).reshape(-1), left.T.reshape(-1)))
        return torch.stack(found)

    def along(self, adapted: Adapted, gradient: Float[Tensor, " *shape"]) -> Float[Tensor, "task k"]:
        """leftᵀ gradient right of every direction: what the loss's gradient is to its share of a component."""
        found = []
        for task in range(len(self._plan.towers)):
            left, right = self._components(adapted, task)
            assert right is not None  # of factors
            found.append(((right.T @ gradient.T) * left.T).sum(dim=1))
        return torch.stack(found)

    def _components(self, adapted: Adapted, task: int) -> tuple[Tensor, Tensor | None]:
        key = adapted.group.key
        left = self._get(f"left.{key}", task)
        return left, None if adapted.rank is None else self._get(f"right.{key}", task)

    def _get(self, name: str, task: int | None = None) -> Tensor:
        """A part on the device: one that was kept, or read, and kept if there is room for it."""
        kept = self._kept.get((name, -1 if task is None else task))
        if kept is not None:
            return kept
        found = self._read(name, task).to(self._device)
        size = 4 * found.numel()
        if size <= self._left:
            self._left -= size
            self._kept[name, -1 if task is None else task] = found
        return found

    def _read(self, name: str, task: int | None = None, out: Tensor | None = None) -> Tensor:
        slot = self._slots[name]
        shape = slot.shape if task is None else slot.shape[1:]
        start = slot.start + (0 if task is None else task * 4 * prod(shape))
        out = torch.empty(shape) if out is None else out
        flat: Any = out.detach().view(-1).view(torch.uint8).numpy()
        view = memoryview(flat)
        done = 0
        while done < len(view):
            count = os.preadv(self._file, [view[done:]], start + done)
            if count == 0:
                raise OSError(f"{self._path} ends at byte {start + done}")
            done += count
        return out


def budget_of(device: torch.device) -> int:
    """Bytes of parts that may stay on a device: half of what is free on a GPU; none in the machine's own memory."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 0
