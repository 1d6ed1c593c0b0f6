"""Weighted sums of whole tensors, and their inner products: for rules whose result lies in the towers' span."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hfcart.maths.moments import double_home
from hfcart.methods.shared.task_vectors import CHUNK


def combine(thetas: Float[Tensor, " task *shape"], weights: Sequence[float]) -> Float[Tensor, " *shape"]:
    """Σ_t w_t θ_t, summed in float64 and rounded once."""
    flat = thetas.reshape(len(thetas), -1)
    out = torch.empty_like(flat[0])
    factors = torch.tensor(weights, dtype=torch.float64, device=double_home(thetas.device))
    for begin in range(0, len(out), CHUNK):
        part = flat[:, begin : begin + CHUNK].to(factors.device).double()
        out[begin : begin + CHUNK] = (part * factors[:, None]).sum(0)
    return out.reshape(thetas.shape[1:])


def inner_products(thetas: Float[Tensor, " task *shape"]) -> Float64[Tensor, "task task"]:
    """⟨θ_s, θ_t⟩ in float64, on the CPU."""
    flat = thetas.reshape(len(thetas), -1)
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for begin in range(0, flat.shape[1], CHUNK):
        part = flat[:, begin : begin + CHUNK].cpu().double()
        total += part @ part.T
    return total
