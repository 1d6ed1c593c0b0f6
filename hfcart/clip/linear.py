"""Linear layers as a tower's forward pass computes them: by the fastest product of matrices that torch has here."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def _has_onednn() -> bool:
    there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    there = there and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and torch.backends.cpu.get_cpu_capability() == "AVX512"


# A linear layer of torch's multiplies float32 matrices by MKL, which on AMD's processors takes a tenth to a sixth
# longer than oneDNN, torch's other library. torch calls oneDNN's layer in compiled models alone.
_ONEDNN = _has_onednn()


def linear(module: torch.nn.Linear, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows out"]:
    """`module(x)`, but for rounding; without a gradient."""
    return product(x, module.weight, module.bias)


@torch.no_grad()
def product(
    x: Float[Tensor, "*rows width"], weight: Float[Tensor, "out width"], bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "*rows out"]:
    """x Wᵀ + b, without a gradient.

    Under autocast, on a device, and in another precision than float32 it is torch's own.
    """
    alike = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    if _ONEDNN and alike and not torch.is_autocast_enabled("cpu"):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return torch.nn.functional.linear(x, weight, bias)
