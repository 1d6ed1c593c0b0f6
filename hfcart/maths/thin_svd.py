"""Singular vectors of both sides, and the polar factor made of them, in float64: one matrix at a time.

Many of them on a device: hfcart.maths.thin_svd_batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hfcart.maths.low_rank import rank_of
from hfcart.maths.moments import double_home


@dataclass(frozen=True)
class ThinSvd:
    """The k leading singular triplets of a matrix, A ≈ left @ diag(values) @ right.T, in float64.

    Attributes:
        left: m × k, orthonormal columns; zero where the singular value is.
        values: k singular values, descending. Those that float64 cannot tell from zero are zero.
        right: n × k, as left.
        energy: Σ_{i≤k} σ_i² / ‖A‖_F², in [0, 1]; 1.0 for the zero matrix.
    """

    left: Float64[Tensor, "m k"]
    values: Float64[Tensor, " k"]
    right: Float64[Tensor, "n k"]
    energy: float


def thin_svd(a: Float[Tensor, "m n"], k: int | None = None, *, overwrite: bool = False) -> ThinSvd:
    """Singular triplets for methods that need the singular vectors of both sides, orthonormal to 1e-8.

    From a float64 Gram matrix of the smaller side where σ_k ≥ 1e-4 σ_1, which is about twice as fast; from a full
    float64 SVD elsewhere, since a Gram matrix squares the condition number.

    Args:
        a: finite, any float dtype. Not modified, unless asked for.
        k: how many, 1..min(m, n); all of them by default.
        overwrite: whether a's memory may be used, instead of as much again; of a float64 matrix with m ≥ n.

    Raises:
        ValueError: k out of range, or an entry that is NaN or Inf.
        torch.linalg.LinAlgError: the SVD did not converge.
    """
    m, n = a.shape
    k = min(m, n) if k is None else rank_of(k, m, n)
    exact = a.to(double_home(a.device)).double()
    low, high = torch.aminmax(exact)
    peak = max(-low.item(), high.item())  # NaN if any entry is
    if not math.isfinite(peak):
        raise ValueError("the matrix holds NaN or Inf")
    if peak == 0.0:
        return ThinSvd(exact.new_zeros(m, k), exact.new_zeros(k), exact.new_zeros(n, k), 1.0)
    scale = 2.0 ** math.frexp(peak)[1]  # squares must neither overflow nor vanish
    turned = exact if m >= n else exact.T
    own = exact if overwrite and m >= n else turned.new_empty(turned.shape)
    tall = torch.div(turned, scale, out=own)
    long, values, short = _by_float64_gram(tall, k) or _by_svd(tall, k)
    left, right = (long, short) if m >= n else (short, long)
    energy = (values.square().sum() / tall.square_().sum()).item()
    return ThinSvd(left, values * scale, right, min(1.0, energy))


@dataclass(frozen=True)
class Polar:
    """The orthogonal polar factor U Vᵀ = left @ right.T of A = U diag(σ) Vᵀ: the nearest matrix of its kind.

    Directions that A does not have are at zero: there the factor is not unique, and any choice would be noise.

    Attributes:
        left: m × min(m, n), orthonormal columns (or zero): U, or the factor itself.
        right: n × min(m, n), as left: V, or the factor's transpose; the other one of the two is the identity then.
        total: Σ_i σ_i, a tensor without dimensions.
    """

    left: Float64[Tensor, "m k"]
    right: Float64[Tensor, "n k"]
    total: Float64[Tensor, ""]

    def matrix(self) -> Float64[Tensor, "m n"]:
        """The factor in one piece."""
        return self.left @ self.right.T


def polar(a: Float[Tensor, "m n"], *, overwrite: bool = False) -> Polar:
    """The orthogonal polar factor, from all singular triplets.

    Args:
        a: as for `thin_svd`, and what may be raised as well.
        overwrite: as for `thin_svd`.
    """
    found = thin_svd(a, overwrite=overwrite)
    return Polar(found.left, found.right, found.values.sum())


def _by_float64_gram(a: Float64[Tensor, "m n"], k: int) -> tuple[Tensor, Tensor, Tensor] | None:
    squares, vectors = torch.linalg.eigh(a.T @ a)
    # Cut before they are copied: what is kept of a tower must not hold the vectors that are not.
    squares, vectors = squares[-k:].flip(0), vectors[:, -k:].flip(1)
    if not squares[-1] > 1e-8 * squares[0]:
        return None
    projected = a @ vectors
    values = torch.linalg.vector_norm(projected, dim=0)
    return projected.div_(values), values, vectors


def _by_svd(a: Float64[Tensor, "m n"], k: int) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    there = s > s[0] * a.shape[0] * torch.finfo(torch.float64).eps
    there = there[:k]
    return u[:, :k] * there, s[:k] * there, vh[:k].T * there
