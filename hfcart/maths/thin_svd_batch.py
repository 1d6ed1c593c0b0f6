"""Singular vectors of both sides, and polar factors, of many matrices: together on a device, else one after another.

On the CPU, and on mps, these are `thin_svd` and `polar` of each matrix, when it is asked for. On a device, where a
product costs almost nothing and a decomposition does not: few leading triplets come from hfcart.maths.block_iteration;
a polar factor from Newton–Schulz steps, products alone, with the scaling of Chen and Chow (A stable scaling of
Newton–Schulz, preprint ANL/MCS-P5059-0114, 2014); and all triplets from A = P H, with P the polar factor and
H = Pᵀ A = V diag(σ) Vᵀ (Higham and Papadimitriou, Parallel Computing 20, 1994). None of these squares the condition
number of A but the first, which is not taken where that counts. Each has a certificate; the matrices that fail it,
and no others, are decomposed as on the CPU.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from hfcart.maths.block_iteration import TINY, block_width, leading
from hfcart.maths.low_rank import rank_of
from hfcart.maths.low_rank_batch import bytes_each, is_batched, peaks_and_scales, room_of
from hfcart.maths.thin_svd import Polar, ThinSvd, polar, thin_svd

log = logging.getLogger("hfcart")

STAGES = 7  # filters: vectors are to be right to 1e-8, not only what they approximate
CLOSE = 1e-8  # radians between a span of singular vectors and the true one
LEAST = 1e-7  # σ_n / σ_1 of what Newton–Schulz steps make orthogonal; rounding moves that direction by 1e-9 or more
STEEP = 1.69770248526  # Chen and Chow's largest scaling: beyond it the largest singular values come near zero

Triplets = tuple[Float64[Tensor, "batch m k"], Float64[Tensor, "batch k"], Float64[Tensor, "batch n k"]]


def thin_svds(
    matrices: Iterable[Float[Tensor, "m n"]], k: int | None, device: torch.device, *, room: int | None = None
) -> Iterator[ThinSvd]:
    """`thin_svd` of each matrix: vectors orthonormal to 1e-8 and right to as much, where they are well determined.

    Args:
        matrices: float64, finite, of one shape, all on `device` (of mps: on the CPU). Their memory may be used.
        k: how many triplets, 1..min(m, n); all of them if None.
        device: that the algebra is done on.
        room: bytes for temporaries, as in hfcart.maths.low_rank_batch.

    Raises:
        ValueError: k out of range, or an entry that is NaN or Inf.
        torch.linalg.LinAlgError: the SVD of a matrix did not converge.
    """
    if not is_batched(device):  # nothing but the result is held when the next matrix is made
        return map(functools.partial(thin_svd, k=k, overwrite=True), matrices)
    return _in_batches(iter(matrices), k, room_of(device) if room is None else room)


def polars(matrices: Iterable[Tensor], device: torch.device) -> Iterator[Polar]:
    """`polar` of each matrix, of any shapes: those of one shape together, and one look at all of them.

    Args:
        matrices: as for `thin_svds`, but for the shapes.
        device: as for `thin_svds`, and what may be raised as well.
    """
    if not is_batched(device):
        return map(functools.partial(polar, overwrite=True), matrices)
    return iter(_polars(list(matrices)))


def _in_batches(matrices: Iterator[Float[Tensor, "m n"]], k: int | None, room: int | None) -> Iterator[ThinSvd]:
    for first in matrices:
        more = None if room is None else max(0, room // bytes_each(*first.shape) - 1)
        yield from _together(torch.stack([first, *itertools.islice(matrices, more)]), k)


def _together(stack: Float[Tensor, "batch m n"], k: int | None) -> list[ThinSvd]:
    m, n = stack.shape[1:]
    k = min(m, n) if k is None else rank_of(k, m, n)
    peaks, scales = peaks_and_scales(stack)
    scaled = stack.double() / scales
    tall = scaled if m >= n else scaled.mT
    totals = torch.linalg.vector_norm(tall, dim=(1, 2)).square()
    try:
        (long, values, short), passed = _all_triplets(tall) if k == tall.shape[2] else _leading_triplets(tall, k)
        kept = values.square().sum(1)
        told = torch.stack([peaks, (passed & kept.isfinite()).double(), kept, totals]).cpu()  # the one synchronisation
    except LinAlgError as error:
        log.warning("the singular vectors of %d matrices did not converge together (%s)", len(stack), error)
        return [thin_svd(matrix, k) for matrix in stack]
    failed = _failed(told[0], told[1])
    zero = peaks == 0
    values = (values * scales[:, 0]).masked_fill(zero[:, None], 0.0)
    long, short = (side.masked_fill(zero[:, None, None], 0.0) for side in (long, short))
    lefts, rights = (long, short) if m >= n else (short, long)
    shares = torch.where(told[0] > 0, told[2] / told[3], 1.0).clamp(max=1.0).tolist()
    return [
        thin_svd(matrix, k) if i in failed else ThinSvd(left, own, right, share)
        for i, (matrix, left, own, right, share) in enumerate(zip(stack, lefts, values, rights, shares, strict=True))
    ]


def _failed(peaks: Float64[Tensor, " batch"], passed: Float64[Tensor, " batch"]) -> set[int]:
    """Which matrices are to be done again. Args: what the host was told: largest entries, and 1 or 0 (or NaN)."""
    if not bool(torch.isfinite(peaks).all()):
        raise ValueError("the matrix holds NaN or Inf")
    return set(((peaks > 0) & (passed != 1)).nonzero()[:, 0].tolist())


def _leading_triplets(tall: Float64[Tensor, "batch m n"], k: int) -> tuple[Triplets, Bool[Tensor, " batch"]]:
    """From Gram matrices, as `thin_svd` has them, and which of them are good: σ_k ≥ 1e-4 σ_1, and the span found."""
    grams = tall.mT @ tall
    p = block_width(grams.shape[1], k)
    if p and 3 * p <= grams.shape[1]:  # wider blocks end deep in the noise, where they converge slowly
        found = leading(grams, k, p, STAGES)
        vectors, passed = found.vectors, found.straight & _close(found.values, found.residuals, k)
    else:
        vectors = torch.linalg.eigh(torch.nan_to_num(grams))[1][:, :, -k:].flip(2)
        passed = torch.ones(len(grams), dtype=torch.bool, device=grams.device)
    projected = tall @ vectors
    values = torch.linalg.vector_norm(projected, dim=1)
    strong = values[:, -1] > 1e-4 * values[:, 0]
    return (projected / values[:, None], values, vectors), passed & strong


def _close(values: Float64[Tensor, "batch p"], residuals: Float64[Tensor, "batch p"], k: int) -> Bool[Tensor, " batch"]:
    """Whether the first k of p vectors with these residuals span what they should, to CLOSE.

    As the certificate of hfcart.maths.low_rank_batch, but for the angle itself: callers give weak directions the weight
    of strong ones. To first order it is (Σ r_i²/Δ_i²)^½ with Δ_i the distance to the nearest eigenvalue outside of the
    block; to second order, through the outside, kept vector i and cut vector j are coupled by r_i r_j / Δ_i.
    """
    squares = 4 * residuals.square()  # each counts double
    kept, cut, own = values[:, :k], values[:, k:], squares[:, :k]
    outside = cut[:, cut.shape[1] // 2, None]
    slopes = own / (kept - outside).clamp(min=TINY).square()
    between = (kept[:, :, None] - cut[:, None]).clamp(min=TINY)
    second = slopes[:, :, None] * squares[:, None, k:] / between.square()
    return slopes.sum(1) + second.sum((1, 2)) <= CLOSE**2


def _all_triplets(tall: Float64[Tensor, "batch m n"]) -> tuple[Triplets, Bool[Tensor, " batch"]]:
    """From the polar factor, and for which of them there is one."""
    factors, passed = _newton_schulz(tall)
    stretch = factors.mT @ tall
    values, vectors = torch.linalg.eigh(torch.nan_to_num(stretch + stretch.mT) / 2)
    values, vectors = values.flip(1), vectors.flip(2)
    there = values > values[:, :1] * (tall.shape[1] * torch.finfo(torch.float64).eps)
    short = vectors * there[:, None]
    return (factors @ short, values * there, short), passed


def _polars(matrices: list[Tensor]) -> list[Polar]:
    of_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for place, matrix in enumerate(matrices):
        of_shape[matrix.shape].append(place)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    told = []
    for (m, n), places in of_shape.items():
        stack = torch.stack([matrices[place] for place in places])
        peaks, scales = peaks_and_scales(stack)
        tall = (stack if m >= n else stack.mT).double() / scales
        factors, passed = _newton_schulz(tall)
        told.append(torch.stack([peaks, passed.double()]))
        totals = (factors * tall).sum((1, 2)) * scales[:, 0, 0]
        found |= zip(places, zip(factors, totals, strict=True), strict=True)
    peaks, passed = torch.cat(told, 1).cpu()  # the one synchronisation
    failed = _failed(peaks, passed)
    order = [place for places in of_shape.values() for place in places]
    again = {place for number, place in enumerate(order) if number in failed}
    return [
        polar(matrix) if place in again else _as_polar(matrix.shape, *found[place])
        for place, matrix in enumerate(matrices)
    ]


def _as_polar(shape: torch.Size, factor: Float64[Tensor, "long k"], total: Float64[Tensor, ""]) -> Polar:
    eye = torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device)
    return Polar(factor, eye, total) if shape[0] >= shape[1] else Polar(eye, factor, total)


def _newton_schulz(
    tall: Float64[Tensor, "batch m n"],
) -> tuple[Float64[Tensor, "batch m n"], Bool[Tensor, " batch"]]:
    """The polar factors, and for which of them every singular value has become 1.

    A step makes no singular value grow more than 2.6 times, so whatever has become 1 in all of them was no less than
    about LEAST of the largest, and rounding has not made it up. Columns of zeros stay what they are.

    Args:
        tall: m ≥ n, the largest entries between ½ and 1 (or zero).
    """
    grams = tall.mT @ tall
    there = grams.diagonal(dim1=1, dim2=2) > 0
    square = grams @ grams
    largest = (square @ square).square().sum((1, 2)) ** 0.125  # no less than the largest eigenvalue, by a power mean
    found = tall / largest.clamp(min=TINY).sqrt()[:, None, None]
    least = LEAST
    while least < 1 - 1e-13:
        by = min(math.sqrt(3 / (1 + least + least**2)), STEEP)
        found = torch.baddbmm(found, found, found.mT @ found, beta=1.5 * by, alpha=-0.5 * by**3)
        least = 0.5 * by * least * (3 - (by * least) ** 2)
    skew = found.mT @ found - torch.diag_embed(there.double())
    return found, skew.abs().amax((1, 2)) < 1e-10
