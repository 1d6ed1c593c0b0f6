"""How much a merge does, counted and not timed: a change that makes it do twice as much fails here.

What the host waits for on a device is counted in test_devices.
"""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path

import pytest
from running import ended
from towers import TINY, shapes, write_tower
from work import counted

import hfcart
from hfcart.clip.tensor_names import is_matrix
from hfcart.maths.low_rank import BLOCK, GUARD, rank_of

RANK = 0.08


def multiplications(m: int, n: int, tasks: int) -> int:
    """Of CART on one matrix of T towers, m ≥ n, whose float32 Gram matrix is good enough."""
    k = rank_of(RANK, m, n)
    p = k + GUARD
    gram = m * sum((n - j) * min(BLOCK, n - j) for j in range(0, n, BLOCK))
    straight = n * p * p + 2 * n * p * p  # are the vectors orthogonal? the excess, and its removal
    certificate = m * n * k + 2 * n * p * k
    return tasks * (gram + straight + m * n * k + certificate) + m * n * tasks * k


@pytest.mark.parametrize(("tasks", "layers"), [(3, 1), (5, 1), (3, 2)])
def test_a_merge_does_no_more_than_it_must(tmp_path: Path, tasks: int, layers: int) -> None:
    sizes = {**TINY, "hidden_size": 160, "intermediate_size": 320, "num_hidden_layers": layers}
    sources = [write_tower(tmp_path / f"t{i}", i, sizes) for i in range(1, tasks + 1)]
    with counted() as work:
        hfcart.merge([str(s) for s in sources], out=str(tmp_path / "m"), rank=RANK)
    every = shapes(sizes)
    matrices = [(max(shape), min(shape)) for name, shape in every.items() if is_matrix(name)]
    assert work["decompositions"] == tasks * len(matrices) == tasks * 6 * layers
    spreads = tasks * tasks * sum(map(prod, every.values()))
    assert work["multiplications"] == sum(multiplications(*shape, tasks) for shape in matrices) + spreads
    stored = [(folder / "model.safetensors").stat().st_size for folder in (*sources, tmp_path / "m")]
    # The sources once for their digests and once to merge them, the output once to prove it; headers beside them.
    expected = 2 * sum(stored[:-1]) + stored[-1]
    assert expected * 0.99 < work["read"] < expected * 1.02
    assert stored[-1] <= work["written"] < stored[-1] * 1.03  # and the journal


FAULTS = """
import resource, sys
import hfcart
for folder in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    hfcart.merge([f"{folder}/t{i}" for i in (1, 2, 3)], out=f"{folder}/m")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the allocator is another")
def test_temporaries_take_no_fresh_pages(tmp_path: Path, clean_env: dict[str, str]) -> None:
    """A matrix of 4 MiB is worked on in memory that the one before had: pages for each would be five times as many."""
    for name, layers in (("first", 1), ("second", 4)):  # the first pays for imports, too
        sizes = {**TINY, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": layers}
        for i in (1, 2, 3):
            write_tower(tmp_path / name / f"t{i}", i, sizes)
    read = sum(path.stat().st_size for path in (tmp_path / "second").rglob("*.safetensors"))
    command = [sys.executable, "-c", FAULTS, str(tmp_path / "first"), str(tmp_path / "second")]
    done = ended(command, env=clean_env)
    assert int(done.stdout.split()[-1]) < read / 4096
