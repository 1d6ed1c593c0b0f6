"""Towers as factors of which a merge keeps some directions each (AdaRank, arXiv 2503.22178)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hfcart.maths.low_rank import LowRank
from hfcart.methods.contract import Merged, Parts


def factored(anchor: Tensor, approximated: Iterable[LowRank]) -> Parts:
    """Parts of which each tower's is a low-rank approximation."""
    found = list(approximated)
    left, right = (torch.stack([getattr(p, side) for p in found]) for side in ("left", "right"))
    return Parts(anchor, left, right, tuple(p.energy for p in found), any(p.fallback for p in found))


def merged_from(parts: Parts, coefficients: Sequence[float], kept: Sequence[Sequence[int]] | None = None) -> Merged:
    """anchor + Σ_t c_t · component_t, of each component the directions kept.

    Args:
        parts: factors, or whole tensors without `kept`.
        coefficients: one for each tower.
        kept: for each tower the places of its directions that stay; None for whole tensors.

    Returns:
        The tensor; of factors with the mean number of directions kept, rounded, and the mean share of energy in them.
    """
    if kept is None or parts.right is None:
        merged = parts.anchor.clone()
        for c, component in zip(coefficients, parts.left, strict=True):
            merged.add_(component, alpha=c)
        return Merged(merged)
    lefts, rights, energies = [], [], []
    for c, left, right, energy, places in zip(coefficients, parts.left, parts.right, parts.energies, kept, strict=True):
        own = torch.tensor(places, dtype=torch.int64, device=left.device)
        lefts.append(c * left[:, own])
        rights.append(right[:, own])
        strength = (left.norm(dim=0) * right.norm(dim=0)).double().square()  # one side's columns have norm 1
        whole = float(strength.sum())
        energies.append(energy * float(strength[own].sum()) / whole if whole else 1.0)
    merged = torch.addmm(parts.anchor, torch.cat(lefts, 1), torch.cat(rights, 1).T)
    rank = round(sum(map(len, kept)) / len(kept))
    return Merged(merged, rank, sum(energies) / len(energies), parts.fallback)
