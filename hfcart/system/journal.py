"""What is done, one line of JSON each, in a file that survives kills: the only journal there is.

The first line is the fingerprint of the work. A line counts once its newline is there. The first that is torn or
garbled was never written, nor was anything behind it: the next append takes its place.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hfcart.system.disk import sync, write_all

Line = dict[str, Any]


class Journal:
    """Lines of one piece of work. Only one process, and one thread at a time, may append.

    Attributes:
        path: the file; the first append makes it, and its folder.
        fingerprint: of the work.
        lines: what was noted so far, earlier runs included.
        foreign: whether the file holds other work; nothing of it is in `lines`, and the next append replaces it.
    """

    def __init__(self, path: Path, fingerprint: str, *, synced: bool = True) -> None:
        """Read what is there.

        Args:
            path: the file.
            fingerprint: digest of all that decides the lines; those under another are not believed.
            synced: whether a line must be on the disk before it counts. Not where each line is proven by other bytes.
        """
        self.path, self.fingerprint = path, fingerprint
        self._header = {"fingerprint": fingerprint}
        self._synced = synced
        found, length = whole_lines(path)
        fits = found[:1] == [self._header]
        self.foreign = bool(found) and not fits
        self.lines = found[1:] if fits else []
        self._length = length if fits else 0

    @property
    def new(self) -> bool:
        """Whether nothing of this work was ever noted, not even its fingerprint."""
        return not self._length

    def append(self, *lines: Line) -> None:
        """Note these, in one write; without any, make sure that the file is there. Raises OSError."""
        new = self.new
        data = b"".join(map(_encoded, [*([self._header] if new else []), *lines]))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(descriptor, self._length)  # what a kill, or a write that failed, left of a line
            write_all(descriptor, data, self._length)
            if self._synced:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new and self._synced:
            sync(self.path.parent)
        self._length += len(data)
        self.lines += lines


def whole_lines(path: Path) -> tuple[list[Line], int]:
    """The whole lines at the start of a file, the fingerprint's included, and their length in bytes; [] without one."""
    lines: list[Line] = []
    length = 0
    for text in path.read_bytes().split(b"\n")[:-1] if path.is_file() else ():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict):
            break
        lines.append(line)
        length += len(text) + 1
    return lines, length


def _encoded(line: Line) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"
