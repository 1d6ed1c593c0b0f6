"""The only importer of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.utils import logging


def new_tower(config: dict[str, Any], seed: int) -> CLIPVisionModel:
    """A randomly initialised CLIP vision tower; the same seed gives the same weights."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPVisionModel(CLIPVisionConfig(**config))


@torch.no_grad()
def fine_tuned(base: CLIPVisionModel, seed: int, folder: Path) -> None:
    """Save a copy of `base` moved by a task vector of its own: a few directions, stronger in later blocks, over noise.

    Args:
        base: the pretrained tower; not changed.
        seed: of the task vector.
        folder: where save_pretrained writes.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for name, tensor in state.items():
        size = 0.02 * float(tensor.norm()) / tensor.numel() ** 0.5
        tensor += size * torch.randn(tensor.shape, generator=generator)
        if tensor.ndim == 2 and ".layers." in name:
            depth = 1 + int(name.split(".layers.")[1].split(".")[0])
            left = torch.randn(tensor.shape[0], 6, generator=generator)
            tensor += 0.2 * depth * size * left @ torch.randn(6, tensor.shape[1], generator=generator)
    tower = CLIPVisionModel(base.config)
    tower.load_state_dict(state)
    tower.save_pretrained(folder)
