"""Towers of one architecture, or a table of every difference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from towers import TINY, weights, write_tower

import hfcart
from hfcart.errors import MismatchError


def test_every_difference_is_in_one_table(tmp_path: Path) -> None:
    good = [write_tower(tmp_path / f"g{i}", i) for i in (1, 2)]
    heads = write_tower(tmp_path / "heads", 3, {**TINY, "num_attention_heads": 4})
    missing, extra, shape, integer = (write_tower(tmp_path / n, 4) for n in ("missing", "extra", "shape", "integer"))
    norm, fc1 = "vision_model.post_layernorm.bias", "vision_model.encoder.layers.{}.mlp.fc1.weight"
    tensors = weights(4)
    save_file({k: v for k, v in tensors.items() if k != norm}, missing / "model.safetensors")
    save_file({**tensors, "vision_model.adapter": torch.zeros(3)}, extra / "model.safetensors")
    wrong = {fc1.format(i): torch.zeros(64, 16) for i in (0, 1)}
    save_file({**tensors, **wrong}, shape / "model.safetensors")
    save_file({**tensors, norm: torch.zeros(32, dtype=torch.int32)}, integer / "model.safetensors")
    sources = [*good, heads, missing, extra, shape, integer]
    with pytest.raises(MismatchError) as caught:
        hfcart.merge([str(s) for s in sources], out=str(tmp_path / "m"))
    assert sorted(caught.value.rows) == [
        ("extra", "vision_model.adapter", "no such tensor", "F32 [3]"),
        ("heads", "config.json: num_attention_heads", "2", "4"),
        ("integer", norm, "F32, F16 or BF16", "I32"),
        ("missing", norm, "float [32]", "missing"),
        ("shape", fc1.format("{0-1}"), "float [64, 32]", "F32 [64, 16]"),
    ]
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_act", "gelu"), ("layer_norm_eps", 1e-6), ("image_size", 24), ("num_hidden_layers", 3)]
)
def test_configs_must_agree_where_shapes_do_not_tell(tmp_path: Path, field: str, value: object) -> None:
    sources = [write_tower(tmp_path / f"g{i}", i) for i in (1, 2)]
    odd = write_tower(tmp_path / "odd", 3, {**TINY, field: value})
    with pytest.raises(MismatchError) as caught:
        hfcart.merge([str(s) for s in (*sources, odd)], out=str(tmp_path / "m"))
    assert ("odd", f"config.json: {field}", str(TINY[field]), str(value)) in caught.value.rows


def test_a_base_must_fit_too(four: list[Path], tmp_path: Path) -> None:
    base = write_tower(tmp_path / "base", 0, {**TINY, "hidden_act": "gelu"})
    with pytest.raises(MismatchError) as caught:
        hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"), base=str(base))
    assert caught.value.rows == [("base (base)", "config.json: hidden_act", "quick_gelu", "gelu")]
