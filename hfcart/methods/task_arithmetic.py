"""Task arithmetic: θ_0 + λ Σ_t (θ_t − θ_0) over every tensor (arXiv 2212.04089, Sec. 2)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hfcart.methods._contract import Merged
from hfcart.moments import mean_of


def task_arithmetic(
    thetas: Float[Tensor, " task *shape"], *, base: Float[Tensor, " *shape"], scale: float = 0.3
) -> Merged:
    """The base plus λ times the sum of the task vectors.

    Args:
        thetas: the T towers' versions of one tensor, float32 (or float64), any shape.
        base: the pretrained version θ_0, same dtype and shape as one of them.
        scale: λ, any finite number.
    """
    high, low = mean_of(thetas)
    # Σ τ_t = T · (θ̄ − θ_0), with θ̄ = high + low to twice the precision.
    update = (high - base).add_(low).mul_(scale * len(thetas))
    return Merged(torch.where(update == 0, base, base + update))


def updates(
    thetas: Float[Tensor, " task *shape"], *, base: Float[Tensor, " *shape"]
) -> tuple[Float[Tensor, " *shape"], list[Float[Tensor, " *shape"]]]:
    """The base, and the sum of the task vectors: task_arithmetic(scale) is the first plus scale times the second."""
    high, low = mean_of(thetas)
    return base, [(high - base).add_(low).mul_(len(thetas))]
