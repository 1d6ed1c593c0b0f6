"""Groups of tensors as they are stored, read in float32: T slices at a time, never a whole tower."""

from __future__ import annotations

import threading
from math import prod
from typing import Any, NamedTuple

import torch

from hfcart.clip.tensor_names import PROJECTION, Group
from hfcart.engine.plan import TORCH_NAME, Plan
from hfcart.errors import NonFiniteError
from hfcart.formats.safetensors_file import DTYPE_BYTES, TensorSpec
from hfcart.sources.towers import Tower

TORCH_DTYPES = {name: getattr(torch, torch_name) for name, torch_name in TORCH_NAME.items()}


class Held(NamedTuple):
    """A group of every tower as it was read, in this machine's memory.

    Attributes:
        thetas: task × shape, float32: the reading thread's buffer, which its next call overwrites.
        base: of the base model, if there is one.
    """

    thetas: torch.Tensor
    base: torch.Tensor | None

    def to(self, device: torch.device) -> Held:
        """The same on a device; the copy of a buffer that the device reads by itself is only begun."""
        base = None if self.base is None else self.base.to(device)
        return Held(self.thetas.to(device, non_blocking=True), base)


class GroupReader:
    """Reads the groups of a plan. Several threads may: each has one buffer, as large as the largest group.

    Attributes:
        largest_bytes: of the largest group, of one tower, in float32.
    """

    def __init__(self, plan: Plan, device: torch.device) -> None:
        """Read nothing yet.

        Args:
            plan: with its towers fetched.
            device: where groups are going to be needed.
        """
        self._plan = plan
        self._device = device
        self.largest_bytes = 4 * max(plan.group_elements(group) for group in plan.groups if not group.copied)
        self._local = threading.local()

    def bytes_read(self, group: Group) -> int:
        """Bytes that a group takes: of every source, or of the base where it is copied."""
        return sum(
            DTYPE_BYTES[tower.tensors[name].dtype] * prod(self._plan.shapes[name])
            for tower in self._taken_from(group)
            for name in group.names
        )

    def shape(self, group: Group) -> tuple[int, ...]:
        """Of a group's tensors, one below the other."""
        shapes = [self._plan.shapes[name] for name in group.names]
        return shapes[0] if len(shapes) == 1 else (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def read(self, group: Group) -> Held:
        """The group of every tower, and of the base if there is one, not yet on the device.

        Raises:
            NonFiniteError: NaN or Inf in a source.
        """
        plan, shape = self._plan, self.shape(group)
        thetas = self._read(group, plan.towers, self._buffer(len(plan.towers) * prod(shape))).view(-1, *shape)
        if plan.base is None:
            return Held(thetas, None)
        return Held(thetas, self._read(group, (plan.base,), torch.empty(prod(shape))).view(shape))

    def copied(self, group: Group) -> torch.Tensor:
        """A group that is copied from the base, as it is stored there. Raises as `read`."""
        (tower,), (name,) = self._taken_from(group), group.names
        stored = stored_tensor(tower, tower.tensors[name])
        _refuse_non_finite(stored, f"{tower.label}: tensor {name}")
        return stored

    def _taken_from(self, group: Group) -> tuple[Tower, ...]:
        base = self._plan.base
        return (base,) if group.copied and base else self._plan.towers

    def _buffer(self, elements: int) -> torch.Tensor:
        """This thread's float32 buffer: allocated once, at the largest group's size, and reused.

        CUDA copies from pinned memory seven times as fast, without the help of the thread; pinning takes long.
        """
        if not hasattr(self._local, "buffer"):
            size, pin = len(self._plan.towers) * self.largest_bytes // 4, self._device.type == "cuda"
            self._local.buffer = torch.empty(size, pin_memory=pin)
        buffer: torch.Tensor = self._local.buffer
        return buffer[:elements]

    def _read(self, group: Group, towers: tuple[Tower, ...], into: torch.Tensor) -> torch.Tensor:
        """Fill a flat float32 tensor with the group of each tower in turn, and check it."""
        position = 0
        for tower in towers:
            for name in group.names:
                count = prod(self._plan.shapes[name])
                part = into[position : position + count]
                dtype = TORCH_DTYPES[tower.tensors[name].dtype]
                stored = part if dtype == torch.float32 else torch.empty(count, dtype=dtype)
                tower.read_into(name, bytes_of(stored))
                if stored is not part:
                    part.copy_(stored)
                _refuse_non_finite(part, f"{tower.label}: tensor {tower.tensors[name].name}")
                position += count
        return into


def other_projections(plan: Plan) -> list[str]:
    """Labels of the sources that carry another visual projection than the base's, which a whole CLIPModel gets."""
    if plan.parts is None or plan.base is None:
        return []
    own = stored_tensor(plan.base, plan.parts.tensors[PROJECTION])

    def same(tower: Tower, spec: TensorSpec) -> bool:
        if spec.shape != tuple(own.shape) or spec.dtype not in TORCH_DTYPES:
            return False
        theirs = stored_tensor(tower, spec)
        # Either may have been rounded to the other's dtype.
        return any(torch.equal(own.to(dtype), theirs.to(dtype)) for dtype in (own.dtype, theirs.dtype))

    found = [(tower, tower.projection) for tower in plan.towers]
    return [tower.label for tower, spec in found if spec and not same(tower, spec)]


def stored_tensor(tower: Tower, spec: TensorSpec) -> torch.Tensor:
    """A tensor as a file stores it."""
    out = torch.empty(spec.shape, dtype=TORCH_DTYPES[spec.dtype])
    tower.read_stored(spec, bytes_of(out))
    return out


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """A contiguous CPU tensor's own memory, writable."""
    flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def all_finite(values: torch.Tensor) -> bool:
    """Whether there is no NaN and no Inf."""
    # A finite sum proves finite terms, and is several times cheaper than looking at each.
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def _refuse_non_finite(values: torch.Tensor, where: str) -> None:
    if all_finite(values):
        return
    bad = int((~torch.isfinite(values)).sum())
    raise NonFiniteError(
        f"{where} holds NaN or Inf ({bad:,} of {values.numel():,} values).",
        hint="Leave that source out, or name an earlier revision of it: user/name@revision.",
    )
