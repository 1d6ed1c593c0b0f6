"""Consensus task arithmetic: only entries that matter to several tasks (TALL masks, arXiv 2405.07813)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hfcart.methods.contract import Merged
from hfcart.methods.shared.task_vectors import merge_chunks


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
    return Merged(merge_chunks(thetas, base, lambda taus, _: scale * _agreed(taus, threshold, agree)))


def masked(
    thetas: Float[Tensor, " task *shape"], *, base: Float[Tensor, " *shape"], task: int, threshold: float
) -> Float[Tensor, " *shape"]:
    """θ_0 + m_t ⊙ Σ_s τ_s: what one tower's mask keeps of all. The paper scores it on that tower's task to choose λ_t.

    Args:
        thetas: as for `consensus`.
        base: as for `consensus`.
        task: t, the tower's place.
        threshold: λ_t, at least 0.
    """

    def rule(taus: Tensor, _: slice) -> Tensor:
        total = taus.sum(0)
        return total * _mask(taus[task], total, threshold)

    return merge_chunks(thetas, base, rule)


def _agreed(taus: Tensor, threshold: float | Sequence[float], agree: int) -> Tensor:
    """Σ_t τ_t where enough masks hold, zero elsewhere."""
    total = taus.sum(0)
    least = torch.tensor(threshold, dtype=torch.float64, device=taus.device).reshape(-1, 1)
    return total * (_mask(taus, total, least).sum(0) >= agree)


def _mask(tau: Tensor, total: Tensor, least: float | Tensor) -> Tensor:
    return tau.abs() > least * (total - tau).abs()
