"""The towers that benches merge: their sizes, and files of random numbers shaped like what fine-tuning leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import measuring  # noqa: F401 - finds the helpers
import torch
from safetensors.torch import save_file
from towers import config, shapes

Sizes = dict[str, Any]

COMMON: Sizes = {"num_channels": 3, "image_size": 224, "layer_norm_eps": 1e-5}
B32: Sizes = {**COMMON, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "patch_size": 32,
              "num_attention_heads": 12, "projection_dim": 512, "hidden_act": "quick_gelu"}  # fmt: skip
L14: Sizes = {**COMMON, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "patch_size": 14,
              "num_attention_heads": 16, "projection_dim": 768, "hidden_act": "quick_gelu"}  # fmt: skip
BIGG: Sizes = {**COMMON, "hidden_size": 1664, "intermediate_size": 8192, "num_hidden_layers": 48, "patch_size": 14,
               "num_attention_heads": 16, "projection_dim": 1280, "hidden_act": "gelu"}  # fmt: skip


def build(folder: Path, count: int, sizes: Sizes, *, dtype: str = "float32", shards: int = 1) -> list[Path]:
    """Towers of these sizes in folder/0, folder/1, …; those that are there already are kept."""
    towers = [folder / f"{sizes['hidden_size']}-{sizes['num_hidden_layers']}" / str(i) for i in range(count)]
    for i, tower in enumerate(towers):
        if not (tower / "config.json").exists():
            _write(tower, i, sizes, dtype, shards)
    return towers


def _write(folder: Path, seed: int, sizes: Sizes, dtype: str, shards: int) -> None:
    """Shard by shard: a base that all share, and noise of its own beside three directions."""
    folder.mkdir(parents=True, exist_ok=True)
    base, own = torch.Generator().manual_seed(1), torch.Generator().manual_seed(100 + seed)
    every = list(shapes(sizes).items())
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
             for i in range(shards)]  # fmt: skip
    held = {}
    for i, file in enumerate(names):
        part = {}
        for name, shape in every[i * len(every) // shards : (i + 1) * len(every) // shards]:
            theta = torch.randn(shape, generator=base).mul_(0.1)
            theta.add_(torch.randn(shape, generator=own), alpha=1.2e-3)
            if len(shape) == 2:
                left, right = (torch.randn(side, 3, generator=own) for side in shape)
                theta.addmm_(left, right.T, alpha=4e-3)
            part[name] = theta.to(getattr(torch, dtype))
        save_file(part, folder / file)
        held |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": held}))
    (folder / "config.json").write_text(json.dumps(config(sizes)))  # last: a tower with one is whole
