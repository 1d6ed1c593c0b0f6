"""From what was typed to a tower: a folder or a repo, what makes it one, and its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from merging import merged, raw
from safetensors.torch import save_file
from towers import config, weights, write_tower

import hfcart
from hfcart.errors import CorruptFileError, HfcartError, NotATowerError


def test_a_folder_that_is_no_tower(tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    folder.mkdir()
    with pytest.raises(NotATowerError, match="bert holds no weights.* found nothing"):
        hfcart.merge([str(folder)], out=str(tmp_path / "m"))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(NotATowerError, match="model_type 'bert'"):
        hfcart.merge([str(folder)], out=str(tmp_path / "m"))
    (folder / "config.json").write_text(json.dumps(config()))
    with pytest.raises(NotATowerError, match="bert holds no weights.* found config.json"):
        hfcart.merge([str(folder)], out=str(tmp_path / "m"))
    (folder / "config.json").write_text('{"model_type": "clip", "model_type": "clip"}')
    with pytest.raises(CorruptFileError, match="occurs twice"):
        hfcart.merge([str(folder)], out=str(tmp_path / "m"))
    (folder / "config.json").unlink()
    save_file({"bert.encoder.weight": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(NotATowerError, match="bert holds no config.json, and its weights are no CLIP"):
        hfcart.merge([str(folder)], out=str(tmp_path / "m"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_size", -1), ("hidden_size", 33), ("num_hidden_layers", 10**9), ("hidden_act", ["x"]), ("patch_size", 0.5),
     ("layer_norm_eps", "1"), ("image_size", True), ("patch_size", 17)],
)  # fmt: skip
def test_hostile_configs(tmp_path: Path, field: str, value: object) -> None:
    folder = write_tower(tmp_path / "odd", 1)
    (folder / "config.json").write_text(json.dumps({**config(), field: value}))
    with pytest.raises(NotATowerError, match="odd: config.json has"):
        hfcart.merge([str(folder)], out=str(tmp_path / "m"))


@pytest.mark.parametrize("source", ["~nobody-here/x", "n" * 300, "a\0b", "https://example.org/user/name", "nosuch"])
def test_sources_that_are_neither_folder_nor_repo(tmp_path: Path, source: str) -> None:
    with pytest.raises(HfcartError, match="There is no folder|is no address of a Hub repo"):
        hfcart.merge([source], out=str(tmp_path / "m"))


def test_a_recorded_local_source_must_have_its_weights(four: list[Path], tmp_path: Path) -> None:
    with pytest.raises(HfcartError, match="t1 is not the tower the recipe was made with"):
        hfcart.merge([{"path": str(four[0]), "sha256": "0" * 64}], out=str(tmp_path / "m"))


def test_two_sources_with_one_pickle(tmp_path: Path) -> None:
    for name in "abcdef":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config()))
        torch.save(weights(1), tmp_path / name / "pytorch_model.bin")
    found = merged([tmp_path / name for name in "abcdef"], tmp_path / "m")
    assert raw(found) == raw(weights(1))
