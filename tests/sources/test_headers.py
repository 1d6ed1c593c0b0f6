"""Headers before weights: what is stored where, and files that do not hold what they say."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from towers import config, weights, write_tower

import hfcart
from hfcart.errors import CorruptFileError


def test_a_name_stored_twice_in_two_forms(tmp_path: Path) -> None:
    folder = write_tower(tmp_path / "twice", 1)
    tensors = weights(1)
    save_file({**tensors, "pre_layrnorm.bias": torch.zeros(32)}, folder / "model.safetensors")
    with pytest.raises(CorruptFileError, match="holds vision_model.pre_layrnorm.bias twice"):
        hfcart.merge([str(folder)], out=str(tmp_path / "m"))


def test_a_truncated_body(four: list[Path], tmp_path: Path) -> None:
    path = four[2] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptFileError, match=r"t3/model.safetensors is not a valid .*cut short"):
        hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"))


def test_a_two_gigabyte_header(four: list[Path], tmp_path: Path) -> None:
    (four[0] / "model.safetensors").write_bytes(struct.pack("<Q", 2_000_000_000) + b"{}")
    with pytest.raises(CorruptFileError, match="claims 2,000,000,000 bytes"):
        hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"))


@pytest.mark.parametrize("change", ["ghost", "elsewhere", "missing"])
def test_an_index_must_fit_its_shards(tmp_path: Path, change: str) -> None:
    folder = write_tower(tmp_path / "s", 1, shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = sorted(index["weight_map"])[0]
    if change == "ghost":
        index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    elif change == "elsewhere":
        index["weight_map"][name] = "model-00002-of-00002.safetensors"
    else:
        del index["weight_map"][name]
    path.write_text(json.dumps(index))
    with pytest.raises(CorruptFileError, match="does not fit its shards"):
        hfcart.merge([folder], out=tmp_path / "m")


def test_pickles_with_code_are_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "pwned"),))

    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config()))
    torch.save({"a": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(CorruptFileError, match=r"evil/pytorch_model.bin cannot be loaded as plain weights"):
        hfcart.merge([str(folder)], out=str(tmp_path / "m"))
    torch.save([1, 2], folder / "pytorch_model.bin")
    with pytest.raises(CorruptFileError, match="not a state dict"):
        hfcart.merge([str(folder)], out=str(tmp_path / "m"))
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("cut", [1, 40, 300, 2000])
def test_a_pickle_cut_short(tmp_path: Path, cut: int) -> None:
    folder = tmp_path / "cut"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config()))
    torch.save(weights(1), folder / "pytorch_model.bin")
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(data[:-cut])
    with pytest.raises(CorruptFileError, match="cut/pytorch_model.bin cannot be loaded"):
        hfcart.merge([folder], out=tmp_path / "m")
