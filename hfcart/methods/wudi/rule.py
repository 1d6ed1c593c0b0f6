"""WUDI-Merging: a merged task vector that interferes least with each one (arXiv 2503.08099, Sec. 3)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hfcart.methods.contract import Merged
from hfcart.methods.shared.task_vectors import onto

_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # Adam's own


def wudi(
    thetas: Float[Tensor, "task m n"], *, base: Float[Tensor, "m n"], steps: int = 300, lr: float = 1e-5
) -> Merged:
    """θ_0 + argmin_τ Σ_t ‖(τ − τ_t) τ_tᵀ‖²_F / ‖τ_t‖²_F, by Adam from τ = Σ_t τ_t.

    With M = Σ τ_tᵀ τ_t / ‖τ_t‖² and N = Σ τ_t τ_tᵀ τ_t / ‖τ_t‖² the gradient is 2 (τ M − N): one product a step, and
    memory that does not grow with T. It is taken in the dtype of `thetas`.

    Args:
        thetas: the T towers' versions of one matrix (or of fused q, k and v), float32 (or float64).
        base: the pretrained version θ_0.
        steps: of Adam, at least 0.
        lr: its learning rate, above 0.
    """
    tau, target, second = torch.zeros_like(base), torch.zeros_like(base), base.new_zeros(base.shape[1], base.shape[1])
    for theta in thetas:
        own = theta - base
        tau += own
        energy = torch.linalg.vector_norm(own).item() ** 2
        if energy > 0:  # a task that left this matrix alone asks nothing of it
            gram = (own.T / energy) @ own
            second += gram
            target.addmm_(own, gram)
    return Merged(onto(base, _adam(tau, second, target, steps, lr)))


def _adam(
    tau: Float[Tensor, "m n"], second: Float[Tensor, "n n"], target: Float[Tensor, "m n"], steps: int, lr: float
) -> Float[Tensor, "m n"]:
    """Kingma and Ba's Adam (arXiv 1412.6980) on a gradient that is known in closed form."""
    first_moment, second_moment = torch.zeros_like(tau), torch.zeros_like(tau)
    gradient = torch.empty_like(tau)
    for step in range(1, steps + 1):
        torch.addmm(target, tau, second, beta=-2.0, alpha=2.0, out=gradient)
        first_moment.lerp_(gradient, 1 - _BETAS[0])
        second_moment.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        root = (second_moment / (1 - _BETAS[1] ** step)).sqrt_().add_(_EPSILON)
        tau.addcdiv_(first_moment, root, value=-lr / (1 - _BETAS[0] ** step))
    return tau
