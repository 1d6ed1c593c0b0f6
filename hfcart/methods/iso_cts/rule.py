"""Iso-CTS: a common space, and what is left of each task beside it (arXiv 2502.04959, Sec. 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hfcart.maths.thin_svd import ThinSvd
from hfcart.maths.thin_svd_batch import thin_svds
from hfcart.methods.contract import Merged
from hfcart.methods.shared.singular_vectors import orthogonal_sides
from hfcart.methods.shared.task_vectors import onto, summed, task_vector


def iso_cts(
    thetas: Float[Tensor, "task m n"],
    transposed: bool = False,
    *,
    base: Float[Tensor, "m n"],
    scale: float = 1.5,
    common: float = 0.8,
) -> Merged:
    """θ_0 + α · σ̄ Û V̂ᵀ over the common directions of Σ_t τ_t and, for each task, the top ones outside their span.

    Û and V̂ are the polar factors of those singular vectors side by side, σ̄ is the mean of their singular values.

    Args:
        thetas: the T towers' versions of one matrix (or of fused q, k and v), float32 (or float64).
        transposed: whether the authors' models hold the matrix the other way round. The common space is taken away
            from the left side alone, so it is their transpose that is merged.
        base: the pretrained version θ_0.
        scale: α, any finite number.
        common: share of the min(m, n) directions that the common space gets, in (0, 1]; moved so that every task gets
            as many of the rest.
    """
    if transposed:
        turned = iso_cts(thetas.transpose(1, 2).contiguous(), base=base.T.contiguous(), scale=scale, common=common)
        return turned._replace(tensor=turned.tensor.T.contiguous())
    full, tasks = min(base.shape), len(thetas)
    own = min(round((full - int(common * full)) / tasks), full // tasks)  # directions of each task
    rest = full - own * tasks
    shared = list(thin_svds([summed(thetas, base)], rest, base.device)) if rest else []
    beside = (_beside(shared, task_vector(theta, base)) for theta in thetas)
    parts = [*thin_svds(beside, own, base.device), *shared] if own else shared
    left, right = orthogonal_sides(parts)
    mean = torch.cat([p.values for p in parts]).mean()
    return Merged(onto(base, (left * (scale * mean)) @ right.T))


def _beside(shared: Sequence[ThinSvd], tau: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """What a task vector has outside the common left singular vectors."""
    for common in shared:
        tau = tau - common.left @ (common.left.T @ tau)
    return tau
