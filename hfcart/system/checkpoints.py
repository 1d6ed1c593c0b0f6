"""Checkpoints of a training: each is there whole and proven, or not at all.

`step-00000100.safetensors` holds the tensors; `step-00000100.json`, written after it is safe on the disk, their
sha256. A file without its JSON, or with other bytes than it says, never was a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hfcart.formats.safetensors_file import sha256_of
from hfcart.system.disk import explain_os_errors, sync

FOLDER = "checkpoints"
KEPT = 2  # the newest, and the one before in case the disk spoils it


class Checkpoints:
    """The checkpoints in one folder, by the number of steps that were done."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; it is made with the first checkpoint."""
        self.folder = folder

    def steps(self) -> list[int]:
        """Steps that there seem to be checkpoints of, ascending."""
        names = [path.stem.removeprefix("step-") for path in self.folder.glob("step-*.json")]
        return sorted(int(name) for name in names if name.isdecimal())

    def newest(self) -> tuple[int, dict[str, torch.Tensor]] | None:
        """The newest checkpoint that its digest proves: steps done, and the tensors on the CPU. None without one.

        One that is not proven is removed: it must not count as the newest when the next is saved.
        """
        for step in reversed(self.steps()):
            weights, digest = self._paths(step)
            try:
                if json.loads(digest.read_bytes())["sha256"] == sha256_of(weights):
                    return step, load_file(weights)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError):
                pass
            self._remove(step)
        return None

    def save(self, step: int, tensors: dict[str, torch.Tensor]) -> None:
        """Save the state after `step` steps. Raises OutputError if the disk is full.

        The newest one stays until this one is whole; what is older goes first, to make room.
        """
        with explain_os_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in self.steps()[: 1 - KEPT]:
                self._remove(old)
            weights, digest = self._paths(step)
            digest.unlink(missing_ok=True)
            try:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, weights)
            except SafetensorError as error:  # its own wrapping of the system's errors
                raise OSError(28 if "os error 28" in str(error) else 5, str(error)[:200]) from error
            sync(weights)
            unfinished = digest.with_suffix(".json.new")
            unfinished.write_text(json.dumps({"sha256": sha256_of(weights)}))
            sync(unfinished)
            unfinished.replace(digest)
            sync(self.folder)

    def _remove(self, step: int) -> None:
        weights, digest = self._paths(step)
        digest.unlink(missing_ok=True)  # first: without it the other is nothing
        weights.unlink(missing_ok=True)

    def _paths(self, step: int) -> tuple[Path, Path]:
        name = f"step-{step:08d}"
        return self.folder / f"{name}.safetensors", self.folder / f"{name}.json"


def digest_of(tensors: dict[str, torch.Tensor]) -> str:
    """sha256 over names and bytes of float32 tensors, in name order."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        whole.update(name.encode())
        whole.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()
