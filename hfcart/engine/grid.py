"""The points of a sweep: towers taken apart once, and every point put together again from what then lies on disk.

A method that is anchor + λ · update(k) is taken apart to the largest rank: the anchor and one update a rank are kept,
and a point is one multiplication and one addition away. One that adds λ times something to the base is run once, at 1.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hfcart.clip.tensor_names import Group
from hfcart.engine.loop import workers
from hfcart.engine.merging import GroupRules, whole_tower_facts
from hfcart.engine.plan import Plan
from hfcart.engine.reading import GroupReader, Held
from hfcart.engine.sharing import SharedWorkers
from hfcart.engine.writing import GroupWriter
from hfcart.formats.shard_layout import Layout, lay_out
from hfcart.maths.moments import double_home
from hfcart.methods import function, keywords_of
from hfcart.progress import Progress
from hfcart.system.device import Machine, full_float32, one_blas_thread
from hfcart.system.processes import Team
from hfcart.system.tensor_files import TensorFiles

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

Setting = tuple[int, float]  # place of the rank among the grid's (1 and 1.0 are equal, and different ranks), and scale
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Grid(ABC):
    """What is measured, fixed before the work.

    Attributes:
        plan: the towers and the method.
        ranks: as in the recipe, () for a method without one.
        scales: values of λ.
        reverse: whether the lowest singular directions are kept.
    """

    plan: Plan
    ranks: tuple[int | float, ...]
    scales: tuple[float, ...]
    reverse: bool

    @property
    def points(self) -> list[Setting]:
        """The anchor alone first, then every rank (by its place) with every scale."""
        return [(0, 0.0), *((i, scale) for i in range(max(1, len(self.ranks))) for scale in self.scales)]

    @property
    def decides(self) -> list[Any]:
        """What decides the points beside the plan and the towers, as JSON holds it."""
        return [self.ranks, self.scales, self.reverse]

    @property
    def alike(self) -> bool:
        """Whether a point is the same tower for every task."""
        return True

    def name(self, point: Setting) -> str:
        """What a point is called in messages."""
        return f"rank {self.ranks[point[0]] if self.ranks else 'all'}, scale {point[1]}"

    def preprocessor(self, point: Setting, task: int) -> dict[str, Any] | None:
        """The image preprocessing of a point, where it is not that of every merge of these towers."""
        return None

    @abstractmethod
    def slots(self, group: Group) -> Shapes:
        """What is kept of a group beside its anchor: name -> shape."""

    @abstractmethod
    def parts(
        self, group: Group, thetas: Tensor, base: Tensor | None, made: Callable[[Group, Tensor, Tensor | None], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A group taken apart: its anchor, and what `slots` names; `made` is what the method makes of it at scale 1."""

    @abstractmethod
    def tensors(
        self, group: Group, stored: Stored, points: Sequence[Setting], task: int, device: torch.device
    ) -> Iterator[Tensor]:
        """A group as it is at each of these points, for the task in that place."""

    def shape(self, group: Group) -> tuple[int, ...]:
        """Of a group's tensors, one below the other."""
        shapes = [self.plan.shapes[name] for name in group.names]
        return shapes[0] if len(shapes) == 1 else (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def layout(self) -> Layout:
        """Where everything that is kept lies."""
        shapes: Shapes = {}
        for group in self.plan.groups:
            shapes |= {f"anchor.{group.key}": self.shape(group), **self.slots(group)}
        return lay_out(shapes, "F32", 1 << 50)

    def towers(
        self, files: TensorFiles, points: Sequence[Setting], task: int, device: torch.device
    ) -> list[CLIPVisionModel]:
        """The tower of each of these points, for the task in that place. Products are computed on the device."""
        from hfcart.clip.models import vision_model

        stored = Stored(files, self.layout())
        made: list[dict[str, Tensor]] = [{} for _ in points]
        with one_blas_thread(), full_float32():
            for group in self.plan.groups:
                rows = [self.plan.shapes[name][0] for name in group.names]
                for tensors, whole in zip(made, self.tensors(group, stored, points, task, device), strict=True):
                    parts = torch.split(whole.cpu(), rows) if len(rows) > 1 else [whole.cpu()]
                    tensors.update(zip(group.names, parts, strict=True))
        # The model has copies of them: each point's go as soon as it stands.
        return [vision_model(self.plan.architecture, made.pop(0)) for _ in points]


@dataclass(frozen=True)
class Stored:
    """What was kept, read back."""

    files: TensorFiles
    layout: Layout

    def read(self, name: str) -> Tensor:
        """A tensor, float32, on the CPU."""
        data = bytearray(self.files.read(name))
        return torch.frombuffer(data, dtype=torch.float32).view(self.layout.slots[name].shape)


@dataclass(frozen=True)
class MergeGrid(Grid):
    """Merges by a method that is anchor + λ · update."""

    def slots(self, group: Group) -> Shapes:
        """One update a rank, for those groups to whose anchor the method adds something."""
        if self.plan.method.updates and not (group.matrix or self.plan.method.alike):
            return {}
        return {f"update{i}.{group.key}": self.shape(group) for i in range(max(1, len(self.ranks)))}

    def parts(
        self, group: Group, thetas: Tensor, base: Tensor | None, made: Callable[[Group, Tensor, Tensor | None], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The anchor, and what each rank adds to it at scale 1."""
        names = self.slots(group)
        if not names:
            return made(group, thetas, base), {}
        if not self.plan.method.updates:
            assert base is not None  # `Method.swept`
            # In float64: the update is a small difference of large numbers.
            exact = base.to(double_home(base.device), torch.float64)
            update = made(group, thetas, exact) - exact
            return base, {name: update.float() for name in names}
        apart = function(self.plan.method.updates)
        offered = {**self.plan.settings, "ranks": self.ranks, "reverse": self.reverse, "base": base}
        anchor, updates = apart(thetas, **keywords_of(apart, offered))
        return anchor, dict(zip(names, updates, strict=True))

    def tensors(
        self, group: Group, stored: Stored, points: Sequence[Setting], task: int, device: torch.device
    ) -> Iterator[Tensor]:
        """θ(k, λ) = anchor + λ · update_k."""
        anchor, names = stored.read(f"anchor.{group.key}"), self.slots(group)
        for i, scale in points:
            yield anchor + scale * stored.read(f"update{i}.{group.key}") if scale and names else anchor


def take_apart(grid: Grid, writer: GroupWriter, machine: Machine, progress: Progress, team: Team | None = None) -> None:
    """Take apart every group that is not yet, and keep its anchor and its parts.

    Args:
        grid: what is kept. Its towers are fetched.
        writer: of its groups, with the slots of `grid.layout()`.
        machine: where the algebra is done.
        progress: told the bytes of sources taken apart.
        team: the processes that share the groups: each of them calls this, with the same groups done.
    """
    reader = GroupReader(grid.plan, machine.device)
    rules = GroupRules(grid.plan, reader, machine.device)

    def apart(known: dict[str, Any], group: Group, held: Held) -> dict[str, Tensor]:
        made = functools.partial(rules.made, {**known, "scale": 1.0})
        anchor, parts = grid.parts(group, *held.to(machine.device), made)
        return {name: part.cpu() for name, part in {f"anchor.{group.key}": anchor, **parts}.items()}

    def work(group: Group) -> None:
        digests: dict[str, str] = {}
        with reader.held(group) as held:
            for name, part in pool.drive(apart, known, group, held).items():
                digests |= writer.write_whole(name, part)
        writer.note({"group": group.key, "sha256": digests})

    with workers(machine.workers, machine.device, reader, progress) as alone:
        pool = alone if team is None else SharedWorkers(alone, team)
        known = whole_tower_facts(rules, writer, pool)
        pool.each("Decomposing", *writer.to_do(), work)
