"""Reading groups: every form and dtype as float32, nothing that is not finite, never a whole tower in memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import torch
from merging import Listener, merged, raw
from plans import fetched_plan
from running import LIMIT
from safetensors.torch import load_file, save_file
from towers import TINY, config, weights, write_tower

import hfcart
from hfcart.engine.reading import GroupReader
from hfcart.errors import NonFiniteError
from hfcart.progress import Progress


@pytest.mark.parametrize("qkv", ["split", "fused"])
def test_a_stack_is_the_group_of_every_tower_in_float32(tmp_path: Path, qkv: str) -> None:
    sources = [write_tower(tmp_path / f"t{i}", i, dtype=torch.float16) for i in (1, 2)]
    base = write_tower(tmp_path / "base", 0)
    plan = fetched_plan(sources, base=str(base), method="task_arithmetic", qkv=qkv)
    with closing(plan):
        reader = GroupReader(plan, torch.device("cpu"))
        places = set()
        for group in plan.groups:
            thetas, zero = reader.read(group)
            places.add(thetas.data_ptr())
            names = group.names
            stored = [torch.cat([weights(i)[name].half() for name in names]) for i in (1, 2)]
            assert thetas.dtype == torch.float32 and torch.equal(thetas, torch.stack(stored).float())
            assert zero is not None and torch.equal(zero, torch.cat([weights(0)[name] for name in names]))
            assert reader.shape(group) == zero.shape and reader.bytes_read(group) == 2 * 2 * zero.numel()
        assert len(places) == 1  # one buffer, again and again
        with ThreadPoolExecutor(1) as pool:  # and another for each thread
            assert pool.submit(reader.read, plan.groups[0]).result()[0].data_ptr() not in places


def test_all_forms_and_dtypes_in_one_merge(tmp_path: Path) -> None:
    plain = [write_tower(tmp_path / f"p{i}", i) for i in (1, 2, 3, 4, 5)]
    mixed = [
        write_tower(tmp_path / "flat", 1, form="flat"),
        write_tower(tmp_path / "full", 2, form="full"),
        write_tower(tmp_path / "shards", 3, shards=3, form="flat"),
        write_tower(tmp_path / "fullshards", 4, shards=2, form="full"),
        tmp_path / "pickled",
    ]
    mixed[-1].mkdir()
    (mixed[-1] / "config.json").write_text(json.dumps(config()))
    torch.save(weights(5), mixed[-1] / "pytorch_model.bin")
    listener = Listener()
    hfcart.merge([str(s) for s in mixed], out=str(tmp_path / "m"), method="average", progress=listener)
    assert raw(load_file(tmp_path / "m" / "model.safetensors")) == raw(merged(plain, tmp_path / "a", method="average"))
    assert [n for n in listener.notes if n.startswith("pickled has no safetensors: pytorch_model.bin")]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_stop_the_merge(four: list[Path], tmp_path: Path, value: float) -> None:
    name = "vision_model.encoder.layers.1.mlp.fc2.weight"
    tensors = weights(2)
    tensors[name][3, 5] = value
    save_file(tensors, four[1] / "model.safetensors")
    with pytest.raises(NonFiniteError, match=rf"t2: tensor {name} holds NaN or Inf \(1 of 2,048 values\)"):
        hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def test_values_beyond_float32_sums_are_no_nan(tmp_path: Path) -> None:
    sources = [write_tower(tmp_path / f"s{i}", i) for i in (1, 2)]
    for i, source in enumerate(sources):
        tensors = weights(i + 1)
        tensors["vision_model.pre_layrnorm.weight"][:] = 3e38
        save_file(tensors, source / "model.safetensors")
    found = merged(sources, tmp_path / "m")
    assert bool((found["vision_model.pre_layrnorm.weight"] == 3e38).all())


def test_no_file_is_ever_mapped(four: list[Path], tmp_path: Path) -> None:
    """Mapped pages count as resident memory, and would grow with the files."""
    mapped: list[str] = []

    class Watch(Progress):
        def advance(self, amount: int) -> None:
            mapped.extend(line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line)

    hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"), progress=Watch())
    assert mapped == []


def test_memory_does_not_grow_with_the_model(tmp_path: Path, clean_env: dict[str, str]) -> None:
    """Six times the layers, so 190 MB more of sources and 60 MB more of output: the same peak."""
    peaks = []
    for layers in (4, 24):
        folder = tmp_path / str(layers)
        sizes = {**TINY, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": layers}
        sources = [str(write_tower(folder / f"t{i}", i, sizes)) for i in (1, 2, 3)]
        command = [sys.executable, "-m", "hfcart", "merge", *sources, "--out", str(folder / "m"), "--quiet"]
        process = subprocess.Popen([sys.executable, "-c", WAIT, *command], env=clean_env, stdout=subprocess.PIPE)
        out, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == 0
        peaks.append(int(out.split()[-1]) * 1024)
        shutil.rmtree(folder)
    assert peaks[1] - peaks[0] < 30e6, peaks


WAIT = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
