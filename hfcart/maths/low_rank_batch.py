"""Truncated low-rank approximation of many matrices at once, for a device on which one small step costs a launch.

The contract is that of hfcart.maths.low_rank; the means are others: float64 Gram matrices, their leading eigenvectors
by hfcart.maths.block_iteration, and a certificate by the residuals. Whatever fails that test is done again from the
whole Gram matrix.

What the host must know (is it finite? did it pass? how much does it keep?) comes over in one transfer for all of them.
"""

from __future__ import annotations

import dataclasses
import logging
import math

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from hfcart.maths.block_iteration import TINY, block_width, leading
from hfcart.maths.low_rank import LowRank, rank_of, truncated_svd

log = logging.getLogger("hfcart")

NAME = "block-iteration"
STAGES = 3  # filters
SHARE = 4  # of the device's memory, one part in this many for the temporaries of one batch


def is_batched(device: torch.device) -> bool:
    """Whether matrices on a device are better decomposed all at once: not on the CPU; mps has no float64."""
    return device.type not in ("cpu", "mps")


def truncated_svds(stack: Float[Tensor, "batch m n"], k: int, *, room: int | None = None) -> list[LowRank]:
    """The best rank-k approximation of each matrix, within the contract, as `truncated_svd` of each would give it.

    Args:
        stack: float32 or float64, finite, on any device that has float64. Not modified.
        k: 1..min(m, n).
        room: bytes for its temporaries; so many matrices as fit, and at least one, are taken at once. A share of the
            device's memory if None, free or not: what is together must not depend on the moment.

    Raises:
        ValueError: k out of range, or an entry that is NaN, Inf or beyond float32.
        torch.linalg.LinAlgError: float64 SVD on the CPU did not converge either.
    """
    _, m, n = stack.shape
    rank_of(k, m, n)
    at_once = matrices_at_once(len(stack), m, n, room_of(stack.device) if room is None else room)
    return [low for part in torch.split(stack, at_once) for low in _solved(part, k)]


