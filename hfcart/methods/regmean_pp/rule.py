"""RegMean++: RegMean on what comes through the merged layers before (Nguyen et al., arXiv 2508.03121, Sec. 3)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from hfcart.methods.contract import Merged
from hfcart.methods.regmean.rule import regmean


def regmean_pp(
    thetas: Float[Tensor, "task m n"], grams: Float[Tensor, "task n n"], *, off_diagonal: float = 0.95
) -> Merged:
    """W_m = Σ_t W_t G̃_t (Σ_t G̃_t)⁻¹, as RegMean; what sets it apart is what the Gram matrices are gathered on.

    Args:
        thetas: the T towers' weights of one linear layer, output × input, float32 (or float64).
        grams: G_t = X_tᵀX_t of what the layer takes in tower t's own block, where the block takes images of task t
            that came through the merged embeddings and the merged blocks before; symmetric, positive semi-definite.
        off_diagonal: what the off-diagonal entries of G_t are multiplied by, in [0, 1].
    """
    return regmean(thetas, grams, off_diagonal=off_diagonal)
