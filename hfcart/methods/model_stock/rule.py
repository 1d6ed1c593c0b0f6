"""Model Stock: how far to go from the base to the average, by the angle between task vectors (arXiv 2403.19522)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hfcart.maths.moments import double_home
from hfcart.methods.contract import Merged
from hfcart.methods.shared.task_vectors import chunks_of, merge_chunks


def model_stock(thetas: Float[Tensor, " task *shape"], *, base: Float[Tensor, " *shape"]) -> Merged:
    """t θ̄ + (1 − t) θ_0 with t = T cos Ω / (1 + (T − 1) cos Ω), Ω the angle between this tensor's task vectors.

    cos Ω is the mean over pairs of towers. Where it is not above zero the paper's geometry has no answer but the base.

    Args:
        thetas: the T towers' versions of one tensor, float32 (or float64), any shape.
        base: the pretrained version θ_0.
    """
    ratio = _ratio(thetas, base)
    return Merged(merge_chunks(thetas, base, lambda taus, _: ratio * taus.mean(0)))


def _ratio(thetas: Float[Tensor, " task *shape"], base: Float[Tensor, " *shape"]) -> float:
    tasks = len(thetas)
    if tasks == 1:
        return 1.0
    products = torch.zeros(tasks, tasks, dtype=torch.float64, device=double_home(base.device))
    for taus, _ in chunks_of(thetas, base):
        products += taus @ taus.T
    products = products.cpu()
    inverse = torch.where(products.diagonal() > 0, products.diagonal().rsqrt(), 0.0)
    cosines = products * inverse[:, None] * inverse
    cosine = ((cosines.sum() - cosines.diagonal().sum()) / (tasks * (tasks - 1))).clamp(0, 1).item()
    return tasks * cosine / (1 + (tasks - 1) * cosine)
