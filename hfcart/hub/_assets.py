"""A place in the Hugging Face cache for what hfcart computes itself."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants


def assets(kind: str) -> Path:
    """The folder of the cache (HF_ASSETS_CACHE) for one kind of computed files; it need not exist yet."""
    return Path(constants.HF_ASSETS_CACHE) / "hfcart" / kind
