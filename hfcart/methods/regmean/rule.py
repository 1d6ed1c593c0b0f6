"""RegMean: the linear layer whose outputs are nearest to every tower's own (Jin et al., arXiv 2212.09849, Eq. 2)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hfcart.maths.moments import double_home, mean_of
from hfcart.methods.contract import Merged
from hfcart.methods.shared.task_vectors import onto

SINGULAR = 1e-6  # of the largest eigenvalue: below lies the rounding of Gram matrices stored in float32


def regmean(
    thetas: Float[Tensor, "task m n"], grams: Float[Tensor, "task n n"], *, off_diagonal: float = 0.9
) -> Merged:
    """W_m = Σ_t W_t G̃_t (Σ_t G̃_t)⁻¹, where G̃_t is G_t with its off-diagonal entries scaled down.

    It minimises Σ_t ‖X_t W_mᵀ − X_t W_tᵀ‖² (for off_diagonal = 1). Solved in float64 for the difference from the
    average, W_m − W̄ = Σ_t (W_t − W̄) G̃_t (Σ_t G̃_t)⁻¹, which is the same: where the towers agree, or their inputs do,
    the average comes out. In directions that no input has, where the sum of the G̃_t is singular, the average stays.

    Args:
        thetas: the T towers' weights of one linear layer, output × input, float32 (or float64).
        grams: G_t = X_tᵀX_t of the layer's inputs in each tower on its own task, symmetric, positive semi-definite.
        off_diagonal: what the off-diagonal entries of G_t are multiplied by, in [0, 1].
    """
    home = double_home(thetas.device)
    high, low = mean_of(thetas)
    rest = low.to(home).double()
    total = torch.zeros(grams.shape[1:], dtype=torch.float64, device=home)
    right = torch.zeros(thetas.shape[1:], dtype=torch.float64, device=home)
    for theta, gram in zip(thetas, grams, strict=True):
        scaled = gram.to(home).double()
        diagonal = scaled.diagonal().clone()
        scaled *= off_diagonal
        scaled.diagonal().copy_(diagonal)
        total += scaled
        right += (theta.to(home).double() - high.to(home) - rest) @ scaled
    return Merged(onto(high, rest + _solved(total, right)))


def _solved(total: Float64[Tensor, "n n"], right: Float64[Tensor, "m n"]) -> Float64[Tensor, "m n"]:
    """right · total⁻¹; of the least norm where total is singular.

    By Cholesky, after the diagonal is made 1, which no input's choice of units can spoil. If that meets too small a
    pivot, as it may without a scaled diagonal, by an eigendecomposition without the eigenvalues that are only rounding.
    """
    diagonal = total.diagonal().sqrt()
    inverse = torch.where(diagonal > 0, 1 / diagonal, 0.0)  # an input that is always zero: its column stays
    unit = total * inverse[:, None] * inverse
    unit.diagonal().masked_fill_(diagonal == 0, 1.0)
    factor, failed = torch.linalg.cholesky_ex(unit)
    if not int(failed) and float(factor.diagonal().min()) ** 2 >= SINGULAR:
        found: Tensor = torch.cholesky_solve((right * inverse).T, factor).T * inverse
        return found
    values, vectors = torch.linalg.eigh(total)
    vectors = vectors[:, values > SINGULAR * values[-1]]
    update: Tensor = (right @ vectors) / values[-vectors.shape[1] :] @ vectors.T
    return update
