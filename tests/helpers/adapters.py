"""LoRA adapters written by peft itself, and what peft makes of them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

_STEP = 0.02  # of what is trained, per entry: adapters and base stay of one ancestor


def write_adapter(
    folder: Path, base: Path, seed: int, *, named: str | None = None, kind: str = "CLIPVisionModel", **config: Any
) -> Path:
    """Let peft wrap a base, "train" what it would train, and save the adapter in `folder`.

    Args:
        folder: made here, with the adapter; what `merge_and_unload` gives lies beside it, in `folder` + "-unloaded".
        base: a folder that transformers loads.
        seed: of the training.
        named: what the adapter calls its base.
        kind: class of transformers that is wrapped.
        config: of peft's LoraConfig.
    """
    import transformers
    from peft import LoraConfig, get_peft_model

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = getattr(transformers, kind).from_pretrained(base)
        wrapped = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 6, **config}))
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data += _STEP * torch.randn_like(parameter)
        wrapped.save_pretrained(folder)
        wrapped.merge_and_unload().save_pretrained(folder.with_name(f"{folder.name}-unloaded"))
    change_config(folder, base_model_name_or_path=named)
    return folder


def unloaded(folder: Path) -> Path:
    """The whole tower that peft made of the adapter in `folder`."""
    return folder.with_name(f"{folder.name}-unloaded")


def change_config(folder: Path, **fields: Any) -> None:
    """Set fields of an adapter's config."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(folder: Path, change: Any) -> None:
    """Put a function of the adapter's tensors in their place."""
    from safetensors.torch import save_file

    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def as_pickle(folder: Path) -> None:
    """Store the adapter's tensors as older releases of peft did."""
    path = folder / "adapter_model.safetensors"
    torch.save(load_file(path), folder / "adapter_model.bin")
    path.unlink()
