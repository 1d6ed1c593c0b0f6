"""The leading eigenvectors of many Gram matrices at once, for a device on which one small step costs a launch.

On a GPU a decomposition takes tens of milliseconds and a product of large matrices almost nothing, so they come from
block subspace iteration, filtered by Chebyshev polynomials (Zhou and Saad, SIAM J. Matrix Anal. Appl. 29, 2007),
orthogonal by Cholesky factors (shifted first: Fukaya et al., SIAM J. Sci. Comput. 42, 2020), and end in one small
eigenproblem a matrix. Everything is in float64, which such devices multiply as fast as full float32, and which no
setting for TF32 touches. The residuals tell how far the vectors are from what they stand for.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

DIRECT = 128  # below this size the whole eigenproblem costs no more than the small one
DEGREE = 8  # the highest degree of a filter
TINY = 1e-300


class Leading(NamedTuple):
    """The block of p Ritz pairs that an iteration ends with, descending.

    Attributes:
        vectors: the first k of them.
        values: Ritz values of all p.
        residuals: ‖G v − λ v‖ of all p. Among themselves the vectors are decoupled, so a residual is the coupling of
            a vector to all that lies outside of their span.
        straight: whether the block is orthonormal to 1e-10; False as well where an iteration broke down.
    """

    vectors: Float64[Tensor, "batch n k"]
    values: Float64[Tensor, "batch p"]
    residuals: Float64[Tensor, "batch p"]
    straight: Bool[Tensor, " batch"]


def block_width(n: int, k: int) -> int | None:
    """How many vectors to iterate on for k of n; None where the whole eigenproblem is as cheap."""
    p = k + n // 8
    return p if n > DIRECT and 2 * p <= n else None


def leading(grams: Float64[Tensor, "batch n n"], k: int, p: int, stages: int) -> Leading:
    """The k leading eigenvectors by iteration on p > k of them.

    Args:
        grams: symmetric, positive semidefinite.
        k: how many, at least 1.
        p: how many to iterate on, from `block_width`.
        stages: how many filters are applied.
    """
    n = grams.shape[1]
    block = orthonormal(grams @ (grams @ start(n, p, grams.device)))
    steps = torch.full_like(grams[:, 0, 0], 2.0)
    for stage in range(stages):
        if stage < 2:  # after that they hardly move
            low, high = ends(block.mT @ (grams @ block))
        degrees = _degrees(high / low, steps)
        block = orthonormal(filtered(grams, block, degrees, low))
        steps = steps + degrees
    image = grams @ block
    small = block.mT @ image
    # One that broke down must not break the decomposition of the others: its residual tells.
    small = torch.nan_to_num(small, nan=0.0, posinf=0.0, neginf=0.0)
    values, rotation = torch.linalg.eigh(small)
    values, rotation = values.flip(1), rotation.flip(2)
    vectors = block @ rotation
    residuals = torch.linalg.vector_norm(image @ rotation - vectors * values[:, None], dim=1)
    skew = block.mT @ block - torch.eye(p, dtype=block.dtype, device=block.device)
    return Leading(vectors[:, :, :k].contiguous(), values, residuals, skew.abs().amax((1, 2)) < 1e-10)


def ends(small: Float64[Tensor, "batch p p"]) -> tuple[Float64[Tensor, " batch"], Float64[Tensor, " batch"]]:
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


def filtered(
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


def orthonormal(block: Float64[Tensor, "batch n p"]) -> Float64[Tensor, "batch n p"]:
    """The same span with orthonormal columns, by two Cholesky factorisations, of which the first is shifted."""
    p = block.shape[2]
    eye = torch.eye(p, dtype=block.dtype, device=block.device)
    for shift in (1e-14 * p, 0.0):
        block = block / torch.linalg.vector_norm(block, dim=1, keepdim=True).clamp(min=TINY)
        factor, _ = torch.linalg.cholesky_ex(block.mT @ block + shift * eye)
        block = torch.linalg.solve_triangular(factor.mT, block, upper=True, left=False)
    return block


@functools.lru_cache(maxsize=8)
def start(n: int, p: int, device: torch.device) -> Float64[Tensor, "n p"]:
    """The block that every iteration starts from: the same numbers each time, and on every device."""
    return torch.randn(n, p, generator=torch.Generator().manual_seed(n), dtype=torch.float64).to(device)
