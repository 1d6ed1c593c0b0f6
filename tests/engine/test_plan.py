"""What is known before a byte of weights is fetched: the output's dtype and tensors, and what cannot be done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from merging import merged
from towers import weights, write_tower

import hfcart
from hfcart.errors import (
    UsageError,
)


@pytest.mark.parametrize(
    ("dtypes", "asked", "written"),
    [
        (["float16", "float16"], None, "float16"),
        (["bfloat16", "float16"], None, "float32"),
        (["bfloat16", "bfloat16"], None, "bfloat16"),
        (["float16", "float32"], None, "float32"),
        (["float32", "float32"], "bfloat16", "bfloat16"),
    ],
)
def test_output_dtype(tmp_path: Path, dtypes: list[str], asked: str | None, written: str) -> None:
    sources = [write_tower(tmp_path / f"s{i}", i + 1, dtype=getattr(torch, d)) for i, d in enumerate(dtypes)]
    found = merged(sources, tmp_path / "m", dtype=asked)
    assert {t.dtype for t in found.values()} == {getattr(torch, written)}
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == written


def test_projection_is_kept_only_on_request(tmp_path: Path) -> None:
    sources = [write_tower(tmp_path / f"s{i}", i, form="full") for i in (1, 2)]
    assert "visual_projection.weight" not in merged(sources, tmp_path / "without")
    found = merged(sources, tmp_path / "with", with_projection=True)
    mean = torch.stack([weights(i, projection=True)["visual_projection.weight"].double() for i in (1, 2)]).mean(0)
    assert torch.equal(found["visual_projection.weight"], mean.float())
    written = json.loads((tmp_path / "with" / "config.json").read_text())
    assert written["architectures"] == ["CLIPVisionModelWithProjection"]


@pytest.mark.parametrize(
    ("rank", "message"), [(0, "at least 1"), (-3, "at least 1"), (1.5, "fraction"), (33, "32 singular directions")]
)
def test_rank_out_of_range(four: list[Path], tmp_path: Path, rank: float | int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"), rank=rank)


def test_a_base_is_needed_and_unknown(four: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs the base model"):
        hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"), method="task_arithmetic")
