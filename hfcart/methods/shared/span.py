"""Weighted sums of whole tensors, and their inner products: for rules whose result lies in the towers' span."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hfcart.maths.moments import double_home, run_of


def combine(thetas: Float[Tensor, " task *shape"], weights: Sequence[float]) -> Float[Tensor, " *shape"]:
    """Σ_t w_t θ_t, summed in float64 and rounded once."""
    flat = thetas.reshape(len(thetas), -1)
    out = torch.empty_like(flat[0])
    factors = torch.tensor(weights, dtype=torch.float64, device=double_home(thetas.device))
    run = run_of(thetas.device)
    for begin in range(0, len(out), run):
        part = flat[:, begin : begin + run].to(factors.device).double()
        out[begin : begin + run] = (part * factors[:, None]).sum(0)
    return out.reshape(thetas.shape[1:])


def inner_products(thetas: Float[Tensor, " task *shape"]) -> Float64[Tensor, "task task"]:
    """⟨θ_s, θ_t⟩ in float64, brought to the CPU."""
    flat = thetas.reshape(len(thetas), -1)
    home, run = double_home(thetas.device), run_of(thetas.device)
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64, device=home)
    for begin in range(0, flat.shape[1], run):
        part = flat[:, begin : begin + run].to(home).double()
        total += part @ part.T
    return total.cpu()
