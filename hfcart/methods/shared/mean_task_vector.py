"""The base plus a multiple of the mean task vector: what the spectral mergers do with all that is no matrix."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from hfcart.methods.contract import Merged
from hfcart.methods.shared.task_vectors import onto, summed


def mean_task_vector(
    thetas: Float[Tensor, " task *shape"], *, base: Float[Tensor, " *shape"], scale: float = 1.0
) -> Merged:
    """θ_0 + α · (1/T) Σ_t (θ_t − θ_0).

    Args:
        thetas: the T towers' versions of one tensor, float32 (or float64), any shape.
        base: the pretrained version θ_0.
        scale: α, any finite number.
    """
    return Merged(onto(base, summed(thetas, base).mul_(scale / len(thetas))))
