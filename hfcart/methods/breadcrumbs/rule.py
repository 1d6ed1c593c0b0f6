"""Model Breadcrumbs: task vectors without their outliers and their dust (arXiv 2312.06795, Sec. 3)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from hfcart.methods.contract import Merged
from hfcart.methods.shared.task_vectors import magnitudes, magnitudes_of, merge_chunks, ranked


def breadcrumbs(
    thetas: Float[Tensor, " task *shape"],
    *,
    base: Float[Tensor, " *shape"],
    scale: float = 0.3,
    beta: float = 0.85,
    gamma: float = 0.993,
) -> Merged:
    """θ_0 + α Σ_t m_t ⊙ τ_t; m_t keeps what lies between the quantiles β and γ of |τ_t|, tensor by tensor.

    Args:
        thetas: the T towers' versions of one tensor, float32 (or float64), any shape.
        base: the pretrained version θ_0.
        scale: α, any finite number.
        beta: share of the smallest entries that goes, in [0, 1).
        gamma: share above which the largest ones go, in (0, 1]. If it is not above β nothing stays but the base.
    """
    edges = torch.stack([_bounds(magnitudes_of(theta, base), beta, gamma) for theta in thetas])

    def rule(taus: Tensor, _: slice) -> Tensor:
        size = magnitudes(taus)
        return scale * (taus * ((size >= edges[:, :1]) & (size <= edges[:, 1:]))).sum(0)

    return Merged(merge_chunks(thetas, base, rule))


def _bounds(sizes: Float[Tensor, " entry"], beta: float, gamma: float) -> Float[Tensor, " 2"]:
    """The smallest and the largest magnitude kept: of ranks ⌊βn⌋ to ⌈γn⌉ − 1, counted from the smallest."""
    low, high = math.floor(beta * len(sizes)), math.ceil(gamma * len(sizes)) - 1
    if low > high:
        return sizes.new_tensor([math.inf, -math.inf])
    return ranked(sizes, low, high)
