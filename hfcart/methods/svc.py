"""Singular value calibration: directions that several towers share are counted once (arXiv 2602.05536, Sec. 4).

A wrapper: it takes what a method made of a matrix, and turns down the singular values of its update that grew because
the towers' task vectors add up there.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hfcart.maths.thin_svd_batch import thin_svds
from hfcart.methods.shared.task_vectors import onto, task_vector


def calibrated(
    thetas: Float[Tensor, "task m n"], base: Float[Tensor, "m n"], merged: Float[Tensor, "m n"], least: float = 1.0
) -> Float[Tensor, "m n"]:
    """θ_0 + Σ_r γ_r σ_r u_r v_rᵀ of the update Δ = θ_m − θ_0 = Σ_r σ_r u_r v_rᵀ, with γ_r = T / Σ_t max(α, s_r^t).

    s_r^t = ⟨u_rᵀΔ, u_rᵀτ_t⟩ / ‖u_rᵀτ_t‖² is how much larger the update is than tower t's own in direction u_r: 1 where
    only that tower moved, T where all moved alike and were added up.

    Args:
        thetas: the T towers' versions of one matrix (or of fused q, k and v), float32 (or float64).
        base: the pretrained version θ_0.
        merged: what a method made of them, θ_m.
        least: α, above 0: below it, no tower's s counts as less.
    """
    [found] = thin_svds([task_vector(merged, base)], None, base.device)
    counted = torch.zeros_like(found.values)
    for theta in thetas:
        own = found.left.T @ task_vector(theta, base)
        squares = own.square().sum(1)
        along = found.values * (own * found.right.T).sum(1)
        counted += torch.where(squares > 0, along / squares, 0.0).clamp(min=least)
    return onto(base, (found.left * (found.values * len(thetas) / counted)) @ found.right.T)
