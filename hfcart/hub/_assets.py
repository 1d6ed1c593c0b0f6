"""A place in the Hugging Face cache for what hfcart computes or learns itself."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants


def assets(kind: str) -> Path:
    """The folder of the cache (HF_ASSETS_CACHE) for one kind of files; it need not exist yet."""
    return Path(constants.HF_ASSETS_CACHE) / "hfcart" / kind


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. A cache that cannot be written is no reason to fail."""
    half = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.half")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        half.write_bytes(content)
        half.replace(path)
    except OSError:
        with suppress(OSError):
            half.unlink()
