"""Iso-C: task arithmetic with a flat spectrum (No Task Left Behind, arXiv 2502.04959, Sec. 4.1)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from hfcart.maths.thin_svd_batch import polars
from hfcart.methods.contract import Merged
from hfcart.methods.shared.task_vectors import onto, summed


def iso_c(thetas: Float[Tensor, "task m n"], *, base: Float[Tensor, "m n"], scale: float = 1.3) -> Merged:
    """θ_0 + α · σ̄ U Vᵀ, for Σ_t τ_t = U diag(σ) Vᵀ and σ̄ the mean of all min(m, n) singular values.

    Where the sum is rank-deficient its null space stays at zero; σ̄ is still the mean over all of them.

    Args:
        thetas: the T towers' versions of one matrix (or of fused q, k and v), float32 (or float64).
        base: the pretrained version θ_0.
        scale: α, any finite number.
    """
    [found] = polars([summed(thetas, base)], base.device)
    mean = found.total / min(base.shape)
    return Merged(onto(base, (found.left * mean.mul_(scale)) @ found.right.T))
