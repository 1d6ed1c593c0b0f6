"""What is known before a byte of weights is fetched: the output's dtype and tensors, and what cannot be done."""

from __future__ import annotations

import dataclasses
import json
import math
from contextlib import closing
from pathlib import Path

import pytest
import torch
from merging import merged
from plans import fetched_plan
from towers import shapes, weights, write_tower

import hfcart
from hfcart.errors import UsageError


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


def test_a_plan_is_replaced_and_values_stay_with_their_towers(four: list[Path], tmp_path: Path) -> None:
    base = str(write_tower(tmp_path / "base", 0))
    values = (0.1, 0.2, 0.3, 0.4)
    plan = fetched_plan(four, method="consensus", base=base, threshold=values)
    with closing(plan), pytest.raises(dataclasses.FrozenInstanceError):
        plan.dtype = "F16"  # type: ignore[misc]
    told = dict(zip([tower.label for tower in plan.towers], values, strict=True))
    ordered = plan.in_canonical_order()
    labels = [tower.label for tower in ordered.towers]
    assert labels != list(told) and ordered.settings["threshold"] == tuple(told[label] for label in labels)
    again = ordered.settled("threshold", [2 * told[label] for label in labels])
    assert again.recipe.parameters["threshold"] == (0.2, 0.4, 0.6, 0.8)  # in a recipe, as the sources are named
    assert plan.settings["threshold"] == plan.recipe.parameters["threshold"] == values


def test_learned_coefficients_stay_with_their_towers(four: list[Path], tmp_path: Path) -> None:
    base = str(write_tower(tmp_path / "base", 0))
    plan = fetched_plan(four, method="task_arithmetic", base=base).in_canonical_order()
    with closing(plan):
        group = next(group for group in plan.groups if group.matrix)
        adapted = plan.adapted({group.key: (1.0, 2.0, 3.0, 4.0)})
        assert plan.coefficients_of(group) is None and adapted.coefficients_of(group) == (1.0, 2.0, 3.0, 4.0)
        given = plan.sources.given_order((1.0, 2.0, 3.0, 4.0))
        assert list((adapted.recipe.coefficients or {})[group.key]) == list(given) and given != (1.0, 2.0, 3.0, 4.0)


def test_what_a_merge_will_cost(four: list[Path]) -> None:
    plan = fetched_plan(four)
    with closing(plan):
        assert plan.parameters == sum(math.prod(shape) for shape in shapes().values())
        assert plan.output_bytes > 4 * plan.parameters and plan.download_bytes == 0
        assert plan.peak_bytes(1) < plan.peak_bytes(2) < plan.peak_bytes(8)
        assert plan.low_rank_groups == 12 and [name for group in plan.groups for name in group.names] == list(
            plan.shapes
        )
