"""SCE: select what varies, weigh by energy, erase the minority (FuseChat, arXiv 2408.07990, Sec. 3.3)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hfcart.maths.moments import double_home
from hfcart.methods.contract import Merged
from hfcart.methods.shared.task_vectors import agreeing, chunks_of, kth_largest, merge_chunks


def sce(thetas: Float[Tensor, " task *shape"], *, base: Float[Tensor, " *shape"], density: float = 0.1) -> Merged:
    """θ_0 + Σ_t w_t τ_t / Σ_t w_t over the selected entries, and of each only the tasks that have the majority's sign.

    Selected are the entries whose variance over tasks is largest; w_t is the share that task t has in the energy of the
    selected entries; the sign is that of their sum over tasks, a plus where it is zero.

    Args:
        thetas: the T towers' versions of one tensor, float32 (or float64), any shape.
        base: the pretrained version θ_0.
        density: share of the entries selected, in (0, 1].
    """
    least = torch.zeros(())
    if density < 1:
        least = kth_largest(torch.cat([taus.var(0, correction=0) for taus, _ in chunks_of(thetas, base)]), density)

    def selected(taus: Tensor) -> Tensor:
        variance = taus.var(0, correction=0)
        return taus if density == 1 else taus * ((variance >= least) & (variance > 0))

    energy = torch.zeros(len(thetas), 1, dtype=torch.float64, device=double_home(base.device))
    for taus, _ in chunks_of(thetas, base):
        energy += selected(taus).square().sum(1, keepdim=True)
    if not energy.sum() > 0:
        return Merged(base.clone())
    weights = energy / energy.sum()

    def rule(taus: Tensor, _: slice) -> Tensor:
        kept = selected(taus)
        majority = torch.where(kept.sum(0) >= 0, 1.0, -1.0).double()
        kept = agreeing(kept, majority)
        share = (weights * (kept != 0)).sum(0)
        return (weights * kept).sum(0) / torch.where(share > 0, share, 1.0)

    return Merged(merge_chunks(thetas, base, rule))
