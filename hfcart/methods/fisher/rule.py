"""Fisher-weighted averaging (Matena and Raffel, arXiv 2111.09832, Eq. 4), with the diagonal of each task's Fisher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hfcart.maths.moments import double_home, mean_of, run_of
from hfcart.methods.contract import Merged
from hfcart.methods.shared.task_vectors import onto


def fisher(
    thetas: Float[Tensor, " task *shape"],
    fishers: Float[Tensor, " task *shape"],
    norms: Sequence[float],
    *,
    floor: float = 1e-6,
) -> Merged:
    """Σ_t w_t θ_t / Σ_t w_t, entry by entry, where w_t = max(F_t, floor) / ‖F_t‖.

    Taken as the average plus the weighted mean of the towers' differences from it: where the towers agree, or their
    weights do, the average comes out with its own bits.

    Args:
        thetas: the T towers' versions of one tensor, float32 (or float64), any shape.
        fishers: F_t ≥ 0, the diagonal of each tower's Fisher information on its own task.
        norms: ‖F_t‖ ≥ 0, the L2 norm over the whole tower, before the floor.
        floor: F_t is raised to it, in [0, ∞): a parameter that no image needs still counts a little.

    Raises:
        ValueError: a norm is not above 0.
    """
    if not all(norm > 0 for norm in norms):
        raise ValueError(f"norms of {list(norms)}: expected all above 0")
    home = double_home(thetas.device)
    high, low = (mean.reshape(-1) for mean in mean_of(thetas))
    flat, weights = thetas.reshape(len(thetas), -1), fishers.reshape(len(thetas), -1)
    out = torch.empty_like(high)
    run = run_of(thetas.device)
    for start in range(0, len(high), run):
        part = slice(start, start + run)
        rest = low[part].to(home).double()
        total, update = torch.zeros_like(rest), torch.zeros_like(rest)
        for theta, weight, norm in zip(flat[:, part], weights[:, part], norms, strict=True):
            counts = weight.to(home).double().clamp_(min=floor) / norm
            total += counts
            update += counts * (theta.to(home).double() - high[part].to(home) - rest)
        # An entry that no tower gives any weight (floor 0): nothing tells the towers apart, so their mean.
        update = torch.where(total > 0, update / total, 0.0)
        out[part] = onto(high[part], rest + update)
    return Merged(out.reshape(thetas.shape[1:]))
