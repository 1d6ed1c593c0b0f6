"""Iso-CTS: a common space, and what is left of each task beside it (arXiv 2502.04959, Sec. 4.2)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hfcart.maths.low_rank import ThinSvd, polar, thin_svd
from hfcart.methods.contract import Merged
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
    shared = thin_svd(summed(thetas, base), full - own * tasks, overwrite=True) if own * tasks < full else None
    parts = [_beside(shared, task_vector(theta, base), own) for theta in thetas] if own else []
    parts += [shared] if shared else []
    left = polar(torch.cat([p.left for p in parts], 1), overwrite=True)
    right = polar(torch.cat([p.right for p in parts], 1), overwrite=True)
    mean = torch.cat([p.values for p in parts]).mean()
    return Merged(onto(base, (left * (scale * mean)) @ right.T))


def _beside(shared: ThinSvd | None, tau: Float[Tensor, "m n"], k: int) -> ThinSvd:
    """The k leading singular triplets of what a task vector has outside the common left singular vectors."""
    return thin_svd(tau if shared is None else tau - shared.left @ (shared.left.T @ tau), k, overwrite=True)
