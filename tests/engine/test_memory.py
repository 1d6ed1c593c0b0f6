"""What --dry-run says of memory: no less than a merge takes, and not much more."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from merging import merged
from plans import fetched_plan
from torch.profiler import ProfilerActivity, profile
from towers import TINY, write_tower

from hfcart.engine import merging
from hfcart.engine.memory import _BASELINE, _RUN_BYTES
from hfcart.engine.merging import GroupRules
from hfcart.methods import METHODS

ALONE = [name for name, method in METHODS.items() if method.statistics is None]
SIZES = {**TINY, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 1}


def most_of(tracer: profile) -> int:
    """The most memory that torch had handed out at once, in bytes."""
    now = most = 0
    for event in tracer.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The most memory that torch has handed out at once in the algebra of each group, in bytes."""
    found: list[int] = []
    rule = GroupRules.merged

    def traced(*arguments: Any) -> Any:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as tracer:
            made = rule(*arguments)
        found.append(most_of(tracer))
        return made

    monkeypatch.setattr(merging.GroupRules, "merged", traced)
    return found


def said(sources: list[Path], **fields: object) -> tuple[int, int]:
    """Bytes for the algebra of one worker by the estimate, and those of the slices that it reads."""
    plan = fetched_plan(sources, **fields)
    with closing(plan):
        largest = 4 * max(plan.group_elements(group) for group in plan.groups)
        slices = largest * (len(sources) + (plan.base is not None))
        return plan.peak_bytes(1) - _BASELINE - slices, slices


@pytest.mark.parametrize(
    ("name", "count", "fields"),
    [
        *((name, METHODS[name].exactly or 3, {"steps": 3} if name == "wudi" else {}) for name in ALONE),
        ("tsv_m", 8, {}),
        ("cart", 8, {"rank": 0.5}),
        ("cart", 3, {"qkv": "fused"}),
        ("cart", 3, {"dtype": "bfloat16"}),
        ("task_arithmetic", 3, {"svc": 1.0}),
    ],
)
def test_no_more_is_taken_than_was_said(
    tmp_path: Path, taken: list[int], name: str, count: int, fields: dict[str, object]
) -> None:
    dtype = getattr(torch, str(fields.get("dtype", "float32")))
    towers = [write_tower(tmp_path / f"t{i}", i, SIZES, dtype=dtype) for i in range(count + 1)]
    asked = {"method": name, "workers": 1, **fields}
    if METHODS[name].needs_base:
        asked["base"] = str(towers[0])
    expected, slices = said(towers[1:], **asked)
    merged(towers[1:], tmp_path / "out", **asked)
    assert max(taken) <= expected
    # Runs of entries are as long as these small groups. Beside what torch hands out, MKL has memory of its own.
    assert slices + expected - count * _RUN_BYTES <= 1.4 * (slices + max(taken))


@pytest.mark.parametrize("name", ["regmean", "regmean_pp"])
def test_gram_matrices_are_what_counts_where_there_are_any(tmp_path: Path, name: str) -> None:
    """The largest are fc2's; what the rule takes beside the towers' is what it declares, and the plan counts both."""
    rule, _ = METHODS[name].load()
    most = 0
    for m, n in ((1024, 256), (256, 1024)):
        generator = torch.Generator().manual_seed(m)
        thetas, x = torch.randn(3, m, n, generator=generator), torch.randn(3, n, n, generator=generator)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as tracer:
            rule(thetas, x.mT @ x)
        most = max(most, most_of(tracer) - 3 * 4 * n * n)  # the product is made here
    gram, copies = 4 * 1024**2, METHODS[name].copies
    assert most <= copies * gram <= 1.4 * most
    towers = [write_tower(tmp_path / f"t{i}", i, SIZES) for i in range(3)]
    card = tmp_path / "task.yaml"
    card.write_text(
        '{"id": "a", "title": "A", "dataset": {"repo": "user/a"}, "templates": ["{}"], "classnames": ["x", "y"]}'
    )
    expected, slices = said(towers, method=name, tasks=[f"{tower}={card}" for tower in towers])
    assert expected >= most + 3 * gram and slices == 3 * 4 * 1024 * 256
