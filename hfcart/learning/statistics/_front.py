"""Gram matrices of what comes through the merged front, in the cache: a file for each block of a tower."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfcart.clip.tensor_names import PREFIX, Group, layer_and_matrix
from hfcart.learning.statistics import _gram
from hfcart.learning.statistics._images import unreadable
from hfcart.learning.statistics._store import open_stored
from hfcart.records import SourceData
from hfcart.sources.towers import Tower


def root(block: int) -> str:
    """What the names of a block's tensors begin with."""
    return f"{PREFIX}encoder.layers.{block}."


FIRST = root(0)  # as the names of every block's begin where it is the only one


@dataclass(frozen=True)
class FrontGrams:
    """Gram matrices of every block of every tower, in files that are opened whenever they are read: there are many.

    Attributes:
        folder: of the files.
        shapes: name -> shape of the Gram matrices of one block, named as those of the first.
        towers: in canonical order.
        data: what each was gathered on; () until all are.
        known: nothing: a rule takes the slices alone.
    """

    folder: Path
    shapes: dict[str, tuple[int, ...]]
    towers: tuple[Tower, ...]
    data: tuple[SourceData, ...] = ()
    known: dict[str, Any] = field(default_factory=dict)

    def path(self, block: int, place: int) -> Path:
        """The file of a block of the tower in that place."""
        return self.folder / f"{block:03d}-{place:03d}.safetensors"

    def of(self, group: Group, device: torch.device) -> dict[str, Tensor]:
        """`grams`, task × n × n, of a matrix; nothing of any other group."""
        found = layer_and_matrix(group.key)
        if found is None:
            return {}
        block = found[0]
        name = _gram.stored_under(group.key).replace(root(block), FIRST)
        out = torch.empty(len(self.towers), *self.shapes[name])
        for place, tower in enumerate(self.towers):
            stored = open_stored(self.path(block, place), self.shapes, proven=False)
            if stored is None:
                raise unreadable(tower)
            stored.read(name, out[place])
            stored.close()
        return {"grams": out.to(device)}

    def close(self) -> None:
        """Nothing is open."""
