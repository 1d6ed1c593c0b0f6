"""Every source's statistics on its own task: from the cache, or gathered now, one tower in memory at a time."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from hfcart.clip.tensor_names import PROJECTION, Group
from hfcart.engine.plan import Plan, Statistics
from hfcart.errors import SourceError
from hfcart.learning.statistics import _fisher, _gram
from hfcart.learning.statistics._gather_front import gather_front
from hfcart.learning.statistics._images import (
    batches,
    broken_at,
    label_of,
    nothing_of,
    open_splits,
    source_data,
    unreadable,
)
from hfcart.learning.statistics._store import Stored, open_stored, place, write
from hfcart.progress import Progress
from hfcart.records import SourceData
from hfcart.sources.preprocessor import clip_default, read_preprocessor
from hfcart.sources.towers import Tower
from hfcart.system.device import full_float32, one_blas_thread
from hfcart.system.environment import current_environment, fingerprint
from hfcart.tasks.data import Split
from hfcart.zero_shot.heads import Base, as_base, check_architecture, make_head
from hfcart.zero_shot.loaded_tower import running

_VERSION = 2  # of the numbers: raised when the same inputs would give others


@dataclass(frozen=True)
class Gathered:
    """The statistics of every source, in the towers' order; slices of them are read as they are needed.

    Attributes:
        kind: fisher or gram.
        data: what each was gathered on.
        known: what a rule takes beside the slices.
    """

    kind: str
    data: tuple[SourceData, ...]
    known: dict[str, Any]
    _stored: tuple[Stored, ...]
    _shapes: dict[str, tuple[int, ...]]

    def of(self, group: Group, device: torch.device) -> dict[str, Tensor]:
        """The slices for a group, by the keyword that a rule takes them by."""
        if self.kind == "fisher":
            names = group.names
        elif group.matrix:  # q, k and v have one Gram matrix, fused or not
            names = (_gram.stored_under(group.key),)
        else:
            return {}
        shapes = [self._shapes[name] for name in names]
        shape = shapes[0] if len(shapes) == 1 else (sum(s[0] for s in shapes), *shapes[0][1:])
        out = torch.empty(len(self._stored), *shape)
        for row, stored in zip(out.view(len(out), -1), self._stored, strict=True):
            for name, part in zip(names, row.split([prod(s) for s in shapes]), strict=True):
                stored.read(name, part)
        return {f"{self.kind}s": out.to(device)}

    def close(self) -> None:
        """Close every file."""
        for stored in self._stored:
            stored.close()


def gather(plan: Plan, device: torch.device, workers: int, progress: Progress) -> Statistics:
    """The statistics that the plan's method needs.

    Args:
        plan: fetched, in canonical order, with a task for each source.
        device: where the towers run.
        workers: threads; does not change a bit.
        progress: told of each tower.

    Raises:
        UsageError: a task names no train split.
        SourceError: a dataset is not what it should be, or not one image of a sample can be decoded.
        NonFiniteError: a tower gives NaN or Inf.
        OutputError: the cache cannot be written.
    """
    if plan.method.through_merged:
        return gather_front(plan, device, workers, progress)
    work = _Gathering(plan, device, workers, progress)
    stored: list[Stored] = []
    try:
        splits = open_splits(plan, progress)
        for tower, split in zip(plan.towers, splits, strict=True):
            stored.append(work.statistics(tower, split))
        data = tuple(
            source_data(tower, split, work.kind, found.images, found.undecodable, found.sha256)
            for tower, split, found in zip(plan.towers, splits, stored, strict=True)
        )
    except BaseException:
        for found in stored:
            found.close()
        raise
    known = {"norms": [found.norm for found in stored]} if work.kind == "fisher" else {}
    return Gathered(work.kind, data, known, tuple(stored), work.shapes)


class _Gathering:
    """What all towers share."""

    def __init__(self, plan: Plan, device: torch.device, workers: int, progress: Progress) -> None:
        assert plan.method.statistics is not None
        self.plan, self.device, self.workers, self.progress = plan, device, workers, progress
        self.kind: str = plan.method.statistics
        self.examples, self.seed = plan.settings["examples"], plan.settings["seed"]
        self.base: Base | None = None
        tower_shapes = {name: plan.shapes[name] for g in plan.groups if not g.copied for name in g.names}
        self.shapes = _gram.gram_shapes(tower_shapes)
        if plan.method.heads:
            assert plan.base is not None
            self.base = as_base(plan.base)
            check_architecture(plan.towers[0].label, plan.towers[0].architecture, self.base)
            self.shapes = {**tower_shapes, PROJECTION: tuple(self.base.projection.shape)}

    def statistics(self, tower: Tower, split: Split) -> Stored:
        """From the cache, else gathered and written there."""
        head = make_head(self.base, split.task, self.progress) if self.base else None
        fields = read_preprocessor(tower.describing, tower.architecture.image_size)
        fields = fields or (self.base.preprocessor if self.base else clip_default(tower.architecture.image_size))
        decides: list[Any] = [_VERSION, self.kind, tower.source.sha256, fields, self.examples, self.seed]
        decides += [split.task.sha256, dataclasses.asdict(split.dataset), dataclasses.asdict(tower.architecture)]
        if self.base and head is not None:
            decides += [self.base.source.sha256, self.base.logit_scale, _digest(head), _digest(self.base.projection)]
        path = place(self.kind, fingerprint(current_environment(self.device), *decides))
        found = open_stored(path, self.shapes)
        if found is None:
            self._gather(tower, split, fields, head, path)
            found = open_stored(path, self.shapes)
        if found is None:
            raise unreadable(tower)
        if found.undecodable:
            self.progress.warn(split.left_out(found.undecodable))
        return found

    def _gather(self, tower: Tower, split: Split, fields: dict[str, Any], head: Tensor | None, path: Any) -> None:  # noqa: ANN401
        model = torch.nn.Module.to(running(tower), self.device)
        totals = {name: torch.zeros(shape, device=self.device) for name, shape in self.shapes.items()}
        tokens = (tower.architecture.image_size // tower.architecture.patch_size) ** 2 + 1
        size = max(1, (_fisher.TOKENS if self.kind == "fisher" else _gram.TOKENS) // tokens)
        draws = torch.rand(len(split), generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        images = undecodable = 0
        self.progress.start(label_of(self.plan, tower, split), len(split), "images")
        pool = ThreadPoolExecutor(self.workers, "gather", initializer=torch.set_num_threads, initargs=(1,))
        try:
            with one_blas_thread(), full_float32(), self._adder(model, totals, pool, head) as add:
                for some in batches(split, fields, size, self.device, pool):
                    images, undecodable = images + some.images, undecodable + some.undecodable
                    if some.pixels:
                        add(some.pixels, [draws[places] for places in some.places])
                    self.progress.advance(some.images + some.undecodable)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self.progress.finish()
        if not images:
            raise nothing_of(tower, split, undecodable)
        self._write(tower, totals, images, undecodable, path)

    def _adder(
        self, model: torch.nn.Module, totals: dict[str, Tensor], pool: ThreadPoolExecutor, head: Tensor | None
    ) -> AbstractContextManager[Callable[[Sequence[Tensor], Sequence[Tensor]], None]]:
        if self.base is None or head is None:
            return _gram.grams(model, totals, pool)
        return _fisher.fishers(
            model,
            totals,
            pool,
            head=head.to(self.device),
            projection=self.base.projection.to(self.device),
            scale=self.base.logit_scale,
        )

    def _write(self, tower: Tower, totals: dict[str, Tensor], images: int, undecodable: int, path: Any) -> None:  # noqa: ANN401
        norm = 0.0
        for name, total in _in_order(totals):
            if self.kind == "fisher":
                total /= images  # a mean over examples; Gram matrices are sums, as their paper has them
            if not bool(torch.isfinite(total).all()):
                raise broken_at(tower, name)
            if name != PROJECTION:
                norm += float(total.cpu().double().square().sum())
        if self.kind == "fisher" and norm == 0.0:
            raise SourceError(
                f"The Fisher information of {tower.label} is zero: no parameter changes what it predicts.",
                hint="Give more images with --examples, or merge without it.",
            )
        cpu = {name: total.cpu() for name, total in totals.items()}
        write(path, cpu, images=images, undecodable=undecodable, norm=norm**0.5)


def _in_order(totals: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name in sorted(totals):
        yield name, totals[name]


def _digest(tensor: Tensor) -> str:
    values: Any = tensor.detach().cpu().contiguous().numpy()
    return hashlib.sha256(values.tobytes()).hexdigest()
