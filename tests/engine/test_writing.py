"""Writing groups: cast once, each tensor in its shard, and read back as it was written."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path

import pytest
import torch
from merging import merged, raw
from plans import fetched_plan
from safetensors.torch import load_file

import hfcart
from hfcart.engine.writing import GroupWriter
from hfcart.errors import NonFiniteError, VerifyError
from hfcart.progress import Progress
from hfcart.system.tensor_files import TensorFiles
from hfcart.system.work_folder import WorkFolder


def test_a_group_is_cast_once_cut_into_its_tensors_and_known_again(four: list[Path], tmp_path: Path) -> None:
    plan = fetched_plan(four, qkv="fused", dtype="bfloat16", max_shard_size="20KB")
    group = next(group for group in plan.groups if len(group.names) == 3)
    value = torch.randn(96, 32, generator=torch.Generator().manual_seed(0))
    with closing(plan), WorkFolder(tmp_path / "out", ("hfcart.json",), overwrite=False) as folder:
        folder.begin("fingerprint")
        with TensorFiles(folder.path, plan.layout) as tensors:
            writer = GroupWriter(plan, folder, tensors)
            assert not writer.done and writer.to_do() == (list(plan.groups), [])
            digests = writer.write(group, value)
            writer.note({"group": group.key, "sha256": digests})
            for name, part in zip(group.names, value.bfloat16().split(32), strict=True):
                assert tensors.read(name) == part.contiguous().view(torch.uint8).numpy().tobytes()
            again = GroupWriter(plan, folder, tensors)
            assert again.to_do()[1] == [group] and again.done[group.key]["sha256"] == digests
            tensors.write(group.names[1], memoryview(bytes(2 * 32 * 32)))  # what is in place is not what was noted
            assert GroupWriter(plan, folder, tensors).done == {}


def test_shards_and_their_index(four: list[Path], tmp_path: Path) -> None:
    whole = merged(four, tmp_path / "whole")
    parts = merged(four, tmp_path / "parts", max_shard_size="20KB")
    assert raw(parts) == raw(whole)
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    files = sorted(p.name for p in (tmp_path / "parts").glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    assert not (tmp_path / "parts" / "model.safetensors").exists()


def test_overflow_of_the_output_dtype_is_named(four: list[Path], tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="beyond what float16 holds"):
        hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"), dtype="float16", scale=1e7)


def test_what_is_read_back_must_be_what_was_written(four: list[Path], tmp_path: Path) -> None:
    class Corrupt(Progress):
        """A disk that loses a byte between the writing and the reading back."""

        def step(self, text: str) -> None:
            if text == "Reading the output back":
                with (tmp_path / "m.partial" / "model.safetensors").open("r+b") as file:
                    file.seek(-5, os.SEEK_END)
                    file.write(b"\xff")

    with pytest.raises(VerifyError, match="reads back different from what was written"):
        hfcart.merge(four, out=tmp_path / "m", progress=Corrupt())
    assert not (tmp_path / "m").exists()
    hfcart.merge(four, out=tmp_path / "m")  # the group's digest no longer fits: it is merged again
    assert raw(load_file(tmp_path / "m" / "model.safetensors")) == raw(merged(four, tmp_path / "n"))
