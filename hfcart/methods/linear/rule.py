"""A weighted average of the towers (Model soups, arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from hfcart.methods.average.rule import average
from hfcart.methods.contract import Merged
from hfcart.methods.shared.span import combine


def linear(thetas: Float[Tensor, " task *shape"], *, weights: Sequence[int | float] | None = None) -> Merged:
    """Σ_t w_t θ_t / Σ_t w_t.

    Args:
        thetas: the T towers' versions of one tensor, float32 (or float64), any shape.
        weights: one for each, at least 0 and not all 0; all equal by default.
    """
    if weights is None:
        return average(thetas)
    return Merged(combine(thetas, [w / sum(weights) for w in weights]))
