"""The pretrained tensor itself: what WUDI leaves alone."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from hfcart.methods.contract import Merged


def base(thetas: Float[Tensor, " task *shape"], *, base: Float[Tensor, " *shape"]) -> Merged:
    """θ_0, to the bit."""
    return Merged(base)
