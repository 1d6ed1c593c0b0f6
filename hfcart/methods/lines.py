"""LiNeS: deeper blocks get more of the merged task vector, shallow ones less (arXiv 2410.17146, Sec. 4).

A wrapper: it takes what a method made of a group, and moves it nearer to the base or further away.
"""

from __future__ import annotations

import re

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hfcart.methods.shared.task_vectors import chunks_of, onto, task_vector

_BLOCK = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.")


def norms(
    thetas: Float[Tensor, " task *shape"], base: Float[Tensor, " *shape"], merged: Float[Tensor, " *shape"]
) -> Float64[Tensor, 2]:
    """(‖Σ_t τ_t‖₁, ‖θ_m − θ_0‖₁) of one tensor: α needs their sums over the whole tower."""
    total = torch.zeros(2, dtype=torch.float64)
    for (taus, _), (update, _) in zip(chunks_of(thetas, base), chunks_of(merged[None], base), strict=True):
        total += torch.stack([taus.sum(0).abs().sum(), update.abs().sum()]).cpu()
    return total


def alpha_of(sums: Float64[Tensor, 2], tasks: int) -> float:
    """α = ‖Σ τ_t‖₁ / ‖τ_merged‖₁ / T; 0 where nothing was merged."""
    return (sums[0] / sums[1] / tasks).item() if sums[1] > 0 else 0.0


def factor(name: str, blocks: int, alpha: float, beta: float) -> float:
    """What a tensor's update is multiplied by: α + β · l/(L − 1) in block l of L, α outside the blocks."""
    found = _BLOCK.match(name)
    return alpha + beta * int(found[1]) / max(1, blocks - 1) if found else alpha


def scaled(merged: Float[Tensor, " *shape"], base: Float[Tensor, " *shape"], by: float) -> Float[Tensor, " *shape"]:
    """θ_0 + factor · (θ_m − θ_0)."""
    return onto(base, task_vector(merged, base).mul_(by))
