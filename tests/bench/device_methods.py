"""What a group of ViT-B/32 takes on a device by every method that needs no images: a stage of device.py.

Before is what a device did until matrices were decomposed together, one after another; it is measured in the same run,
for the methods that decompose. The difference of the two results is taken in float64, where storing rounds nothing.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from hfcart.maths import thin_svd_batch
from hfcart.methods import METHODS, Merged, Method, function, keywords_of
from hfcart.methods.cart import rule as cart_rule
from hfcart.methods.svc import calibrated
from hfcart.methods.task_arithmetic import rule as task_arithmetic_rule

TOWERS = 8
Work = Callable[[torch.Tensor, torch.Tensor, str], torch.Tensor]


@contextlib.contextmanager
def decomposing(together: bool) -> Iterator[None]:
    """Matrices are decomposed together, or one after another, whatever the device."""
    modules = (cart_rule, task_arithmetic_rule, thin_svd_batch)
    before = [module.is_batched for module in modules]
    for module in modules:
        module.is_batched = lambda _: together
    try:
        yield
    finally:
        for module, function_before in zip(modules, before, strict=True):
            module.is_batched = function_before


def block(d: int, f: int, device: torch.device, task_vector: Callable[..., torch.Tensor]) -> dict[str, Any]:
    """(towers, base) of each matrix of one block, float32."""
    shapes = {f"self_attn.{x}_proj": (d, d) for x in ("q", "k", "v", "out")} | {"mlp.fc1": (f, d), "mlp.fc2": (d, f)}
    generator = torch.Generator(device).manual_seed(7)
    found = {}
    for name, shape in shapes.items():
        base = torch.randn(shape, generator=generator, device=device) * 0.02
        towers = torch.stack([base + task_vector(shape, generator) for _ in range(TOWERS)])
        found[f"vision_model.encoder.layers.0.{name}.weight"] = towers, base
    return found


def rule_of(method: Method, groups: dict[str, Any]) -> Work:
    """The method's rule for matrices at its own settings, of as many towers as it takes."""
    settings = {parameter.name: parameter.default for parameter in method.parameters if parameter.default is not None}
    some, known = method.exactly or TOWERS, {}
    if method.fit:
        passes = function(method.fit)(**keywords_of(function(method.fit), settings))
        measure = next(passes)
        try:
            while True:
                measure = passes.send(sum(measure(towers[:some], base) for towers, base in groups.values()))
        except StopIteration as end:
            known = end.value
    rule, _ = method.load()

    def work(towers: torch.Tensor, base: torch.Tensor, key: str) -> torch.Tensor:
        merged: Merged = rule(towers[:some], **keywords_of(rule, {**settings, **known, "base": base, "key": key}))
        return merged.tensor

    return work


def calibration(towers: torch.Tensor, base: torch.Tensor, key: str) -> torch.Tensor:
    """--svc over task arithmetic."""
    return calibrated(towers, base, task_arithmetic_rule.task_arithmetic(towers, base=base).tensor)


def factors(towers: torch.Tensor, base: torch.Tensor, key: str) -> torch.Tensor:
    """AdaRank's parts of task arithmetic, added up: 16% of the directions of each tower."""
    parts = task_arithmetic_rule.ranked_parts(towers, base=base, rank=0.16)
    assert parts.right is not None
    return parts.anchor + (parts.left @ parts.right.mT).sum(0)


class Row(NamedTuple):
    """Milliseconds a group, and the largest relative difference of the updates; None where nothing is decomposed."""

    name: str
    now: float
    before: float | None = None
    difference: float | None = None


def measured(d: int, f: int, device: torch.device, task_vector: Callable[..., torch.Tensor]) -> Iterator[Row | str]:
    """A row for each method, or what went wrong; `d` and `f` are the widths of a block."""
    groups = block(d, f, device, task_vector)
    exact = {key: tuple(x.double() for x in group) for key, group in groups.items()}
    ways: dict[str, tuple[bool, Work]] = {
        method.name: (method.decomposes, rule_of(method, groups))
        for method in METHODS.values()
        if method.statistics is None
    }
    ways |= {"svc": (True, calibration), "adarank": (True, factors)}
    for name, (decomposes, work) in sorted(ways.items(), key=lambda way: not way[1][0]):
        try:
            yield (
                compared(name, work, groups, exact, device)
                if decomposes
                else Row(name, milliseconds(work, groups, device))
            )
        except Exception as error:  # the other methods are worth their time
            yield f"{name}: unmeasured, {type(error).__name__}: {error}"


def compared(name: str, work: Work, groups: dict[str, Any], exact: dict[str, Any], device: torch.device) -> Row:
    with decomposing(True):
        results = {key: work(*group, key) for key, group in exact.items()}
        now = milliseconds(work, groups, device)
    with decomposing(False):
        others = {key: work(*group, key) for key, group in exact.items()}
        before = milliseconds(work, groups, device)
    difference = max(float((results[key] - x).norm() / (x - exact[key][1]).norm()) for key, x in others.items())
    return Row(name, now, before, difference)


def milliseconds(work: Work, groups: dict[str, Any], device: torch.device) -> float:
    """A group, the better of two rounds over all of them."""
    best = math.inf
    for _ in range(2):
        wait(device)
        start = time.perf_counter()
        for key, group in groups.items():
            work(*group, key)
        wait(device)
        best = min(best, 1e3 * (time.perf_counter() - start) / len(groups))
    return best


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
