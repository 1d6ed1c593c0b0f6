"""open_clip as it is installed beside the environment, made importable in a process of its own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from torch import library

_KEPT: list[library.Library] = []  # operators go when what defined them goes


def make_importable(libraries: Path) -> None:
    """Put the folder into which `make` installed open_clip behind the script's own on the path.

    Its torchvision is built for one release of torch. Without its operators, which nothing here needs, it cannot be
    imported: where they do not load they are declared.
    """
    sys.path.insert(1, str(libraries))
    try:
        torch.ops.load_library(next((libraries / "torchvision").glob("_C*.so")))
    except OSError:
        operators = library.Library("torchvision", "DEF")
        named = (libraries / "torchvision" / "_meta_registrations.py").read_text()
        for name in set(re.findall(r'(?:register_meta\("|"torchvision::)(\w+)"', named)):
            operators.define(f"{name}(Tensor a) -> Tensor")
        _KEPT.append(operators)
