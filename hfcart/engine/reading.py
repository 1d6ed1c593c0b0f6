"""Groups of tensors as they are stored, read in float32: T slices at a time, never a whole tower."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import torch

from hfcart.clip.tensor_names import PROJECTION, Group
from hfcart.engine.plan import TORCH_NAME, Plan
from hfcart.engine.read_ahead import ReadAhead, ending, groups_ahead, whole_lines
from hfcart.errors import NonFiniteError
from hfcart.formats.safetensors_file import DTYPE_BYTES, TensorSpec
from hfcart.sources.towers import Tower

TORCH_DTYPES = {name: getattr(torch, torch_name) for name, torch_name in TORCH_NAME.items()}


class Held(NamedTuple):
    """A group of every tower as it was read, in this machine's memory.

    Attributes:
        thetas: task × shape, float32: memory that another group gets afterwards.
        base: of the base model, if there is one; in the same memory.
    """

    thetas: torch.Tensor
    base: torch.Tensor | None

    def to(self, device: torch.device) -> Held:
        """The same on a device; the copy of a buffer that the device reads by itself is only begun."""
        base = None if self.base is None else self.base.to(device, non_blocking=True)
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
        largest = max(plan.group_elements(group) for group in plan.groups if not group.copied)
        self.largest_bytes = 4 * largest
        self._most = whole_lines(self._count(largest))
        self._local = threading.local()
        self._memory: torch.Tensor | None = None
        self._ahead: ReadAhead | None = None

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

    @contextmanager
    def ahead(self, groups: Sequence[Group], workers: int) -> Iterator[None]:
        """For as long as this lasts, read groups before they are asked for, where that is worth its memory.

        Args:
            groups: in the order in which they are going to be asked for. What is copied is left to who asks.
            workers: threads that ask.
        """
        more = groups_ahead(self._plan, workers, self._device)
        if not more:
            yield
            return
        if self._memory is None:
            self._memory = self._empty((workers + more) * self._most)
        to_read = [group for group in groups if not group.copied]
        count = lambda group: self._count(prod(self.shape(group)))  # noqa: E731
        try:
            with ReadAhead(to_read, count, self._parts, self._memory, ending(self._plan)) as self._ahead:
                yield
        finally:
            self._ahead = None

    @contextmanager
    def held(self, group: Group) -> Iterator[Held]:
        """The group of every tower, and of the base if there is one, for as long as this lasts; not on the device yet.

        Raises:
            NonFiniteError: NaN or Inf in a source.
            concurrent.futures.CancelledError: reading ahead has ended before.
        """
        if self._ahead is None:
            yield self.read(group)
        else:
            with self._ahead.group(group) as memory:
                yield self._split(group, memory)

    def read(self, group: Group) -> Held:
        """As `held`, at once and by this thread, until it reads another."""
        memory = self._buffer()[: self._count(prod(self.shape(group)))]
        for part in self._parts(group, memory):
            for _ in part:
                pass
        return self._split(group, memory)

    def copied(self, group: Group) -> torch.Tensor:
        """A group that is copied from the base, as it is stored there. Raises as `read`."""
        (tower,), (name,) = self._taken_from(group), group.names
        stored = stored_tensor(tower, tower.tensors[name])
        _refuse_non_finite(stored, f"{tower.label}: tensor {name}")
        return stored

    def _taken_from(self, group: Group) -> tuple[Tower, ...]:
        base = self._plan.base
        return (base,) if group.copied and base else self._plan.towers

    def _buffer(self) -> torch.Tensor:
        """This thread's float32 buffer: allocated once, at the largest group's size, and reused."""
        if not hasattr(self._local, "buffer"):
            self._local.buffer = self._empty(self._most)
        buffer: torch.Tensor = self._local.buffer
        return buffer

    def _empty(self, elements: int) -> torch.Tensor:
        """CUDA copies from pinned memory seven times as fast, without the help of the thread; pinning takes long."""
        return torch.empty(elements, pin_memory=self._device.type == "cuda")

    def _count(self, elements: int) -> int:
        """Of numbers that a group takes which has so many in one tower: all towers', and the base's behind them."""
        towers = len(self._plan.towers) * elements
        return towers if self._plan.base is None else whole_lines(towers) + elements

    def _split(self, group: Group, memory: torch.Tensor) -> Held:
        """The towers and the base of a group's memory."""
        shape, tasks = self.shape(group), len(self._plan.towers)
        thetas = memory[: tasks * prod(shape)].view(tasks, *shape)
        return Held(thetas, None if self._plan.base is None else memory[-prod(shape) :].view(shape))

    def _parts(self, group: Group, memory: torch.Tensor) -> list[Iterator[None]]:
        """What fills a group's memory: a part for each tower, but one for all that are adapters of the same tower.

        Of that one, what comes over a network is kept for the next of them in the same thread.
        """
        thetas, base = self._split(group, memory)
        together: dict[int, list[tuple[Tower, torch.Tensor]]] = {}
        for tower, into in zip(self._plan.towers, thetas, strict=True):
            together.setdefault(id(tower.base or tower), []).append((tower, into.view(-1)))
        parts = [self._filling(group, pieces) for pieces in together.values()]
        if base is not None and self._plan.base is not None:
            parts.append(self._filling(group, [(self._plan.base, base.view(-1))]))
        return parts

    def _filling(self, group: Group, pieces: list[tuple[Tower, torch.Tensor]]) -> Iterator[None]:
        """Fill flat float32 tensors with the group of a tower each, and check it: a tensor at each step."""
        counts = [prod(self._plan.shapes[name]) for name in group.names]
        for tower, into in pieces:
            for name, part in zip(group.names, torch.split(into, counts), strict=True):
                dtype = TORCH_DTYPES[tower.tensors[name].dtype]
                stored = part if dtype == torch.float32 else torch.empty(len(part), dtype=dtype)
                tower.read_into(name, bytes_of(stored))
                if stored is not part:
                    part.copy_(stored)
                _refuse_non_finite(part, f"{tower.label}: tensor {tower.tensors[name].name}")
                yield


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
