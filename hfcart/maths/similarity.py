"""From the inner products of every tensor to distances and angles between whole towers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hfcart.records import Similarity


def compare(spreads: Sequence[Sequence[Sequence[float]]], *, against_base: bool) -> Similarity | None:
    """Cosines of the task vectors, and every tower's relative distance from their centre.

    Args:
        spreads: for each group of tensors the Gram matrix of `hfcart.maths.moments.spread_of`, in output order.
        against_base: whether its reference row is the base model; else it is the first tower, and the
            towers are centred on their mean here, which needs no more than the same products.

    Returns:
        None for a single tower with no base: it has no task vector.
    """
    # fsum is exact, so no order of the groups can change a digit.
    rows = len(spreads[0])
    gram = np.array([[math.fsum(s[i][j] for s in spreads) for j in range(rows)] for i in range(rows)])
    if against_base:
        products, centre = gram[1:, 1:], gram[0, 0]
    else:
        if rows == 1:
            return None
        # Differences from the first tower, whose own is zero: X_ij = ⟨θ_i − θ_1, θ_j − θ_1⟩.
        x = np.zeros((rows, rows))
        x[1:, 1:] = gram[1:, 1:]
        cross = np.concatenate([[0.0], gram[0, 1:]])  # ⟨θ_1, θ_t − θ_1⟩
        centring = np.eye(rows) - 1 / rows
        products = centring @ x @ centring
        centre = gram[0, 0] + 2 * cross.mean() + x.mean()  # ‖θ̄‖²
    norms = np.sqrt(np.clip(np.diag(products), 0, None))
    size = math.sqrt(max(centre, 0.0))
    cosine = tuple(tuple(_cosine(i, j, products[i, j], norms) for j in range(len(norms))) for i in range(len(norms)))
    distance = tuple(float(f"{(n / size if size else (math.inf if n else 0.0)):.6g}") for n in norms)
    return Similarity("base" if against_base else "mean", cosine, distance)


def _cosine(i: int, j: int, product: float, norms: np.ndarray) -> float:
    if i == j:
        return 1.0
    scale = norms[i] * norms[j]
    return round(float(np.clip(product / scale, -1, 1)), 6) if scale > 0 else 0.0
