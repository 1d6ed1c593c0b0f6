"""TSV-Merge: every task's leading singular vectors, made orthogonal to each other (arXiv 2412.00081, Sec. 3)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hfcart.maths.thin_svd_batch import thin_svds
from hfcart.methods.contract import Merged
from hfcart.methods.shared.singular_vectors import orthogonal_sides
from hfcart.methods.shared.task_vectors import onto, task_vector


def tsv_m(thetas: Float[Tensor, "task m n"], *, base: Float[Tensor, "m n"], scale: float = 1.0) -> Merged:
    """θ_0 + α · Û diag(S) V̂ᵀ, from the top min(m, n)/T singular triplets of each task vector side by side.

    Û and V̂ are the polar factors of the concatenated U and V: the nearest matrices with orthonormal columns, which is
    what takes the tasks' singular vectors apart. Directions in which tasks coincide exactly, or that no task has, are
    left out: there a polar factor is not unique.

    Args:
        thetas: the T towers' versions of one matrix (or of fused q, k and v), float32 (or float64).
        base: the pretrained version θ_0.
        scale: α, any finite number.
    """
    update, k, energy = orthogonal_sum(thetas, base)
    return Merged(onto(base, update.mul_(scale)), k, energy)


def orthogonal_sum(
    thetas: Float[Tensor, "task m n"], base: Float[Tensor, "m n"]
) -> tuple[Float64[Tensor, "m n"], int, float]:
    """(Û diag(S) V̂ᵀ, the k kept of each task vector, the share of their squares that those keep)."""
    k = max(1, min(base.shape) // len(thetas))
    parts = list(thin_svds((task_vector(theta, base) for theta in thetas), k, base.device))
    left, right = orthogonal_sides(parts)
    values = torch.cat([p.values for p in parts])
    return (left * values) @ right.T, k, sum(p.energy for p in parts) / len(parts)
