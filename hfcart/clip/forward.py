"""The forward pass of a CLIP vision tower that is only read: transformers' modules and weights, fewer bytes moved.

A model's own `forward` writes each of its steps to fresh memory, and its last block what nobody reads. On a CPU that
takes a fifth of the time, half of it in the system, which hands pages out, clears them and takes them back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float

from hfcart.clip.linear import linear

if TYPE_CHECKING:
    from transformers import CLIPVisionModel
    from transformers.models.clip.modeling_clip import CLIPMLP, CLIPAttention

QUICK = 1.702  # of QuickGELU, x * sigmoid(1.702 x)


@torch.inference_mode()
def pooled(model: CLIPVisionModel, pixels: Float[torch.Tensor, "b 3 side side"]) -> Float[torch.Tensor, "b width"]:
    """The tower's `pooler_output` without its gradient, equal to the model's own but for rounding.

    The same operations in the same order, but residuals and QuickGELU are computed in place, and the last block
    computes queries, output and MLP of the class token alone: the pooled output reads no other. Under autocast the
    matrix products are autocast's, as in the model; without it they are those of `hfcart.clip.linear`.

    Args:
        model: in eval mode.
        pixels: normalised, on the model's device.
    """
    x: torch.Tensor = model.pre_layrnorm(model.embeddings(pixels))
    blocks: list[Any] = list(model.encoder.layers)
    for block in blocks:
        tokens = 1 if block is blocks[-1] else x.shape[1]
        update = attention(block.self_attn, block.layer_norm1(x), tokens, linear)
        x = x[:, :tokens]
        x += update
        x += _mlp(block.mlp, block.layer_norm2(x), quick=model.config.hidden_act == "quick_gelu")
    out: torch.Tensor = model.post_layernorm(x[:, 0])
    return out


def attention(
    module: CLIPAttention,
    x: Float[torch.Tensor, "b token width"],
    tokens: int,
    project: Callable[[torch.nn.Linear, torch.Tensor], torch.Tensor],
) -> Float[torch.Tensor, "b {tokens} width"]:
    """Self-attention, of the first `tokens` tokens to all. `project` computes a linear layer."""
    split = (module.num_heads, module.head_dim)
    own = x[:, :tokens]
    projected = project(module.q_proj, own), project(module.k_proj, x), project(module.v_proj, x)
    q, k, v = (part.view(*part.shape[:-1], *split).transpose(1, 2) for part in projected)
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return project(module.out_proj, mixed.transpose(1, 2).flatten(2))


def _mlp(
    module: CLIPMLP, x: Float[torch.Tensor, "b token width"], *, quick: bool
) -> Float[torch.Tensor, "b token width"]:
    wide = linear(module.fc1, x)
    if quick:  # silu(1.702 x) / 1.702, in the memory that is there
        torch.nn.functional.silu(wide.mul_(QUICK), inplace=True).mul_(1 / QUICK)
    else:
        wide = module.activation_fn(wide)
    return linear(module.fc2, wide)
