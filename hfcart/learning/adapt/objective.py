"""What adaptation minimises: how undecided the merged tower is about images without labels."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional


def mean_entropy(
    features: Float[Tensor, "b width"],
    usable: Bool[Tensor, " b"],
    head: Float[Tensor, "classes dim"],
    projection: Float[Tensor, "dim width"],
    scale: float,
) -> Float[Tensor, ""]:
    """Mean over the usable images of the Shannon entropy, in nats, of softmax(scale · cos(image, class)).

    (AdaMerging, arXiv 2310.02575, Eq. 5.)

    Args:
        features: the tower's pooled output.
        usable: False for an image that could not be decoded; one at least is True.
        head: a zero-shot head, unit rows.
        projection: CLIP's visual projection.
        scale: CLIP's logit scale, as a factor (not its logarithm).
    """
    images = functional.normalize(features[usable].float() @ projection.T, dim=-1)
    log_p = torch.log_softmax(scale * images @ head.T, dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1).mean()
