"""The forward pass of a CLIP vision tower whose weights have gradients, several batches' of them added up.

What transformers computes, of the same modules. It keeps less for the backward pass, does not compute what the pooled
output does not depend on, and a weight's gradient is added to those of the batches before it by the product of
matrices that gives it, not written to fresh memory first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from hfcart.clip.forward import QUICK, attention
from hfcart.clip.linear import product
from hfcart.records import Architecture

if TYPE_CHECKING:
    from transformers import CLIPVisionModel
    from transformers.models.clip.modeling_clip import CLIPMLP


def room_for_images(tower: Architecture, device: torch.device) -> int:
    """How many images may go through a tower at once so that what the backward pass needs fits an eighth of a GPU.

    1 on anything else: on a CPU nothing is gained, and memory is what there is least of.
    """
    if device.type != "cuda":
        return 1
    tokens = (tower.image_size // tower.patch_size) ** 2 + 1
    # Of each block: its input and what its first norm makes of it, q, k, v, what attention gives, the same for the MLP,
    # and three times its inner width.
    numbers = tokens * tower.num_hidden_layers * (8 * tower.hidden_size + 3 * tower.intermediate_size)
    memory: int = torch.cuda.get_device_properties(device).total_memory
    return max(1, memory // 8 // (4 * numbers))


def pooled_to_learn(model: CLIPVisionModel, pixels: Float[Tensor, "b 3 side side"]) -> Float[Tensor, "b width"]:
    """The tower's `pooler_output`, equal to the model's own but for rounding, as is its gradient.

    In the last block queries, output and MLP are the class token's alone. A backward pass adds the gradients of the
    weights of linear layers to their `grad` itself: `torch.autograd.grad` does not see them. Under autocast the matrix
    products are autocast's.

    Args:
        model: in eval mode. Those of its parameters that require a gradient get one.
        pixels: normalised, on the model's device.
    """
    x: Tensor = model.pre_layrnorm(model.embeddings(pixels))
    blocks: list[Any] = list(model.encoder.layers)
    quick = model.config.hidden_act == "quick_gelu"
    for block in blocks:
        tokens = 1 if block is blocks[-1] else x.shape[1]
        x = x[:, :tokens] + attention(block.self_attn, block.layer_norm1(x), tokens, _linear)
        x = x + _mlp(block.mlp, block.layer_norm2(x), quick=quick)
    out: Tensor = model.post_layernorm(x[:, 0])
    return out


def _mlp(module: CLIPMLP, x: Float[Tensor, "b token width"], *, quick: bool) -> Float[Tensor, "b token width"]:
    wide = _linear(module.fc1, x)
    # x · sigmoid(1.702 x), of which autograd keeps one tensor and not two.
    active = torch.nn.functional.silu(QUICK * wide) * (1 / QUICK) if quick else module.activation_fn(wide)
    return _linear(module.fc2, active)


def _linear(module: torch.nn.Linear, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows out"]:
    out: Tensor = _Linear.apply(x, module.weight, module.bias)  # type: ignore[no-untyped-call]
    return out


class _Linear(torch.autograd.Function):
    """x Wᵀ + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        rows = gradients[0].flatten(0, -2)
        if need_weight:
            _add_gradient(weight, rows, x.flatten(0, -2).to(rows.dtype))
        of_x = product(gradients[0], weight.to(rows.dtype).T).to(x.dtype) if need_x else None
        return of_x, None, rows.sum(0) if need_bias else None


def _add_gradient(weight: Tensor, rows: Float[Tensor, "row out"], x: Float[Tensor, "row width"]) -> None:
    """weight.grad += rowsᵀ x."""
    if weight.grad is None:
        weight.grad = torch.mm(rows.T, x).to(weight.dtype)
    elif weight.dtype == rows.dtype:
        weight.grad.addmm_(rows.T, x)
    else:
        weight.grad.add_(torch.mm(rows.T, x))
