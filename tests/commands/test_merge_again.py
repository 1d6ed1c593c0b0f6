"""The average that a merge is compared with takes of its recipe what an average can take."""

from __future__ import annotations

import pytest

from hfcart.commands.merge_again import kept_by_average
from hfcart.recipes.merge_recipe import make

SOURCES = [f"user/{name}@{40 * name}" for name in "ab"]


@pytest.mark.parametrize(
    "own",
    [
        {"method": "cart", "rank": 0.1, "scale": 2.0, "matrices": "all-2d"},
        {"method": "task_arithmetic", "lines": 0.5},
        {"method": "task_arithmetic", "svc": 1.0},
        {"method": "cart", "adapters": 0.08, "adapters_carry": "matrices"},
        {"method": "cart", "rank": 0.1, "coefficients": {"vision_model.a": [0.1, 0.2]}},
        {"method": "consensus", "tasks": ["mnist", "svhn"]},
    ],
)
def test_whatever_the_merge_was_told(own: dict) -> None:
    """Learned coefficients, LiNeS and the kinds of matrices are no part of an average, and were refused with it."""
    kept = kept_by_average({"sources": SOURCES, "qkv": "fused", "dtype": "float16", **own})
    made = make({**kept, "method": "average", "out": "x"}, "hfcart.json")
    assert (made.qkv, made.dtype, made.coefficients, made.lines) == ("fused", "float16", None, None)
    assert (made.svc, made.adapters, made.adapters_carry) == (None, None, "all")
