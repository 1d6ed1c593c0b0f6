"""DC-Merge: what the towers agree on in the space that their leading directions cover (arXiv 2603.06242, Sec. 4)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hfcart.maths.thin_svd_batch import thin_svds
from hfcart.methods.contract import Merged
from hfcart.methods.shared.singular_vectors import orthogonal_sides
from hfcart.methods.shared.task_vectors import onto, task_vector


def dc_merge(
    thetas: Float[Tensor, "task m n"], *, base: Float[Tensor, "m n"], scale: float = 1.0, kept: float = 0.001
) -> Merged:
    """θ_0 + α · Û M V̂ᵀ: Û and V̂ span what the towers' leading directions do, M is what they agree on there.

    With k = ⌊min(m, n) / T⌋ singular triplets of each task vector, Û and V̂ are the polar factors of all U_t and of all
    V_t side by side. M_t = Ûᵀ SVD_k(τ_t) V̂ are a tower's coordinates. Of each M_t only the largest entries count;
    M is, entry by entry, the mean of those whose sign is their sum's, and zero outside the T diagonal k × k blocks.

    Args:
        thetas: the T towers' versions of one matrix (or of fused q, k and v), float32 (or float64).
        base: the pretrained version θ_0.
        scale: α, any finite number.
        kept: share of the min(m, n)² coordinates that is kept of each tower, at least one of them; in (0, 1].
    """
    full, tasks = min(base.shape), len(thetas)
    k = full // tasks
    if k == 0:  # more towers than directions: none has one to itself
        return Merged(base)
    parts = list(thin_svds((task_vector(theta, base) for theta in thetas), k, base.device))
    left, right = orthogonal_sides(parts)
    agreed = _Agreement(tasks * k, left.device)
    count = max(1, int(kept * full**2))
    for p in parts:
        agreed.add((left.T @ p.left * p.values) @ (p.right.T @ right), count)
    tower = torch.arange(tasks * k, device=left.device) // k  # whose directions these are
    update = left @ (agreed.mean() * (tower[:, None] == tower)).mul_(scale) @ right.T
    return Merged(onto(base, update), k, sum(p.energy for p in parts) / tasks)


class _Agreement:
    """The mean of the towers' largest coordinates whose sign is their sum's, gathered tower by tower."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._size = size
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._sum = torch.zeros(size * size, dtype=torch.float64, device=device)

    def add(self, coordinates: Float64[Tensor, "size size"], keep: int) -> None:
        """Take a tower's `keep` largest coordinates, and those as large as the smallest of them."""
        flat = coordinates.reshape(-1)
        sizes = flat.abs()
        least = sizes.topk(min(keep, len(flat))).values[-1]
        where = (sizes >= least).nonzero()[:, 0]
        self._kept.append((where, flat[where]))
        self._sum.index_add_(0, where, flat[where])

    def mean(self) -> Float64[Tensor, "size size"]:
        """Over those that agree; zero where the sum is zero."""
        total, count = torch.zeros_like(self._sum), torch.zeros_like(self._sum)
        signs = self._sum.sign()
        for where, values in self._kept:
            agrees = (values.sign() == signs[where]) & (values != 0)
            total.index_add_(0, where, values * agrees)
            count.index_add_(0, where, agrees.double())
        return (total / count.clamp(min=1)).reshape(self._size, self._size)
