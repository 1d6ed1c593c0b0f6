"""The towers of towers.py as other libraries store them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from towers import weights

WIDE = {
    "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1, "num_channels": 3,
    "image_size": 16, "patch_size": 8, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 24,
}  # fmt: skip
"""A tower whose heads are 64 wide, as OpenCLIP's are where nothing says otherwise."""


def open_clip_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tower under the names of open_clip.model.CLIP, q, k and v fused, the projection transposed."""
    out: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if "k_proj" in name or "v_proj" in name:
            continue
        own = name.removeprefix("vision_model.").replace("pre_layrnorm", "ln_pre").replace("post_layernorm", "ln_post")
        own = own.replace("embeddings.patch_embedding", "conv1").replace("embeddings.class_", "class_")
        own = own.replace("embeddings.position_embedding.weight", "positional_embedding")
        own = own.replace("encoder.layers", "transformer.resblocks").replace("self_attn", "attn")
        own = re.sub(r"layer_norm([12])", r"ln_\1", own).replace("fc1", "c_fc").replace("fc2", "c_proj")
        if "q_proj" in own:
            own = own.replace("q_proj.", "in_proj_")
            tensor = torch.cat([tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
        if name == "visual_projection.weight":
            own, tensor = "proj", tensor.T
        out[f"visual.{own}"] = tensor.contiguous()
    return out


def open_clip_config(cfg: dict = WIDE) -> dict:
    """The open_clip_config.json of such a tower."""
    return {
        "model_cfg": {
            "embed_dim": cfg["projection_dim"],
            "quick_gelu": cfg["hidden_act"] == "quick_gelu",
            "vision_cfg": {
                "image_size": cfg["image_size"],
                "layers": cfg["num_hidden_layers"],
                "width": cfg["hidden_size"],
                "head_width": cfg["hidden_size"] // cfg["num_attention_heads"],
                "mlp_ratio": cfg["intermediate_size"] / cfg["hidden_size"],
                "patch_size": cfg["patch_size"],
            },
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"},
    }


def write_open_clip(
    folder: Path,
    seed: int,
    cfg: dict = WIDE,
    *,
    prefix: str = "",
    text: bool = True,
    config: bool = True,
    file: str = "open_clip_model.safetensors",
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a tower as OpenCLIP does, text tower included, as safetensors or as a pickle (by the file's ending)."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = open_clip_names({k: v.to(dtype) for k, v in weights(seed, cfg, projection=True).items()})
    if text:
        tensors |= {
            "positional_embedding": torch.ones(7, 8),
            "token_embedding.weight": torch.ones(9, 8),
            "transformer.resblocks.0.attn.in_proj_weight": torch.ones(24, 8),
            "ln_final.weight": torch.ones(8),
            "text_projection": torch.ones(8, cfg["projection_dim"]),
            "logit_scale": torch.tensor(4.6),
        }
    tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    if file.endswith(".safetensors"):
        save_file(tensors, folder / file)
    else:
        torch.save(tensors, folder / file)
    if config:
        (folder / "open_clip_config.json").write_text(json.dumps(open_clip_config(cfg)))
    return folder
