"""Which preprocessing the merged tower gets, from whatever its sources hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hfcart.preprocessor import clip_default, read_preprocessor
from hfcart.stores import LocalStore


def read(folder: Path, **files: object) -> dict | None:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text)
    return read_preprocessor(LocalStore(folder), 16)


def test_a_source_that_fits(tmp_path: Path) -> None:
    own = {**clip_default(16), "image_mean": [0.5, 0.5, 0.5], "secret": "left out"}
    assert read(tmp_path, preprocessor_config=own) == {**clip_default(16), "image_mean": [0.5, 0.5, 0.5]}


def test_the_processor_config_of_transformers_5(tmp_path: Path) -> None:
    own = {"image_processor": {**clip_default(16), "resample": 2}, "processor_class": "CLIPProcessor"}
    assert read(tmp_path, processor_config=own) == {**clip_default(16), "resample": 2}


def test_the_numbers_of_old_releases(tmp_path: Path) -> None:
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 16, "crop_size": 16, "do_resize": True}
    assert read(tmp_path, preprocessor_config=old) == clip_default(16)


@pytest.mark.parametrize(
    "content",
    [
        clip_default(224),  # another tower's size
        {"crop_size": {"height": 16, "width": 8}},
        {"image_mean": [0.5, 0.5]},
        {"size": {"shortest_edge": 10**9}, "do_center_crop": False},
        {"do_resize": "yes"},
        {"size": {"evil": 3}},
        {"resample": 999},
        {"image_std": [0.5, 0.0, 0.5]},
        '{"rescale_factor": NaN}',
        '{"image_mean": [0.5, Infinity, 0.5]}',
        [],
        "{not json",
        '{"size": 16, "size": 16}',
        "null",
    ],
)
def test_what_does_not_fit_is_passed_over(tmp_path: Path, content: object) -> None:
    assert read(tmp_path, preprocessor_config=content) is None


def test_no_file_at_all(tmp_path: Path) -> None:
    assert read(tmp_path) is None
