"""CART: centre on the average, keep the top singular directions, add them back (arXiv 2412.12153, Eq. 4)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hfcart.linalg import rank_of, truncated_svd
from hfcart.methods._contract import Merged
from hfcart.moments import mean_of


def cart(thetas: Float[Tensor, "task m n"], *, rank: int | float = 0.08, scale: float = 1.0) -> Merged:
    """θ̄ + λ · Σ_t SVD_k(θ_t − θ̄): a sum over tasks, with one λ for all of them.

    The pretrained weights cancel out: no base model is needed. The centred task vectors sum to zero, so
    scale 0 and full rank both give the average.

    Args:
        thetas: the T towers' versions of one matrix (or of fused q, k and v), float32 (or float64).
        rank: fraction of min(m, n) in (0, 1] (k = max(1, floor(ρ · min(m, n)))), or an integer k.
        scale: λ, any finite number.

    Raises:
        ValueError: a rank out of range.
    """
    k = rank_of(rank, *thetas.shape[1:])
    high, low = mean_of(thetas)
    parts = []
    for theta in thetas:
        # θ̄ = high + low to twice the precision: subtracting both keeps small task vectors exact in float32.
        parts.append(truncated_svd((theta - high).sub_(low), k))
    # One product of the concatenated factors is the sum of the T low-rank matrices.
    update = torch.cat([p.left for p in parts], 1) @ torch.cat([p.right for p in parts], 1).T
    update.mul_(scale)
    # Where nothing is added the mean keeps its very bits: -0.0 + 0.0 would be +0.0.
    nothing = update == 0
    merged = torch.where(nothing, high, update.add_(low).add_(high), out=update)
    return Merged(merged, k, sum(p.energy for p in parts) / len(parts), any(p.fallback for p in parts))
