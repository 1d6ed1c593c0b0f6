"""The Karcher (Fréchet) mean of the towers' directions on the sphere, tensor by tensor (Karcher 1977)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hfcart.methods.contract import Merged
from hfcart.methods.shared.span import combine, inner_products

_STEPS, _NEAR = 100, 1e-12  # it converges by orders of magnitude a step for towers of one ancestor


def karcher(thetas: Float[Tensor, " task *shape"]) -> Merged:
    """The direction with the least sum of squared angles to all θ_t, at the mean of their norms.

    A tower whose tensor is zero has no direction and takes no part.

    Args:
        thetas: the T towers' versions of one tensor, float32 (or float64), any shape.
    """
    products = inner_products(thetas)
    norms = products.diagonal().sqrt()
    there = norms > 0
    if not there.any():
        return Merged(thetas[0].clone())
    inverse = torch.where(there, 1 / norms, 0.0)
    cosines = products * inverse[:, None] * inverse
    mean = centre(cosines[there][:, there])
    weights = torch.zeros_like(norms)
    weights[there] = mean * norms[there].mean() / norms[there]
    return Merged(combine(thetas, weights.tolist()))


def centre(cosines: Float64[Tensor, "task task"]) -> Float64[Tensor, " task"]:
    """Coefficients c of the Karcher mean Σ c_t x_t of unit vectors x_t, which is a unit vector, from their cosines."""
    at = torch.full((len(cosines),), 1.0 / len(cosines), dtype=torch.float64)
    if not at @ cosines @ at > 1e-12:  # opposite directions: any start will do
        at = torch.eye(len(cosines), dtype=torch.float64)[0]
    for _ in range(_STEPS):
        at = at / (at @ cosines @ at).sqrt()
        along = (cosines @ at).clamp(-1, 1)
        angles = along.acos()
        # x_t − cos Ω_t · u, stretched to the arc's length, is what leads from u to x_t.
        stretch = torch.where(angles > 1e-8, angles / angles.sin().clamp(min=1e-12), 1.0) / len(cosines)
        step = stretch - (stretch @ along) * at
        length = (step @ cosines @ step).clamp(min=0).sqrt()
        if length < _NEAR:
            break
        at = length.cos() * at + length.sin() / length * step
    return at / (at @ cosines @ at).sqrt()
