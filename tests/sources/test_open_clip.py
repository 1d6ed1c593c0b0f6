"""Towers that open_clip itself wrote: what transformers loads of them computes what open_clip does."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from merging import merged
from running import HELPERS, ROOT, ended

import hfcart

LIBRARIES = ROOT / ".open-clip"  # open_clip and what it imports, where `make test` has put it


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (LIBRARIES / ".ready").is_file():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("`make .open-clip/.ready` installs open_clip.")
    folder = tmp_path_factory.mktemp("open_clip")
    command = [sys.executable, str(HELPERS / "open_clip_writer.py"), str(LIBRARIES), str(folder)]
    done = ended(command)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("source", ["o1", "whole2.pt"])
def test_a_tower_computes_what_it_did_in_open_clip(written: Path, tmp_path: Path, source: str) -> None:
    from transformers import CLIPVisionModelWithProjection

    fields = {"method": "average", "with_projection": True, "activation": "quick_gelu"}
    hfcart.merge([str(written / source)], out=str(tmp_path / "m"), **fields)
    tower = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "m").eval()
    features = torch.load(written / "features.pt", weights_only=True)
    with torch.no_grad():
        found = tower(features["images"]).image_embeds
    expected = features["1" if source == "o1" else "2"]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_safetensors_and_a_pickled_model_are_one_tower(written: Path, tmp_path: Path) -> None:
    fields = {"rank": 0.25, "activation": "quick_gelu"}
    a, b = (
        merged([written / source for source in sources], tmp_path / sources[1], **fields)
        for sources in (("o1", "o2"), ("o1", "whole2.pt"))
    )
    assert a.keys() == b.keys()
    assert all((a[name] - b[name]).norm() <= 1e-6 * a[name].norm() for name in a)  # the files' digests set the order
