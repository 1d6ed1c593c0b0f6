"""ESM: task vectors on the principal directions of what they change in a layer's outputs (arXiv 2602.20208, Sec. 3)."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hfcart.maths.moments import double_home
from hfcart.maths.thin_svd_batch import polars, thin_svds
from hfcart.methods.contract import Measure, Merged
from hfcart.methods.shared.task_vectors import onto, task_vector
from hfcart.methods.tsv_m.rule import orthogonal_sum

_KINDS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_KIND = re.compile(rf"\.({'|'.join(_KINDS)})\.weight")
_POWER = 0.15  # of the eigenvalues; strengths of towers, columns and blocks count as their squares


def esm(
    thetas: Float[Tensor, "task m n"],
    grams: Float[Tensor, "task n n"],
    key: str,
    means: Sequence[float],
    *,
    base: Float[Tensor, "m n"],
    scale: float = 1.0,
) -> Merged:
    """θ_0 + α · (‖Δ‖ / mean ‖Δ‖)² Δ, the mean over the blocks' matrices of the same kind.

    Args:
        thetas: the T towers' weights of one linear layer (or of fused q, k and v), output × input, float32 or float64.
        grams: X_tᵀX_t of the layer's inputs in each tower on its own task.
        key: the layer's weight, whose name says which kind of matrix it is.
        means: mean ‖Δ‖ of each kind, by `mean_norms`.
        base: the pretrained version θ_0.
        scale: α, any finite number.
    """
    update = _update(thetas, grams, key, base)
    mean = means[_kind(key)]
    strength = float(torch.linalg.norm(update)) / mean if mean > 0 else 1.0
    return Merged(onto(base, update.mul_(scale * strength**2)))


def mean_norms() -> Generator[Measure, Tensor, dict[str, Any]]:
    """The mean of ‖Δ‖ over all blocks, for each kind of matrix.

    Yields:
        A function of a group to float64, kind × 2: its norm and 1 in its kind's row.

    Returns:
        The keyword argument `means` of `esm`.
    """
    sums = yield _norm
    return {"means": (sums[:, 0] / sums[:, 1].clamp(min=1)).tolist()}


def _norm(
    thetas: Float[Tensor, " task *shape"],
    base: Float[Tensor, " *shape"],
    key: str,
    grams: Float[Tensor, "task n n"] | None = None,
) -> Float64[Tensor, "kind 2"]:
    out = torch.zeros(len(_KINDS), 2, dtype=torch.float64)
    if grams is not None:
        norm = float(torch.linalg.norm(_update(thetas, grams, key, base)))
        out[_kind(key)] = torch.tensor([norm, 1.0], dtype=torch.float64)
    return out


def _kind(key: str) -> int:
    found = _KIND.search(key)
    assert found  # a matrix of a block has one of these names
    return _KINDS.index(found[1])


def _update(
    thetas: Float[Tensor, "task m n"], grams: Float[Tensor, "task n n"], key: str, base: Float[Tensor, "m n"]
) -> Float64[Tensor, "m n"]:
    """Δ of one matrix, before its strength among the blocks."""
    if _KINDS[_kind(key)] == "out_proj":
        return orthogonal_sum(thetas, base)[0]
    (m, n), tasks = base.shape, len(thetas)
    k = max(1, m // tasks)
    norms = torch.stack([torch.linalg.norm(task_vector(theta, base)) for theta in thetas])
    mean = norms.mean().clamp(min=torch.finfo(torch.float64).tiny)
    left, right = [], []
    # Task vectors are made again and again: all of them at once are twice the towers' own memory.
    shifts = (_shift(task_vector(theta, base), gram) for theta, gram in zip(thetas, grams, strict=True))
    found = thin_svds(shifts, min(k, m, n), base.device)
    for theta, shift, norm in zip(thetas, found, norms, strict=True):
        weights = shift.values.square()  # eigenvalues of the outputs' covariance, but for a factor
        weights = (weights / weights.sum().clamp(min=torch.finfo(torch.float64).tiny)) ** _POWER
        weights = weights * (k / weights.sum()) if bool(weights.any()) else weights
        left.append(shift.left * weights)
        right.append((shift.left.T @ task_vector(theta, base)) * (weights * (norm / mean) ** 2)[:, None])
    stacked = torch.cat(right)
    columns = torch.linalg.vector_norm(stacked, dim=0)
    stacked *= (columns / columns.mean().clamp(min=torch.finfo(torch.float64).tiny)) ** 2
    # Directions that are not there count as zeros in the means: m/T of each tower were asked for.
    one, other = polars([torch.cat(left, 1), stacked], base.device)
    size = one.total / min(m, tasks * k) * (other.total / min(tasks * k, n))
    return (one.left @ (one.right.T @ other.left)) @ other.right.T * (2 * size)


def _shift(tau: Float64[Tensor, "m n"], gram: Float[Tensor, "n n"]) -> Float64[Tensor, "m n"]:
    """A matrix with the left singular vectors of τ Xᵀ and its singular values, from XᵀX."""
    values, vectors = torch.linalg.eigh(gram.to(double_home(gram.device)).double())
    found: Tensor = (tau @ vectors).mul_(values.clamp(min=0).sqrt())
    return found
