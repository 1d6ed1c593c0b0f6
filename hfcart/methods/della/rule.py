"""DELLA: drop small entries more often than large ones, elect signs, average (arXiv 2406.11617, Sec. 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hfcart.maths.moments import run_of
from hfcart.methods.contract import Merged
from hfcart.methods.shared.task_vectors import (
    agreeing,
    disjoint_mean,
    draws,
    generator_of,
    magnitudes,
    onto,
    task_vector,
)


def della(
    thetas: Float[Tensor, " task *shape"],
    key: str,
    *,
    base: Float[Tensor, " *shape"],
    scale: float = 1.0,
    density: float = 0.3,
    epsilon: float = 0.1,
    seed: int = 0,
) -> Merged:
    """θ_0 + λ times the mean of the pruned task vectors that have the sign of their sum, entry by entry.

    MagPrune: of a row's n entries the one with rank r (0 is the largest) is dropped with probability
    p_r = p − ε/2 + ε r / n, and divided by 1 − p_r if it stays. Probabilities end at 0 and 1.

    Args:
        thetas: the T towers' versions of one tensor, float32 (or float64), any shape; its first axis counts rows, and
            a vector is one row.
        key: name of the group: with the seed and the tower's place it decides the masks.
        base: the pretrained version θ_0.
        scale: λ, any finite number.
        density: 1 − p, the share that stays on average, in (0, 1].
        epsilon: ε, how far the probabilities are apart, in [0, 1].
        seed: of the masks.
    """
    streams = [generator_of(seed, key, task) for task in range(len(thetas))]
    rows = len(base) if base.ndim > 1 else 1
    start, stack = base.reshape(rows, -1), thetas.reshape(len(thetas), rows, -1)
    out = torch.empty_like(start)
    step = max(1, run_of(base.device) // start.shape[1])
    for begin in range(0, rows, step):
        part = slice(begin, begin + step)
        kept = _pruned([task_vector(theta[part], start[part]) for theta in stack], streams, density, epsilon)
        flat = kept.reshape(len(kept), -1)
        update = scale * disjoint_mean(agreeing(flat, flat.sum(0).sign()))
        out[part] = onto(start[part], update.reshape(start[part].shape))
    return Merged(out.reshape(base.shape))


def _pruned(
    taus: Sequence[Float64[Tensor, "row column"]], streams: Sequence[torch.Generator], density: float, epsilon: float
) -> Float64[Tensor, "task row column"]:
    out = []
    numbers = draws(streams, taus[0].numel(), taus[0].device)
    for tau, own in zip(taus, numbers, strict=True):
        columns = tau.shape[1]
        # Equal magnitudes keep their order.
        order = magnitudes(tau).argsort(dim=1, descending=True, stable=True)
        places = torch.arange(columns, dtype=torch.float64, device=tau.device)
        rank = torch.empty_like(tau).scatter_(1, order, places.expand_as(tau))
        stay = (density + epsilon / 2 - epsilon * rank / columns).clamp_(0, 1)
        drawn = own.view_as(tau) < stay
        out.append(torch.where(drawn, tau / stay.clamp(min=torch.finfo(torch.float64).tiny), 0.0))
    return torch.stack(out)
