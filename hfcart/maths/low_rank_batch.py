"""Truncated low-rank approximation of many matrices at once, for a device on which one small step costs a launch.

The contract is that of hfcart.maths.low_rank; the means are others. On a GPU a decomposition takes tens of milliseconds
and a product of large matrices almost nothing, so the leading eigenvectors of the Gram matrices AᵀA come from block
subspace iteration, filtered by Chebyshev polynomials (Zhou and Saad, SIAM J. Matrix Anal. Appl. 29, 2007), orthogonal
by Cholesky factors (shifted first: Fukaya et al., SIAM J. Sci. Comput. 42, 2020), and end in one small eigenproblem a
matrix. Everything is in float64, which such devices multiply as fast as full float32, and which no setting for
TF32 touches. The residuals tell how far the vectors are from what they stand for; whatever fails that test is done
again from the whole Gram matrix.

What the host must know (is it finite? did it pass? how much does it keep?) comes over in one transfer for all of them.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from hfcart.maths.low_rank import LowRank, rank_of, truncated_svd

log = logging.getLogger("hfcart")

NAME = "block-iteration"
DIRECT = 128  # below this size the whole eigenproblem costs no more than the small one
STAGES, DEGREE = 3, 8  # filters, and the highest degree of one
SHARE = 4  # of the device's memory, one part in this many for the temporaries of one batch
_TINY = 1e-300


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
    peaks = torch.linalg.vector_norm(stack, ord=torch.inf, dim=(1, 2)).double()
    exponents = torch.frexp(peaks)[1].clamp(-126, 126)
    scales = torch.ldexp(torch.ones_like(peaks), exponents)[:, None, None]  # powers of two: nothing is rounded
    tall = stack.double() / scales
    tall = tall if m >= n else tall.mT
    grams = tall.mT @ tall
    totals = grams.diagonal(dim1=1, dim2=2).sum(1)
    p = k + grams.shape[1] // 8
    try:
        if grams.shape[1] > DIRECT and 2 * p <= grams.shape[1]:
            vectors, passed = _iterated(grams, totals, k, p)
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


def _iterated(
    grams: Float64[Tensor, "batch n n"], totals: Float64[Tensor, " batch"], k: int, p: int
) -> tuple[Float64[Tensor, "batch n k"], Bool[Tensor, " batch"]]:
    """The k leading eigenvectors by iteration on p > k of them, and which of them are certified."""
    n = grams.shape[1]
    start = _random(n, p, grams.device)
    block = _orthonormal(grams @ (grams @ start))
    steps = torch.full_like(totals, 2.0)
    for stage in range(STAGES):
        if stage < 2:  # after that they hardly move
            low, high = _ends(block.mT @ (grams @ block))
        degrees = _degrees(high / low, steps)
        block = _orthonormal(_filtered(grams, block, degrees, low))
        steps = steps + degrees
    image = grams @ block
    small = block.mT @ image
    # One that broke down must not break the decomposition of the others: it fails the test below by its residual.
    small = torch.nan_to_num(small, nan=0.0, posinf=0.0, neginf=0.0)
    values, rotation = torch.linalg.eigh(small)
    values, rotation = values.flip(1), rotation.flip(2)
    vectors = block @ rotation
    residuals = torch.linalg.vector_norm(image @ rotation - vectors * values[:, None], dim=1)
    skew = block.mT @ block - torch.eye(p, dtype=block.dtype, device=block.device)
    straight = skew.abs().amax((1, 2)) < 1e-10
    return vectors[:, :, :k].contiguous(), straight & _certified(values, residuals, totals, k)


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
    distance = (kept - outside).clamp(min=_TINY)
    lost = (own / distance).sum(1)
    first = ((kept + outside) * own / distance.square()).sum(1)
    through = (own / distance.square())[:, :, None] * squares[:, None, k:]
    between = (kept[:, :, None] - cut[:, None]).clamp(min=_TINY)
    second = ((kept[:, :, None] + cut[:, None]) * through / between.square()).sum((1, 2))
    left_out = (totals - kept.sum(1)).clamp(min=0)
    roots = values.clamp(min=0).sqrt()
    degenerate = roots[:, k - 1] - roots[:, k] < 0.99e-3 * roots[:, 0]
    enough = lost <= 2e-6 * (totals * left_out).sqrt() + 1e-13 * totals
    return enough & (degenerate | ((first + second).sqrt() <= 0.9e-5 * totals.sqrt()))


def _ends(small: Float64[Tensor, "batch p p"]) -> tuple[Float64[Tensor, " batch"], Float64[Tensor, " batch"]]:
    """Something like the smallest and the largest eigenvalue, without a decomposition: power means M₋₄ and M₈ · p^⅛."""
    factor, _ = torch.linalg.cholesky_ex(small)
    eye = torch.eye(small.shape[1], dtype=small.dtype, device=small.device).expand_as(small)
    root = torch.linalg.solve_triangular(factor, eye, upper=False)
    inverse = root.mT @ root
    low = ((inverse @ inverse).square().sum((1, 2)) / small.shape[1]) ** -0.25
    square = small @ small
    return low, (square @ square).square().sum((1, 2)) ** 0.125


def _degrees(ratio: Float64[Tensor, " batch"], steps: Float64[Tensor, " batch"]) -> Float64[Tensor, " batch"]:
    """The degree each filter may have, 1..DEGREE, so that the columns stay far enough from dependent.

    The largest eigenvalue grows (4 · ratio)^degree times as much as the smallest. What a column still has of the
    largest one's vector has sunk to ratio^−steps by the steps taken so far, and to rounding at best.
    """
    sunk = (steps * ratio.log()).clamp(max=37.0)  # ln 2⁵³
    return torch.nan_to_num((14.0 + sunk) / (4 * ratio).log(), nan=1.0).floor().clamp(1, DEGREE)


def _filtered(
    grams: Float64[Tensor, "batch n n"],
    block: Float64[Tensor, "batch n p"],
    degrees: Float64[Tensor, " batch"],
    bound: Float64[Tensor, " batch"],
) -> Float64[Tensor, "batch n p"]:
    """T_degree(2 G / bound − 1) times a block: eigenvalues up to the bound stay within 1, those above it grow."""
    twice, own = (2 / bound)[:, None, None], degrees[:, None, None]
    before, now = block, (grams @ block) * twice - block
    found = now
    for degree in range(2, DEGREE + 1):
        before, now = now, (grams @ now) * (2 * twice) - 2 * now - before
        found = torch.where(own >= degree, now, found)
    return found


def _orthonormal(block: Float64[Tensor, "batch n p"]) -> Float64[Tensor, "batch n p"]:
    """The same span with orthonormal columns, by two Cholesky factorisations, of which the first is shifted."""
    p = block.shape[2]
    eye = torch.eye(p, dtype=block.dtype, device=block.device)
    for shift in (1e-14 * p, 0.0):
        block = block / torch.linalg.vector_norm(block, dim=1, keepdim=True).clamp(min=_TINY)
        factor, _ = torch.linalg.cholesky_ex(block.mT @ block + shift * eye)
        block = torch.linalg.solve_triangular(factor.mT, block, upper=True, left=False)
    return block


@functools.lru_cache(maxsize=8)
def _random(n: int, p: int, device: torch.device) -> Float64[Tensor, "n p"]:
    """The block that every iteration starts from: the same numbers each time, and on every device."""
    return torch.randn(n, p, generator=torch.Generator().manual_seed(n), dtype=torch.float64).to(device)
