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
from hfcart.methods.esm import rule as esm_rule
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


def of_inputs(groups: dict[str, Any]) -> Work:
    """ESM, of Gram matrices like those of 32 images: 1,600 rows, whose columns differ in size."""
    grams: dict[int, torch.Tensor] = {}
    for towers, _ in groups.values():
        n, generator = towers.shape[2], torch.Generator(towers.device).manual_seed(3)
        if n not in grams:
            sizes = torch.linspace(0.1, 2, n, device=towers.device)
            rows = (torch.randn(1600, n, generator=generator, device=towers.device) * sizes for _ in towers)
            grams[n] = torch.stack([x.T @ x for x in rows])

    def work(towers: torch.Tensor, base: torch.Tensor, key: str) -> torch.Tensor:
        return esm_rule.esm(towers, grams[towers.shape[2]], key, [1.0] * 6, base=base).tensor

    return work


def factors(towers: torch.Tensor, base: torch.Tensor, key: str) -> torch.Tensor:
    """AdaRank's parts of task arithmetic, added up: 16% of the directions of each tower."""
    parts = task_arithmetic_rule.ranked_parts(towers, base=base, rank=0.16)
    assert parts.right is not None
    return parts.anchor + (parts.left @ parts.right.mT).sum(0)


class Row(NamedTuple):
    """Milliseconds a group, and the largest relative difference of the updates; None where nothing is decomposed.

    `peak` is how many bytes torch took of a GPU at most, beyond the towers.
    """

    name: str
    now: float
    peak: int
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
    ways |= {"esm": (True, of_inputs(groups)), "svc": (True, calibration), "adarank": (True, factors)}
    for name, (decomposes, work) in sorted(ways.items(), key=lambda way: not way[1][0]):
        try:
            now = compared if decomposes else alone
            yield now(name, work, groups, exact, device)
        except Exception as error:  # the other methods are worth their time
            yield f"{name}: unmeasured, {type(error).__name__}: {error}"


def alone(name: str, work: Work, groups: dict[str, Any], exact: dict[str, Any], device: torch.device) -> Row:
    """Of a method that decomposes nothing."""
    return Row(name, *milliseconds(work, groups, device))


def compared(name: str, work: Work, groups: dict[str, Any], exact: dict[str, Any], device: torch.device) -> Row:
    """Of a method that does."""
    with decomposing(True):
        results = {key: work(*group, key) for key, group in exact.items()}
        now, peak = milliseconds(work, groups, device)
    with decomposing(False):
        others = {key: work(*group, key) for key, group in exact.items()}
        before, _ = milliseconds(work, groups, device)
    difference = max(float((results[key] - x).norm() / (x - exact[key][1]).norm()) for key, x in others.items())
    return Row(name, now, peak, before, difference)


def milliseconds(work: Work, groups: dict[str, Any], device: torch.device) -> tuple[float, int]:
    """A group, the better of two rounds over all of them; and the bytes that torch takes of a GPU meanwhile."""
    best, held = math.inf, taken(device)
    for _ in range(2):
        wait(device)
        start = time.perf_counter()
        for key, group in groups.items():
            work(*group, key)
        wait(device)
        best = min(best, 1e3 * (time.perf_counter() - start) / len(groups))
    return best, (torch.cuda.max_memory_allocated(device) - held if device.type == "cuda" else 0)


def taken(device: torch.device) -> int:
    """Bytes that torch holds of a GPU now; the peak begins here."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
