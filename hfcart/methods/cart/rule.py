"""CART: centre on the average, keep the top singular directions, add them back (arXiv 2412.12153, Eq. 4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hfcart.maths.low_rank import LowRank, rank_of, truncated_svd
from hfcart.maths.low_rank_batch import is_batched, truncated_svds
from hfcart.maths.moments import mean_of
from hfcart.maths.workspaces import workspace
from hfcart.methods.contract import Merged, Parts
from hfcart.methods.shared.factors import factored


def cart(
    thetas: Float[Tensor, "task m n"],
    *,
    rank: int | float = 0.08,
    scale: float = 1.0,
    coefficients: Sequence[float] | None = None,
) -> Merged:
    """θ̄ + λ · Σ_t SVD_k(θ_t − θ̄): a sum over tasks, with one λ for all of them (or a λ_t for each: Eq. 6).

    The pretrained weights cancel out: no base model is needed. The centred task vectors sum to zero, so
    scale 0 and full rank both give the average.

    Args:
        thetas: the T towers' versions of one matrix (or of fused q, k and v), float32 (or float64).
        rank: fraction of min(m, n) in (0, 1] (k = max(1, floor(ρ · min(m, n)))), or an integer k.
        scale: λ, any finite number.
        coefficients: a λ_t for each tower, in place of `scale` (CART++).

    Raises:
        ValueError: a rank out of range.
    """
    (tasks, m, n), k = thetas.shape, rank_of(rank, *thetas.shape[1:])
    high, low, found = _approximated(thetas, k)
    # One product of the concatenated factors is the sum of the T low-rank matrices.
    lefts, rights = (torch.empty(side, tasks * k, device=thetas.device) for side in (m, n))
    energies, fallback = [], False
    for t, p in enumerate(found):
        own = slice(t * k, (t + 1) * k)
        lefts[:, own] = p.left if coefficients is None else coefficients[t] * p.left
        rights[:, own] = p.right
        energies.append(p.energy)
        fallback = fallback or p.fallback
    update = torch.mm(lefts, rights.T, out=workspace("centred", high.float()))
    update.mul_(scale if coefficients is None else 1.0)
    # Where nothing is added the mean keeps its very bits: -0.0 + 0.0 would be +0.0.
    nothing = update == 0
    merged = torch.where(nothing, high, update.add_(low).add_(high), out=high)
    return Merged(merged, k, sum(energies) / tasks, fallback)


def parts(thetas: Float[Tensor, "task m n"], *, rank: int | float) -> Parts:
    """The average, and the factors of each SVD_k(θ_t − θ̄).

    Raises:
        ValueError: a rank out of range.
    """
    high, _, approximated = _approximated(thetas, rank_of(rank, *thetas.shape[1:]))
    return factored(high, approximated)


def whole_parts(thetas: Float[Tensor, " task *shape"]) -> Parts:
    """The average, and each θ_t − θ̄ as it is."""
    high, low = mean_of(thetas)
    return Parts(high, (thetas - high).sub_(low))


def _approximated(
    thetas: Float[Tensor, "task m n"], k: int
) -> tuple[Float[Tensor, "m n"], Float[Tensor, "m n"], Iterable[LowRank]]:
    """The average, what rounding it lost, and each SVD_k(θ_t − θ̄), where it is asked for."""
    high, low = mean_of(thetas, low=workspace("low", thetas[0]))
    # θ̄ = high + low to twice the precision: subtracting both keeps small task vectors exact in float32.
    if is_batched(thetas.device):
        return high, low, truncated_svds((thetas - high).sub_(low), k)
    centred = workspace("centred", high)  # one matrix's memory serves all towers
    each = (torch.sub(theta, high, out=centred).sub_(low) for theta in thetas)
    return high, low, (truncated_svd(difference, k, overwrite=True) for difference in each)


def updates(
    thetas: Float[Tensor, "task m n"], *, ranks: Sequence[int | float], reverse: bool = False
) -> tuple[Float[Tensor, "m n"], list[Float[Tensor, "m n"]]]:
    """The average, and for each rank what CART adds to it at scale 1, from one decomposition to the largest rank.

    Args:
        thetas: as for `cart`.
        ranks: as for `cart`, in any order.
        reverse: keep the lowest k singular directions instead of the top k (the paper's Fig. 2).

    Returns:
        (θ̄, [Σ_t SVD_k(θ_t − θ̄) for each rank]): cart(rank, scale) is θ̄ + scale times that.

    Raises:
        ValueError: a rank out of range.
    """
    full = min(thetas.shape[1:])
    kept = [rank_of(rank, *thetas.shape[1:]) for rank in ranks]
    # The lowest k are what the top full − k leave: the task vectors add up to zero.
    cuts = [full - k if reverse else k for k in kept]
    high, _, approximated = _approximated(thetas, max(1, *cuts))
    found = list(approximated)
    sums: dict[int, Tensor] = {0: torch.zeros_like(high)}
    done = 0
    for cut in sorted(set(cuts) - {0}):
        left, right = (torch.cat([getattr(p, side)[:, done:cut] for p in found], 1) for side in ("left", "right"))
        sums[cut], done = sums[done] + left @ right.T, cut
    return high, [-sums[cut] if reverse else sums[cut] for cut in cuts]
