"""Adapters at several ranks: the average of the towers, and for each task its own tower's part of it.

θ̄ + SVD_k(θ_t − θ̄) for the task's own t (arXiv 2412.12153, Eq. 5), and what else an adapter carries: its tower's own
biases, norms and embeddings. Each tower's matrices are decomposed once, to the largest rank; a point is a product of
the first k columns of two factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfcart.clip.tensor_names import Group
from hfcart.engine.grid import Grid, Setting, Shapes, Stored
from hfcart.maths.low_rank import rank_of
from hfcart.methods import function
from hfcart.sources.preprocessor import PreprocessorError, read_preprocessor
from hfcart.zero_shot.loaded_tower import read_tensor


@dataclass(frozen=True)
class AdapterGrid(Grid):
    """The average with an adapter for each task. Its points end with the towers themselves, the rank after the last.

    Attributes:
        own: for each task the place of the tower that was fine-tuned on it, in the plan's order.
        carry_all: whether an adapter carries its tower's own biases, norms and embeddings; else the average's stay.
    """

    own: tuple[int, ...]
    carry_all: bool

    @property
    def points(self) -> list[Setting]:
        """The average alone, every rank, then the task's own tower."""
        return [(0, 0.0), *((i, 1.0) for i in range(len(self.ranks) + 1))]

    @property
    def decides(self) -> list[Any]:
        """As for every grid, and which tower is whose."""
        return [*super().decides, "adapters", self.own, self.carry_all]

    @property
    def alike(self) -> bool:
        """Never: each task has an adapter of its own."""
        return False

    def name(self, point: Setting) -> str:
        """What a point is called in messages."""
        i, scale = point
        if not scale:
            return "the average"
        return "a task's own tower" if i == len(self.ranks) else f"the adapter of rank {self.ranks[i]}"

    def preprocessor(self, point: Setting, task: int) -> dict[str, Any] | None:
        """A task's own tower has its own image preprocessing."""
        if point != self.points[-1]:
            return None
        try:
            return read_preprocessor(self.plan.towers[self.own[task]].store, self.plan.architecture.image_size)
        except PreprocessorError:  # it was said before that what it states is passed over
            return None

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many numbers an adapter of each rank holds."""
        carried = sum(self.plan.group_elements(g) for g in self.plan.groups if not g.matrix) if self.carry_all else 0
        found = []
        for rank in self.ranks:
            matrices = [(group, rank_of(rank, *self.shape(group))) for group in self.plan.groups if group.matrix]
            factors = sum(k * sum(self.plan.shapes[name]) for group, k in matrices for name in group.names)
            found.append(factors + carried)
        return tuple(found)

    def slots(self, group: Group) -> Shapes:
        """Two factors for each tower, of the matrices."""
        if not group.matrix:
            return {}
        m, n = self.shape(group)
        most = max(1, *(self._cut(i, group) for i in range(len(self.ranks))))
        found: Shapes = {}
        for t in range(len(self.plan.towers)):
            found |= {f"left{t}.{group.key}": (m, most), f"right{t}.{group.key}": (n, most)}
        return found

    def parts(
        self, group: Group, thetas: Tensor, base: Tensor | None, made: Callable[[Group, Tensor, Tensor | None], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The average, and the factors of each θ_t − θ̄."""
        slots = self.slots(group)
        if not slots:
            return made(group, thetas, base), {}
        adaptive = self.plan.method.adaptive
        assert adaptive is not None  # of CART
        found = function(adaptive.parts)(thetas, rank=next(iter(slots.values()))[1])
        factors = (factor for pair in zip(found.left, found.right, strict=True) for factor in pair)
        return found.anchor, dict(zip(slots, factors, strict=True))

    def tensors(
        self, group: Group, stored: Stored, points: Sequence[Setting], task: int, device: torch.device
    ) -> Iterator[Tensor]:
        """The average; θ̄ + SVD_k(θ_t − θ̄), or what the average has where it has no adapter; θ_t."""
        place, last = self.own[task], len(self.ranks)
        anchor = stored.read(f"anchor.{group.key}")
        theirs = self._theirs(group, place) if self.reverse or not group.matrix or (last, 1.0) in points else anchor
        adapted = [i for i, scale in points if scale and i < last]
        left = right = torch.empty(0)
        if group.matrix and adapted:
            left, right = (stored.read(f"{side}{place}.{group.key}").to(device) for side in ("left", "right"))
        for i, scale in points:
            if not scale or i == last:
                yield theirs if scale else anchor
            elif not group.matrix:
                yield theirs if self.carry_all else anchor
            else:
                cut = self._cut(i, group)
                product = (left[:, :cut] @ right[:, :cut].T).cpu()
                # The lowest k are what the top full − k leave.
                yield theirs - product if self.reverse else anchor + product

    def _cut(self, i: int, group: Group) -> int:
        """How many of the top directions a rank is made from."""
        shape = self.shape(group)
        k = rank_of(self.ranks[i], *shape)
        return min(shape) - k if self.reverse else k

    def _theirs(self, group: Group, place: int) -> Tensor:
        tower = self.plan.towers[place]
        parts = [read_tensor(tower, tower.tensors[name]) for name in group.names]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
