"""Weights that only exist as a pickle (`pytorch_model.bin`, `*.pt`): loaded safely, converted once."""

from __future__ import annotations

import threading
from pathlib import Path

import torch
from safetensors.torch import save_file

from hfcart.errors import CorruptFileError


def convert(path: Path, target: Path, where: str) -> None:
    """Write the tensors of a pickled state dict as safetensors, whole or not at all.

    Only tensors are unpickled (`weights_only`): code in the file is refused, never run. The whole file is in
    memory while it is converted.

    Args:
        path: the pickle.
        target: the safetensors file to make.
        where: `repo/file`, for messages.

    Raises:
        CorruptFileError: it is no state dict of tensors, or holds anything but data.
    """
    hint = "Ask its owner for safetensors, or convert it with: transformers' from_pretrained and save_pretrained."
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or broken pickle can raise anything
        raise CorruptFileError(
            f"{where} cannot be loaded as plain weights ({type(error).__name__}): it is broken, or holds code, "
            "which is never run.",
            hint=hint,
        ) from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
    ):
        raise CorruptFileError(f"{where} is not a state dict of tensors.", hint=hint)
    if odd := [name for name, tensor in state.items() if tensor.layout != torch.strided or tensor.is_meta]:
        raise CorruptFileError(f"{where}: tensor {odd[0][:120]} is sparse or has no data.", hint=hint)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: two sources may hold the same pickle and be converted at the same time.
    half = target.with_name(f"{target.name}.{threading.get_ident()}.half")
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, half, {"format": "pt"})
    half.replace(target)
