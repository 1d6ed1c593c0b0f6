"""Pixels are those that transformers' own processor makes."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil

from hfcart.clip.pixels import normalised, to_pixels
from hfcart.sources.preprocessor import clip_default


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resize=st.sampled_from([{"shortest_edge": 16}, {"shortest_edge": 20}, {"height": 16, "width": 16}]),
    resample=st.sampled_from([0, 2, 3]),
    crop=st.booleans(),
    seed=st.integers(0, 9),
)
def test_pixels_are_those_of_transformers(width, height, resize, resample, crop, seed):
    """Any size, either way to resize, with and without a crop larger or smaller than the image."""
    fields = clip_default(16) | {"size": resize, "resample": resample, "do_center_crop": crop}
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    options = {k: v for k, v in fields.items() if k != "image_processor_type"}
    theirs = CLIPImageProcessorPil(**options)(images=picture, return_tensors="pt")["pixel_values"]
    ours = normalised(to_pixels(picture, fields)[None], fields)
    assert ours.dtype == torch.float32 and ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=2e-6)
