"""One tower's statistics as a file in the cache: written whole or not at all, proven when it is read."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from hfcart import hub
from hfcart.errors import CorruptFileError, OutputError
from hfcart.formats.safetensors_file import LocalFile, TensorSpec, parse_header, strict_json

Shapes = Mapping[str, tuple[int, ...]]
_KEY = "hfcart"


@dataclass(frozen=True)
class Stored:
    """Statistics of one tower, ready to be read tensor by tensor.

    Attributes:
        sha256: digest of every name and value.
        images: training images they were gathered on.
        undecodable: images of the sample that could not be decoded.
        norm: L2 norm over the whole tower.
    """

    sha256: str
    images: int
    undecodable: int
    norm: float
    _file: LocalFile
    _specs: Mapping[str, TensorSpec]

    def read(self, name: str, into: torch.Tensor) -> None:
        """Fill a contiguous float32 tensor on the CPU with the values of that name. Safe in several threads."""
        flat: Any = into.view(-1).view(torch.uint8).numpy()
        self._file.read_into(memoryview(flat), self._specs[name].start)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def place(kind: str, decides: Any) -> Path:  # noqa: ANN401 (whatever JSON holds)
    """Where statistics of a kind are kept, by all that decides them."""
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return hub.assets("statistics") / kind / f"{digest[:40]}.safetensors"


@contextmanager
def room_in_cache(what: str, folder: Path, size: int) -> Iterator[None]:
    """Make a folder of the cache, and explain what keeps `size` bytes out of it. `what` they are begins the message.

    Raises:
        OutputError: the cache cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{what} ({size / 1e6:.0f} MB) cannot be written into the cache: {error}.",
            hint="Make room, or name another place for it with HF_ASSETS_CACHE.",
        ) from None


def write(path: Path, tensors: Mapping[str, torch.Tensor], *, images: int, undecodable: int, norm: float) -> None:
    """Write statistics (float32) whole or not at all.

    Raises:
        OutputError: the cache cannot be written.
    """
    digest = _Digest()
    for name in sorted(tensors):
        digest.add(name, tensors[name])
    told = {"sha256": digest.hex(), "images": images, "undecodable": undecodable, "norm": norm}
    half = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.half")
    size = sum(tensor.nbytes for tensor in tensors.values())
    with room_in_cache("The statistics of a tower", path.parent, size):
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, half, {_KEY: json.dumps(told)})
            half.replace(path)
        except (OSError, SafetensorError):
            half.unlink(missing_ok=True)
            raise


def open_stored(path: Path, shapes: Shapes, *, proven: bool = True) -> Stored | None:
    """Statistics written before, proven: these tensors, every value finite, and the digest the one written.

    Args:
        path: the file.
        shapes: of the tensors in it.
        proven: False where its values were proven before: then only its header is looked at.

    Returns:
        None if there are none, or if they are not what they should be: they are gathered again then.
    """
    try:
        file = LocalFile(path, path.name)
    except OSError:
        return None
    try:
        found = _described(file, shapes)
        if proven:
            _prove(found, shapes)
        return found
    except (CorruptFileError, ValueError, KeyError, TypeError):
        file.close()
        return None


def _described(file: LocalFile, shapes: Shapes) -> Stored:
    specs = parse_header(file.read, file.size, file.where)
    if {name: (spec.dtype, spec.shape) for name, spec in specs.items()} != {n: ("F32", s) for n, s in shapes.items()}:
        raise ValueError("other tensors")
    header = strict_json(file.read(8, 8 + int.from_bytes(file.read(0, 8), "little")))
    told = strict_json(header["__metadata__"][_KEY].encode())
    return Stored(str(told["sha256"]), int(told["images"]), int(told["undecodable"]), float(told["norm"]), file, specs)


def _prove(found: Stored, shapes: Shapes) -> None:
    digest = _Digest()
    for name in sorted(shapes):
        values = torch.empty(shapes[name])
        found.read(name, values)
        if not bool(torch.isfinite(values).all()):
            raise ValueError("not finite")
        digest.add(name, values)
    if digest.hex() != found.sha256:
        raise ValueError("other values")


class _Digest:
    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        self._sha256.update(f"{name} {list(tensor.shape)}\n".encode())
        values: Any = tensor.contiguous().view(-1).numpy()
        self._sha256.update(memoryview(values).cast("B"))

    def hex(self) -> str:
        return self._sha256.hexdigest()