def matrices_at_once(count: int, m: int, n: int, room: int | None) -> int:
    """How many of `count` m × n matrices are one batch: at least one, and all of them if `room` is None."""
    return max(1, count if room is None else min(count, room // bytes_each(m, n)))


def bytes_each(m: int, n: int) -> int:
    """Bytes of temporaries that an m × n matrix takes: float64 of itself, of its Gram matrix, and of blocks of it."""
    small = min(m, n)
    return 8 * (2 * m * n + 5 * small * small)


def room_of(device: torch.device) -> int | None:
    """Bytes that a batch's temporaries may take: a share of all that the device has; None if it does not say."""
    return torch.cuda.get_device_properties(device).total_memory // SHARE if device.type == "cuda" else None


def _solved(stack: Float[Tensor, "batch m n"], k: int) -> list[LowRank]:
    _, m, n = stack.shape
    peaks, scales = peaks_and_scales(stack)
    tall = stack.double() / scales
    tall = tall if m >= n else tall.mT
    grams = tall.mT @ tall
    totals = grams.diagonal(dim1=1, dim2=2).sum(1)
    try:
        if p := block_width(grams.shape[1], k):
            found = leading(grams, k, p, STAGES)
            vectors, passed = found.vectors, found.straight & _certified(found.values, found.residuals, totals, k)
        else:
            vectors, passed = _direct(grams, k)
        projected = tall @ vectors
        kept = projected.square().sum((1, 2))
        told = torch.stack([peaks, passed.double(), kept, totals]).cpu()  # the one synchronisation
        _refuse_non_finite(told[0])
        failed = ((told[0] > 0) & (told[1] == 0)).nonzero()[:, 0]
        if len(failed):
            which = failed.to(stack.device)
            redone, _ = _direct(grams[which], k)
            image = tall[which] @ redone
            vectors[which], projected[which] = redone, image
            told[2, failed] = image.square().sum((1, 2)).cpu()
    except LinAlgError as error:
        log.warning("the eigenvectors of %d matrices did not converge together (%s)", len(stack), error)
        return [_alone(matrix, k) for matrix in stack]
    zero = (peaks == 0)[:, None, None]
    long = (projected * scales).masked_fill_(zero, 0.0).float()
    short = vectors.masked_fill(zero, 0.0).float()
    lefts, rights = (long, short) if m >= n else (short, long)
    shares = torch.where(told[0] > 0, told[2] / told[3], 1.0).clamp(max=1.0)  # of zero matrices too
    return [
        # A share that is no number: so are the vectors.
        _alone(matrix, k) if math.isnan(share) else LowRank(left, right, share, NAME, False)
        for matrix, left, right, share in zip(stack, lefts, rights, shares.tolist(), strict=True)
    ]


def peaks_and_scales(
    stack: Float[Tensor, "batch m n"],
) -> tuple[Float64[Tensor, " batch"], Float64[Tensor, "batch 1 1"]]:
    """The largest entry of each matrix (NaN if any is), and the power of two to divide it by, which rounds nothing."""
    peaks = torch.linalg.vector_norm(stack, ord=torch.inf, dim=(1, 2)).double()
    exponents = torch.frexp(peaks)[1].clamp(-126, 126)
    return peaks, torch.ldexp(torch.ones_like(peaks), exponents)[:, None, None]


def _alone(matrix: Float[Tensor, "m n"], k: int) -> LowRank:
    log.warning("no solution for a %d × %d matrix beside others; float64 SVD takes over", *matrix.shape)
    return dataclasses.replace(truncated_svd(matrix, k, solver="svd"), fallback=True)


def _refuse_non_finite(peaks: Float64[Tensor, " batch"]) -> None:
    if not bool((peaks <= torch.finfo(torch.float32).max).all()):  # NaN where any entry is
        raise ValueError("the matrix holds NaN, Inf or a number beyond float32")


def _direct(grams: Float64[Tensor, "batch n n"], k: int) -> tuple[Float64[Tensor, "batch n k"], Bool[Tensor, " batch"]]:
    """The k leading eigenvectors by a full decomposition, and True for each: float64 needs no certificate."""
    vectors = torch.linalg.eigh(torch.nan_to_num(grams))[1][:, :, -k:].flip(2)
    return vectors, torch.ones(len(grams), dtype=torch.bool, device=grams.device)


def _certified(
    values: Float64[Tensor, "batch p"],
    residuals: Float64[Tensor, "batch p"],
    totals: Float64[Tensor, " batch"],
    k: int,
) -> Bool[Tensor, " batch"]:
    """Whether vectors with these residuals meet the contract; as in hfcart.maths.low_rank, by perturbation theory.

    Among themselves the p vectors are decoupled, so a residual r_i is the coupling of vector i to all that lies outside
    of their span. The nearest eigenvalue there is taken to be the middle one of those beyond the cut: the last ones are
    the least converged. With Δ_i the distance to it, the kept energy falls short by Σ r_i²/Δ_i and the approximation
    moves by (Σ (λ_i + λ) r_i²/Δ_i²)^½ to first order; to second order, through the outside, a kept vector i is coupled
    to a vector j beyond the cut by r_i r_j / Δ_i, and that one may be as near as the cut is narrow.

    Args:
        values: the p Ritz values, descending.
        residuals: of their vectors.
        totals: ‖A‖_F².
        k: how many are kept.
    """
    squares = 4 * residuals.square()  # each counts double
    kept, cut, own = values[:, :k], values[:, k:], squares[:, :k]
    outside = cut[:, cut.shape[1] // 2, None]
    distance = (kept - outside).clamp(min=TINY)
    lost = (own / distance).sum(1)
    first = ((kept + outside) * own / distance.square()).sum(1)
    through = (own / distance.square())[:, :, None] * squares[:, None, k:]
    between = (kept[:, :, None] - cut[:, None]).clamp(min=TINY)
    second = ((kept[:, :, None] + cut[:, None]) * through / between.square()).sum((1, 2))
    left_out = (totals - kept.sum(1)).clamp(min=0)
    roots = values.clamp(min=0).sqrt()
    degenerate = roots[:, k - 1] - roots[:, k] < 0.99e-3 * roots[:, 0]
    enough = lost <= 2e-6 * (totals * left_out).sqrt() + 1e-13 * totals
    return enough & (degenerate | ((first + second).sqrt() <= 0.9e-5 * totals.sqrt()))
