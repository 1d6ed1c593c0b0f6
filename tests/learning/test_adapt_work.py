"""What a step of an adaptation does, counted and not timed, and that images are decoded meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from clips import image, png
from towers import write_tower
from work import counted

from hfcart.engine.plan import Plan
from hfcart.engine.planning import make_plan
from hfcart.engine.writing import GroupWriter
from hfcart.learning.adapt.parts import PartsFile, lay_out_parts, take_apart
from hfcart.learning.adapt.stacked_parts import StackedParts
from hfcart.learning.batches import AHEAD, EveryTask, Loader
from hfcart.progress import Progress
from hfcart.recipes.merge_recipe import make
from hfcart.sources.preprocessor import clip_default
from hfcart.sources.towers import fetch_all
from hfcart.system.tensor_files import TensorFiles
from hfcart.system.work_folder import WorkFolder
from hfcart.tasks.data import Example

CPU = torch.device("cpu")


@contextmanager
def taken_apart(folder: Path, **fields: Any) -> Iterator[tuple[Plan, Path]]:
    """A plan of three towers, and the file with their parts."""
    towers = [str(write_tower(folder / f"t{i}", i, delta=0.03)) for i in (1, 2, 3)]
    plan = make_plan(make({"sources": towers, "adapt": "8", **fields}), folder, Progress())
    fetch_all(plan.towers_and_base, Progress(), stream=False)
    with WorkFolder(folder / "work", (), overwrite=False) as work:
        work.begin("any")
        with TensorFiles(work.path, lay_out_parts(plan)) as tensors:
            take_apart(plan, GroupWriter(plan, work, tensors), CPU, 2, Progress())
        yield plan, work.path / "model.safetensors"


def test_factors_are_read_and_multiplied_once_each_way(tmp_path: Path) -> None:
    """Merging reads anchors and factors, inner products read the factors: no component is multiplied out."""
    with taken_apart(tmp_path, rank=3, qkv="fused") as (plan, file), PartsFile(plan, file, CPU) as parts:
        anchors = sum(prod(adapted.shape) for adapted in parts.adapted)
        factors = 3 * sum(3 * sum(adapted.shape) for adapted in parts.adapted)
        out = {name: torch.empty(plan.shapes[name]) for a in parts.adapted for name in a.group.names}
        places = [tensor.data_ptr() for tensor in out.values()]
        with counted() as merging:
            for adapted in parts.adapted:
                parts.merge(adapted, [1.0, 0.5, 2.0], [out[name] for name in adapted.group.names])
        with counted() as gradients:
            for adapted in parts.adapted:
                parts.inner(adapted, torch.ones(adapted.shape))
    assert merging["multiplications"] == gradients["multiplications"] == 3 * 3 * anchors
    assert (merging["read"], gradients["read"]) == (4 * (anchors + factors), 4 * factors)
    assert places == [tensor.data_ptr() for tensor in out.values()]


@pytest.mark.parametrize("room", [0, 40_000, 1 << 40])
@pytest.mark.parametrize("fields", [{"rank": 3, "qkv": "fused"}, {"adapt_ranks": 1.0}, {"method": "ties"}], ids=str)
def test_side_by_side_parts_give_what_they_give_one_by_one(tmp_path: Path, fields: dict[str, Any], room: int) -> None:
    """Whether there is room for none of them, for some or for all."""
    base = {"base": str(write_tower(tmp_path / "t0", 0))} if "method" in fields else {}
    generator = torch.Generator().manual_seed(0)
    with (
        taken_apart(tmp_path, **fields, **base) as (plan, file),
        PartsFile(plan, file, CPU) as parts,
        StackedParts(plan, file, CPU, budget=room) as stacked,
        torch.no_grad(),
    ):
        for _ in range(2):  # the second time from what has stayed
            kept = [
                torch.rand(3, adapted.rank or 0, generator=generator) > 0.5 if adapted.chosen else None
                for adapted in parts.adapted
            ]
            names = [adapted.group.names for adapted in parts.adapted]
            one, other = (
                [[torch.empty(plan.shapes[n]).requires_grad_() for n in each] for each in names] for _ in "ab"
            )
            values = torch.randn(3, len(names), generator=generator, dtype=torch.float64)
            parts.merge_all(values, one, kept)
            stacked.merge_all(values, other, kept)
            for a, b in zip([t for each in one for t in each], [t for each in other for t in each], strict=True):
                assert torch.allclose(a, b, atol=1e-6)
            for adapted in parts.adapted:
                gradient = torch.randn(adapted.shape, generator=generator)
                assert torch.allclose(parts.inner(adapted, gradient), stacked.inner(adapted, gradient), atol=1e-4)
                if adapted.chosen:
                    assert torch.allclose(parts.along(adapted, gradient), stacked.along(adapted, gradient), atol=1e-4)


class _Watched:
    """A split that tells which of its images are read."""

    def __init__(self, count: int) -> None:
        self.read = [threading.Event() for _ in range(count)]

    def __getitem__(self, index: int) -> Example:
        self.read[index].set()
        return Example(index, png(image(0, index)), 0)


def test_images_are_decoded_while_a_step_learns() -> None:
    """Whoever has one step's images finds the next ones' being read without asking for them, and no more than those."""
    size, steps = 4, 6
    split: Any = _Watched(size * steps)
    order = EveryTask([size * steps], seed=0)
    fields = {"preprocessor": clip_default(16), "side": 16, "batch_size": size, "process": 0, "processes": 1}
    batches = Loader(order, [split], workers=2, **fields).batches(0, steps)
    assert bool(next(batches).usable.all())
    for step in range(AHEAD + 1):
        assert all(split.read[index].wait(60) for _, index in order.batch(step, size)), step
    later = [index for step in range(AHEAD + 1, steps) for _, index in order.batch(step, size)]
    assert not any(split.read[index].is_set() for index in later)
    batches.close()
