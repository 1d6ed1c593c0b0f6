"""Task arithmetic: θ_0 + λ Σ_t (θ_t − θ_0) over every tensor (arXiv 2212.04089, Sec. 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hfcart.maths.low_rank import rank_of, truncated_svd
from hfcart.maths.low_rank_batch import is_batched, truncated_svds
from hfcart.maths.moments import mean_of
from hfcart.methods.contract import Merged, Parts
from hfcart.methods.shared.factors import factored
from hfcart.methods.shared.task_vectors import merge_chunks, task_vector


def task_arithmetic(
    thetas: Float[Tensor, " task *shape"],
    *,
    base: Float[Tensor, " *shape"],
    scale: float = 0.3,
    coefficients: Sequence[float] | None = None,
) -> Merged:
    """The base plus λ times the sum of the task vectors (or plus λ_t times each: AdaMerging, arXiv 2310.02575, Eq. 4).

    Args:
        thetas: the T towers' versions of one tensor, float32 (or float64), any shape.
        base: the pretrained version θ_0, same dtype and shape as one of them.
        scale: λ, any finite number.
        coefficients: a λ_t for each tower, in place of `scale`.
    """
    if coefficients is not None:
        weights = torch.tensor(list(coefficients), dtype=torch.float64)
        return Merged(merge_chunks(thetas, base, lambda taus, _: weights.to(taus.device) @ taus))
    high, low = mean_of(thetas)
    # Σ τ_t = T · (θ̄ − θ_0), with θ̄ = high + low to twice the precision.
    update = (high - base).add_(low).mul_(scale * len(thetas))
    return Merged(torch.where(update == 0, base, base + update))


def parts(thetas: Float[Tensor, " task *shape"], *, base: Float[Tensor, " *shape"]) -> Parts:
    """The base, and each task vector."""
    taus = [task_vector(theta, base).to(base.device, base.dtype) for theta in thetas]
    return Parts(base, torch.stack(taus))


def ranked_parts(thetas: Float[Tensor, "task m n"], *, base: Float[Tensor, "m n"], rank: int | float) -> Parts:
    """The base, and the factors of each SVD_k(θ_t − θ_0).

    Raises:
        ValueError: a rank out of range.
    """
    k = rank_of(rank, *base.shape)
    taus = (task_vector(theta, base).to(base.device, base.dtype) for theta in thetas)
    if is_batched(base.device):
        return factored(base, truncated_svds(torch.stack(list(taus)), k))
    return factored(base, (truncated_svd(tau, k, overwrite=True) for tau in taus))
