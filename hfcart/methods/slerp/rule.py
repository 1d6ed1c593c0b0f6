"""Spherical linear interpolation of two towers, tensor by tensor (Shoemake 1985)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from hfcart.methods.contract import Merged
from hfcart.methods.shared.span import combine, inner_products


def slerp(thetas: Float[Tensor, " 2 *shape"], *, weights: Sequence[int | float] | None = None) -> Merged:
    """(sin((1 − t) Ω) θ_1 + sin(t Ω) θ_2) / sin Ω, for Ω the angle between them and t the second one's share.

    Where there is no such arc (one tensor is zero, or they point the same or opposite ways) it is (1 − t) θ_1 + t θ_2.

    Args:
        thetas: the two towers' versions of one tensor, float32 (or float64), any shape.
        weights: of the two, at least 0 and not both 0: t = w_2 / (w_1 + w_2). Equal by default: half way.
    """
    first, second = weights or (1.0, 1.0)
    t = second / (first + second)
    products = inner_products(thetas)
    norms = products.diagonal().sqrt()
    if norms.min() == 0:
        return Merged(combine(thetas, [1 - t, t]))
    cosine = (products[0, 1] / norms[0] / norms[1]).item()
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if math.sin(angle) < 1e-7:  # nearer than that float64 products cannot tell, and the arc is its chord to 1e-14
        return Merged(combine(thetas, [1 - t, t]))
    return Merged(combine(thetas, [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]))
