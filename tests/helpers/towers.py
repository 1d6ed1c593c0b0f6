"""Small real CLIP towers on disk, in every form the Hub has them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_channels": 3,
    "image_size": 16,
    "patch_size": 8,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 24,
}


def shapes(cfg: dict = TINY, *, projection: bool = False) -> dict[str, tuple[int, ...]]:
    """Prefixed tensor names and shapes of a tower with this config."""
    d, f, p = cfg["hidden_size"], cfg["intermediate_size"], cfg["patch_size"]
    n = (cfg["image_size"] // p) ** 2 + 1
    out: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (d,),
        "vision_model.embeddings.patch_embedding.weight": (d, cfg["num_channels"], p, p),
        "vision_model.embeddings.position_embedding.weight": (n, d),
    }
    for norm in ("pre_layrnorm", "post_layernorm"):
        out |= {f"vision_model.{norm}.weight": (d,), f"vision_model.{norm}.bias": (d,)}
    for i in range(cfg["num_hidden_layers"]):
        base = f"vision_model.encoder.layers.{i}."
        for proj in ("q_proj", "k_proj", "v_proj", "out_proj"):
            out |= {f"{base}self_attn.{proj}.weight": (d, d), f"{base}self_attn.{proj}.bias": (d,)}
        out |= {f"{base}mlp.fc1.weight": (f, d), f"{base}mlp.fc1.bias": (f,)}
        out |= {f"{base}mlp.fc2.weight": (d, f), f"{base}mlp.fc2.bias": (d,)}
        for norm in ("layer_norm1", "layer_norm2"):
            out |= {f"{base}{norm}.weight": (d,), f"{base}{norm}.bias": (d,)}
    if projection:
        out["visual_projection.weight"] = (cfg["projection_dim"], d)
    return out


def weights(seed: int, cfg: dict = TINY, *, projection: bool = False, delta: float = 0.004) -> dict[str, torch.Tensor]:
    """A tower: one shared random base plus a low-rank-plus-noise task vector of its own (seed 0: the base)."""
    base, own = torch.Generator().manual_seed(1234), torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in shapes(cfg, projection=projection).items():
        theta = torch.randn(shape, generator=base) * 0.1 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        if seed:
            tau = torch.randn(shape, generator=own) * 0.3
            if len(shape) == 2:
                tau = tau + torch.randn(shape[0], 3, generator=own) @ torch.randn(3, shape[1], generator=own)
            theta = theta + delta * tau
        out[name] = theta
    return out


def config(cfg: dict = TINY, architecture: str = "CLIPVisionModel") -> dict:
    """The config.json of a tower."""
    return {"architectures": [architecture], "model_type": "clip_vision_model", **cfg}


def write_tower(
    folder: Path,
    seed: int,
    cfg: dict = TINY,
    *,
    form: str = "prefixed",
    dtype: torch.dtype = torch.float32,
    projection: bool = False,
    shards: int = 1,
    card: str | None = None,
    delta: float = 0.004,
) -> Path:
    """Write a tower: form is prefixed, flat or full (inside a CLIPModel with a text tower beside it)."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        k: v.to(dtype).contiguous()
        for k, v in weights(seed, cfg, projection=projection or form == "full", delta=delta).items()
    }
    conf = config(cfg)
    if form == "flat":
        tensors = {k.removeprefix("vision_model."): v for k, v in tensors.items()}
    if form == "full":
        tensors |= {
            "text_model.embeddings.token_embedding.weight": torch.ones(7, 8, dtype=dtype),
            "text_projection.weight": torch.ones(cfg["projection_dim"], 8, dtype=dtype),
            "logit_scale": torch.tensor(2.0, dtype=dtype),
            "vision_model.embeddings.position_ids": torch.arange((cfg["image_size"] // cfg["patch_size"]) ** 2 + 1)[
                None
            ],
        }
        conf = {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": cfg["projection_dim"],
            "vision_config": {**cfg, "model_type": "clip_vision_model"},
            "text_config": {"hidden_size": 8},
        }
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map = {}
        for i in range(shards):
            file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            part = {k: tensors[k] for k in names[i::shards]}
            save_file(part, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(conf))
    if card is not None:
        (folder / "README.md").write_text(card)
    return folder
