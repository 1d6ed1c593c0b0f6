"""Where every byte of the output's weights goes, fixed before the first of them is computed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from typing import Any

from hfcart.formats.safetensors_file import DTYPE_BYTES

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".ckpt")  # suffixes of files that may hold weights


@dataclass(frozen=True)
class Slot:
    """Where one output tensor lives: shard file, dtype, shape, and absolute byte range [start, end).

    Where it is `transposed`, the file holds the transpose of what `shape` says.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    transposed: bool = False


@dataclass(frozen=True)
class Layout:
    """Every byte of the weights but the tensors' own: shard headers, sizes, slots, and the index if any."""

    headers: dict[str, bytes]
    sizes: dict[str, int]
    slots: dict[str, Slot]
    index: bytes | None


def lay_out(shapes: dict[str, tuple[int, ...]], dtype: str, max_shard_bytes: int, single: str = SINGLE) -> Layout:
    """Cut the tensors into shards, in output order, and fix every offset.

    Args:
        shapes: name -> shape, in output order.
        dtype: safetensors dtype of all of them.
        max_shard_bytes: of tensor data in one shard; a larger tensor gets a shard of its own.
        single: name of the file, where there is one.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    bytes_of = {name: prod(shape) * DTYPE_BYTES[dtype] for name, shape in shapes.items()}
    for name, size in bytes_of.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    count = len(shards)
    files = [single] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    headers, sizes, slots = {}, {}, {}
    for file, names in zip(files, shards, strict=True):
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            end = offset + bytes_of[name]
            entries[name] = {"dtype": dtype, "shape": list(shapes[name]), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format wants tensor data on an 8-byte boundary
        headers[file] = len(text).to_bytes(8, "little") + text
        start = len(headers[file])
        sizes[file] = start + offset
        for name in names:
            low, high = entries[name]["data_offsets"]
            slots[name] = Slot(file, dtype, shapes[name], start + low, start + high)
    index = None
    if count > 1:
        weight_map = {name: slot.file for name, slot in slots.items()}
        total = sum(bytes_of.values())
        index = (json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1) + "\n").encode()
    return Layout(headers, sizes, slots, index)
