"""Consensus task arithmetic: only entries that matter to several tasks (TALL masks, arXiv 2405.07813)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hfcart.methods._contract import Merged
from hfcart.methods._vectors import merge_chunks


def consensus(
    thetas: Float[Tensor, " task *shape"],
    *,
    base: Float[Tensor, " *shape"],
    scale: float = 0.3,
    threshold: float | Sequence[float] = 0.4,
    agree: int = 2,
) -> Merged:
    """θ_0 + α · (Σ_t τ_t) where at least `agree` of the TALL masks |τ_t| > λ_t · |Σ_s τ_s − τ_t| hold, θ_0 elsewhere.

    Args:
        thetas: the T towers' versions of one tensor, float32 (or float64), any shape.
        base: the pretrained version θ_0.
        scale: α, any finite number.
        threshold: λ of the masks, at least 0: one for all towers, or one for each.
        agree: how many masks must hold, at least 1.
    """

    least = torch.tensor(threshold, dtype=torch.float64).reshape(-1, 1)

    def rule(taus: Tensor, _: slice) -> Tensor:
        total = taus.sum(0)
        masks = taus.abs() > least.to(taus.device) * (total - taus).abs()
        return scale * total * (masks.sum(0) >= agree)

    return Merged(merge_chunks(thetas, base, rule))
