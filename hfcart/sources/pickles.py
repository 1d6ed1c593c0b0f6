"""Weights that only exist as a pickle (`pytorch_model.bin`, `*.pt`): read as data, converted once."""

from __future__ import annotations

import json
import threading
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hfcart.errors import CorruptFileError
from hfcart.formats.pickled_model import state_of
from hfcart.formats.pickled_objects import Refused, Storage, Tensor
from hfcart.formats.safetensors_file import MAX_HEADER
from hfcart.formats.state_dict import load
from hfcart.system.disk import explain_os_errors

_LARGEST = 8 << 20  # bytes of the pickle itself; a state dict of a thousand tensors has 100,000
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what torch.save began its files with before it wrote zip archives
_TIED = 4  # tensors may share a storage; together they are at most so many times the file
_CHUNK = 1 << 24
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Records = dict[str, tuple[int, int]]
"""Key of a storage -> its first byte in the file, and how many."""


def convert(path: Path, target: Path, where: str) -> None:
    """Write the tensors of a pickled state dict as safetensors, whole or not at all.

    Nothing in the file is run, and every size it claims is held against the file before anything of it is allocated.

    Args:
        path: the pickle, of either of torch.save's formats.
        target: the safetensors file to make.
        where: `repo/file`, for messages.

    Raises:
        CorruptFileError: it is no state dict of tensors, or holds anything but data.
        OutputError: there is no room for the target.
    """
    hint = "Ask its owner for safetensors, or convert it with: transformers' from_pretrained and save_pretrained."
    again = "Download it again, ask its owner to, or name a revision that holds a good one: user/name@revision."
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            state, records, storages = _read(file, size)
        except Refused as reason:
            raise CorruptFileError(f"{where} cannot be loaded as plain weights: {reason}.", hint=hint) from None
        except Exception as error:  # a hostile or broken file can lead to anything
            how = f"it is cut short or broken ({type(error).__name__}), of {size:,} bytes" if size else "it is empty"
            raise CorruptFileError(f"{where} cannot be loaded as plain weights: {how}.", hint=again) from None
        try:
            tensors = state_of(state)
            header = _header(tensors, records, storages, size)
        except Refused as reason:
            raise CorruptFileError(f"{where}{reason}.", hint=hint) from None
        with explain_os_errors(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            # A name of its own: two sources may hold the same pickle and be converted at the same time.
            half = target.with_name(f"{target.name}.{threading.get_ident()}.half")
            try:
                with half.open("wb") as out:
                    out.write(header)
                    for tensor in tensors.values():
                        _copy(file, records[tensor.storage.key][0], tensor, out)
                half.replace(target)  # closed, so that whoever opens it finds it whole
            except BaseException:
                half.unlink(missing_ok=True)
                raise


def _read(file: BinaryIO, size: int) -> tuple[Any, Records, dict[str, Storage]]:
    storages: dict[str, Storage] = {}
    if file.read(4) == b"PK\x03\x04":
        pickle, records = _archive(file, size)
        return load(BytesIO(pickle), storages), records, storages
    file.seek(0)
    head = BytesIO(file.read(_LARGEST))
    # One pickle after another: a number, a version, the machine, the state dict, the storages' keys; then the storages.
    if load(head, {}) != _MAGIC or load(head, {}) != _PROTOCOL:
        raise Refused("torch.save did not write it")
    machine, state = load(head, {}), load(head, storages)
    keys = load(head, {})
    if type(machine) is not dict or machine.get("little_endian") is not True or type(keys) is not list:
        raise Refused("its bytes are in an order that this machine does not read")
    records, position = {}, head.tell()
    for key in keys:
        file.seek(position)
        count = int.from_bytes(file.read(8), "little")
        if count != storages[key].count:
            raise Refused(f"it claims two sizes of the storage {key[:40]!r}")
        records[key] = position + 8, count * storages[key].size
        position += 8 + records[key][1]
        if position > size:
            raise Refused(f"it claims {position:,} bytes of storages, the file has {size:,}")
    return state, records, storages


def _archive(file: BinaryIO, size: int) -> tuple[bytes, Records]:
    """The pickle in a zip archive, and where the storages lie in it, which torch.save never compresses."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    names = {entry.filename: entry for entry in entries}
    tops = [name.removesuffix("data.pkl") for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(names) != len(entries) or len(tops) != 1:
        raise Refused("it is no archive of torch.save's")
    (top,) = tops
    if f"{top}constants.pkl" in names:
        raise Refused("it is a TorchScript archive, which is a program")
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise Refused("it is compressed or encrypted, which torch.save never does")

    def place(name: str) -> tuple[int, int]:
        entry = names[name]
        file.seek(entry.header_offset)
        local = file.read(30)
        start = entry.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:], "little")
        if local[:4] != b"PK\x03\x04" or start + entry.file_size > size:
            raise Refused("it is cut short")
        return start, entry.file_size

    def content(name: str, largest: int) -> bytes:
        start, length = place(name)
        if length > largest:
            raise Refused(f"its {name.rpartition('/')[2]} has {length:,} bytes, expected at most {largest:,}")
        file.seek(start)
        return file.read(length)

    if f"{top}byteorder" in names and content(f"{top}byteorder", 10) != b"little":
        raise Refused("its bytes are in an order that this machine does not read")
    data = f"{top}data/"
    return content(f"{top}data.pkl", _LARGEST), {n[len(data) :]: place(n) for n in names if n.startswith(data)}


def _header(tensors: dict[str, Tensor], records: Records, storages: dict[str, Storage], size: int) -> bytes:
    """The head of the safetensors file, once every size is known to be the file's. Raises Refused."""
    entries, position = {}, 0
    for name, tensor in tensors.items():
        storage = storages[tensor.storage.key]
        claimed, held = storage.size * storage.count, records.get(storage.key, (0, -1))[1]
        if claimed > held:
            raise Refused(f": the storage of {name[:120]!r} claims {claimed:,} bytes, the file holds {max(0, held):,}")
        offsets = [position, position := position + tensor.nbytes]
        entries[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
    if position > _TIED * size:
        raise Refused(f": its tensors claim {position:,} bytes together, the file has {size:,}")
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise Refused(f": the names of its tensors take {len(text):,} bytes, expected at most {MAX_HEADER:,}")
    return len(text).to_bytes(8, "little") + text


def _copy(file: BinaryIO, start: int, tensor: Tensor, out: BinaryIO) -> None:
    """A tensor's bytes, in the order of safetensors."""
    file.seek(start + tensor.offset * tensor.size)
    left = tensor.span * tensor.size
    if tensor.contiguous or not left:
        while left:
            left -= out.write(_exactly(file, min(left, _CHUNK)))
        return
    span = torch.frombuffer(bytearray(_exactly(file, left)), dtype=_INTEGERS[tensor.size])
    whole: Any = span.as_strided(tensor.shape, tensor.stride).contiguous().numpy()
    out.write(memoryview(whole).cast("B"))


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise CorruptFileError(
            "A pickle ended while it was read.", hint="Run the same command again when nothing else writes to it."
        )
    return data
