"""Merges from Python, and what came out of them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

import hfcart
from hfcart.progress import Progress

MATRIX = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight")


class Listener(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Stop(Progress):
    """Ctrl-C after so many groups."""

    def __init__(self, after: int) -> None:
        self.label, self.left = "", after

    def start(self, label: str, total: int, unit: str) -> None:
        self.label = label

    def advance(self, amount: int) -> None:
        self.left -= self.label == "Merging" and amount > 0
        if self.left == 0:
            raise KeyboardInterrupt


def merged(sources: list[Path], out: Path, **fields: object) -> dict[str, torch.Tensor]:
    hfcart.merge([str(s) for s in sources], out=str(out), **fields)
    return {k: v for path in sorted(out.glob("*.safetensors")) for k, v in load_file(path).items()}


def raw(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: t.contiguous().view(torch.uint8).numpy().tobytes() for name, t in tensors.items()}
