"""DARE: drop entries of the task vectors at random and rescale the rest (arXiv 2311.03099, Sec. 3.2)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from hfcart.methods.contract import Merged
from hfcart.methods.shared.task_vectors import draws, generator_of, merge_chunks


def dare(
    thetas: Float[Tensor, " task *shape"],
    key: str,
    *,
    base: Float[Tensor, " *shape"],
    scale: float = 0.3,
    density: float = 0.1,
    seed: int = 0,
) -> Merged:
    """θ_0 + λ Σ_t (m_t ⊙ τ_t) / (1 − p), with every entry of m_t one with probability 1 − p, else zero.

    Args:
        thetas: the T towers' versions of one tensor, float32 (or float64), any shape.
        key: name of the group: with the seed and the tower's place it decides the masks.
        base: the pretrained version θ_0.
        scale: λ, any finite number.
        density: 1 − p, the share that stays, in (0, 1].
        seed: of the masks.
    """
    streams = [generator_of(seed, key, task) for task in range(len(thetas))]

    def rule(taus: Tensor, _: slice) -> Tensor:
        mask = draws(streams, taus.shape[1], taus.device) < density
        return scale * (taus * mask).sum(0) / density

    return Merged(merge_chunks(thetas, base, rule))
