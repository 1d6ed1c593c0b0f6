"""Strict safetensors: one header parser for local files and ranged remote reads, and exact reads of tensors.

The Hub client's own header reader accepts duplicate names and offsets past the end. This one refuses
whatever the format does not allow, and bounds every size before it allocates.
Format: https://huggingface.co/docs/safetensors (8-byte little-endian header length, JSON, tensor bytes).
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from hfcart.errors import CorruptFileError
from hfcart.quoting import quoted

MAX_HEADER = 100_000_000  # bytes; the format's own limit
MAX_INDEX = 50_000_000  # bytes of a *.index.json
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4,
               "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8}  # fmt: skip

ReadRange = Callable[[int, int], bytes]
"""(start, end) -> the bytes [start, end) of a file, exactly."""


@dataclass(frozen=True)
class TensorSpec:
    """One stored tensor: its name in the file, safetensors dtype, shape, and absolute byte range in `file`.

    Where it is `transposed`, the file holds the transpose of what `shape` says.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    end: int
    transposed: bool = False


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {quoted(twice, 120)} occurs twice")
    return out


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def strict_json(data: bytes) -> Any:  # noqa: ANN401 (whatever the JSON holds)
    """json.loads that refuses duplicate names, NaN and Infinity. Raises ValueError (for bad UTF-8 too)."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_header(read: ReadRange, size: int, where: str) -> dict[str, TensorSpec]:
    """Read and check the header of a safetensors file.

    Args:
        read: gives the bytes of a range; only the header's are asked for.
        size: of the whole file, bytes.
        where: `repo/file.safetensors`, for messages; its last part becomes TensorSpec.file.

    Returns:
        name -> TensorSpec, in file order.

    Raises:
        CorruptFileError: whatever breaks the format: a header that is too long, no JSON, names twice, unknown
            dtypes, shapes and offsets that disagree, overlaps, gaps, or a body that is cut short.
    """

    def bad(what: str) -> CorruptFileError:
        return CorruptFileError(
            f"{where} is not a valid safetensors file: {what}.",
            hint="Ask its owner to save it again, or name a revision that holds a good one: user/name@revision.",
        )

    if size < 8:
        raise bad(f"it has {size} bytes, expected at least 8")
    length = int.from_bytes(read(0, 8), "little")
    if length > MAX_HEADER:
        raise bad(f"its header claims {length:,} bytes, expected at most {MAX_HEADER:,}")
    if 8 + length > size:
        raise bad(f"its header claims {length:,} bytes, the file has {size:,}")
    try:
        entries = strict_json(read(8, 8 + length))
    except ValueError as error:
        raise bad(f"its header is not valid JSON ({error})") from None
    if not isinstance(entries, dict):
        raise bad("its header is not a JSON object")
    entries.pop("__metadata__", None)
    file = where.rsplit("/", 1)[-1]
    specs = [_tensor_spec(name, entry, 8 + length, file, bad) for name, entry in entries.items()]
    specs.sort(key=lambda spec: (spec.start, spec.end))
    position = 8 + length
    for spec in specs:
        if spec.start != position:
            what = "overlaps the one before it" if spec.start < position else "leaves a gap before it"
            raise bad(f"tensor {quoted(spec.name)} {what} (starts at byte {spec.start:,}, expected {position:,})")
        position = spec.end
    if position > size:
        raise bad(f"it is cut short: its tensors end at byte {position:,}, the file has {size:,}")
    if position < size:
        raise bad(f"it has {size - position:,} bytes after its last tensor")
    return {spec.name: spec for spec in specs}


def _tensor_spec(
    name: str, entry: object, data_start: int, file: str, bad: Callable[[str], CorruptFileError]
) -> TensorSpec:
    def naturals(value: object, count: int | None = None) -> bool:
        return (
            isinstance(value, list)
            and (count is None or len(value) == count)
            and all(isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 1 << 62 for x in value)
        )

    shown = quoted(name, 120)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise bad(f"tensor {shown} is not described by exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPE_BYTES if isinstance(dtype, str) else True:
        raise bad(f"tensor {shown} has the unknown dtype {quoted(str(dtype), 20)}")
    if not naturals(shape) or len(shape) > 16:
        raise bad(f"tensor {shown} has a shape that is not a short list of sizes")
    if not naturals(offsets, 2) or offsets[0] > offsets[1]:
        raise bad(f"tensor {shown} has data_offsets that are not [begin, end]")
    expected = prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        raise bad(f"tensor {shown} has {offsets[1] - offsets[0]:,} bytes, its shape and dtype need {expected:,}")
    return TensorSpec(name, dtype, tuple(shape), file, data_start + offsets[0], data_start + offsets[1])


def parse_index(data: bytes, present: Sequence[str], where: str) -> dict[str, str]:
    """Tensor name -> shard file of an index, each shard proven to be in the same folder of the pinned tree.

    Args:
        data: the index's bytes.
        present: file names that the repo or folder really has at its top level.
        where: `repo/model.safetensors.index.json`, for messages.

    Raises:
        CorruptFileError: no valid index, a name that leaves the folder, or a shard that is not there.
    """
    hint = "Ask its owner to upload the model again."
    try:
        found = strict_json(data)
    except ValueError as error:
        raise CorruptFileError(f"{where} is not a valid index: {error}.", hint=hint) from None
    weight_map = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(x, str) for x in weight_map.values()):
        raise CorruptFileError(f"{where} is not a valid index: it maps no tensor to a shard.", hint=hint)
    for shard in sorted(set(weight_map.values())):
        if "/" in shard or "\\" in shard or shard in (".", "..") or "\0" in shard:
            raise CorruptFileError(f"{where} names the file {quoted(shard, 120)}, outside its own folder.", hint=hint)
        if not shard.endswith(".safetensors"):
            raise CorruptFileError(f"{where} names {quoted(shard, 120)}, which is no safetensors file.", hint=hint)
        if shard not in present:
            raise CorruptFileError(f"{where} names the shard {quoted(shard, 120)}, which is not there.", hint=hint)
    return weight_map


class LocalFile:
    """A file read by position. Never mapped: mapped pages would count as resident memory.

    Safe to use from several threads at once.
    """

    def __init__(self, path: Path, where: str) -> None:
        """Open `path`; `where` is its name in messages."""
        self.where, self._path = where, path
        # (start, end) -> CRC-32 of what was there when it was first read, or hashed. Times of change would say less:
        # a write within a clock's tick, or through a mapping, leaves them as they are.
        self._seen: dict[tuple[int, int], int] = {}
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.size = os.fstat(self._fd).st_size

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: it opens the file again, and reads the bytes that were read here, or none."""
        return _opened_again, (self._path.absolute(), self.where, self.size, self._seen)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the bytes from `start` on.

        Raises:
            CorruptFileError: the file ends before, or holds other bytes there than were hashed.
        """
        done = 0
        while done < len(buffer):
            got = os.preadv(self._fd, [buffer[done:]], start + done)
            if not got:
                raise CorruptFileError(
                    f"{self.where} ended at byte {start + done:,}, {len(buffer) - done:,} bytes too early: "
                    "it changed while it was read.",
                    hint="Run the same command again when nothing else writes to it.",
                )
            done += got
        seen = self._seen.get((start, start + len(buffer)))
        if seen is not None and seen != zlib.crc32(buffer):
            raise self._changed(start, start + len(buffer))

    def read(self, start: int, end: int) -> bytes:
        """The bytes [start, end): the same ones each time, or CorruptFileError."""
        buffer = bytearray(end - start)
        self.read_into(memoryview(buffer), start)
        self._seen.setdefault((start, end), zlib.crc32(buffer))
        return bytes(buffer)

    def sealed(self, ranges: Iterable[tuple[int, int]]) -> str:
        """sha256 of the whole file. From now on these ranges are read as they were hashed, or not at all.

        Args:
            ranges: (start, end) of what will be read; they do not overlap, nor with what was read before.

        Raises:
            CorruptFileError: the file changed since it was opened.
        """
        digest = hashlib.sha256()
        position = 0
        for start, end in [*sorted({*ranges, *self._seen}), (self.size, self.size)]:
            self._add(digest, position, start)
            crc = self._add(digest, start, end)
            if self._seen.setdefault((start, end), crc) != crc:
                raise self._changed(start, end)
            position = end
        if (size := os.fstat(self._fd).st_size) != self.size:
            raise self._changed(self.size, size)
        return digest.hexdigest()

    def _add(self, digest: hashlib._Hash, start: int, end: int) -> int:
        """Add the bytes [start, end) to a digest. Returns their CRC-32."""
        crc, buffer = 0, memoryview(bytearray(min(1 << 20, max(0, end - start))))
        for at in range(start, end, 1 << 20):
            part = buffer[: min(len(buffer), end - at)]
            self.read_into(part, at)
            digest.update(part)
            crc = zlib.crc32(part, crc)
        return crc

    def _changed(self, start: int, end: int) -> CorruptFileError:
        return CorruptFileError(
            f"{self.where} changed while it was read: its bytes {start:,} to {end:,} are not what they were.",
            hint="Run the same command again when nothing else writes to it.",
        )

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


def _opened_again(path: Path, where: str, size: int, seen: dict[tuple[int, int], int]) -> LocalFile:
    try:
        file = LocalFile(path, where)
    except OSError as error:
        raise CorruptFileError(
            f"{where} cannot be read in every process: {error.strerror}.",
            hint="Processes on several hosts need sources, HF_HOME and --out on a disk that all of them share.",
        ) from None
    if file.size != size:
        raise file._changed(size, file.size)
    file._seen = seen
    return file


def sha256_of(path: Path) -> str:
    """sha256 of a file, 64 hex digits, in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
