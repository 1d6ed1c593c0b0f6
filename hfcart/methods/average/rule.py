"""Weight averaging: θ̄ = (1/T) Σ_t θ_t (Model soups, arXiv 2203.05482; CART paper, Eq. 1)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from hfcart.maths.moments import mean_of
from hfcart.methods.contract import Merged


def average(thetas: Float[Tensor, " task *shape"]) -> Merged:
    """Mean over tasks, taken in float64 and rounded once to float32.

    Args:
        thetas: the T towers' versions of one tensor, float32 (or float64), any shape.
    """
    high, _ = mean_of(thetas)
    return Merged(high)
