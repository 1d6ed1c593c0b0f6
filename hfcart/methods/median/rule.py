"""The median of the towers' entries."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from hfcart.methods.contract import Merged


def median(thetas: Float[Tensor, " task *shape"], *, blend: float = 0.0) -> Merged:
    """(1 − β) median_t θ_t + β θ̄, entry by entry.

    Args:
        thetas: the T towers' versions of one tensor, float32, any shape.
        blend: β, in [0, 1].
    """
    return Merged((1 - blend) * thetas.median(dim=0).values + blend * thetas.mean(dim=0))
