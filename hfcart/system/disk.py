"""Writing to this machine's disk: whole, synced, its space reserved, and errors that say what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from hfcart.errors import OutputError


class explain_os_errors:
    """Context manager: an OSError on the output becomes an OutputError that says what to do."""

    def __init__(self, path: Path) -> None:
        """Take the path that messages name."""
        self._path = path

    def __enter__(self) -> None:
        """Nothing to set up."""

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        """Translate; anything that is no OSError passes."""
        if not isinstance(error, OSError):
            return
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(
                f"There is no room for {self._path}: {error.strerror}.",
                hint="Free some space, or give an --out on another disk.",
            ) from error
        raise OutputError(
            f"{self._path} cannot be written: {error.strerror}.", hint="Give an --out that you may write to."
        ) from error


def write_all(descriptor: int, data: bytes | memoryview, start: int) -> None:
    """Write all of `data` at byte `start`. Raises OSError."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], start + done)


def sync(path: Path) -> None:
    """fsync a file or a folder. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve(descriptor: int, size: int) -> None:
    """Reserve a file's bytes on the disk, so that a full disk fails now and not after an hour of work."""
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)


def standing_parent(path: Path) -> Path:
    """The nearest of the folders around `path` that is there already (it may be a file where a folder should be)."""
    return next(folder for folder in path.absolute().parents if folder.exists())
