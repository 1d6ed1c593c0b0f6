"""The singular vectors of several towers side by side, made orthogonal to each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from hfcart.maths.thin_svd import Polar, ThinSvd
from hfcart.maths.thin_svd_batch import polars


def orthogonal_sides(parts: Sequence[ThinSvd]) -> tuple[Float64[Tensor, "m all"], Float64[Tensor, "n all"]]:
    """(Û, V̂): the polar factors of all left singular vectors side by side, and of all right ones.

    Args:
        parts: of each tower, at least one, of matrices of one shape.
    """
    beside = (torch.cat([getattr(p, side) for p in parts], 1) for side in ("left", "right"))
    left, right = map(Polar.matrix, polars(beside, parts[0].left.device))
    return left, right
