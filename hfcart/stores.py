"""Where a source's files are: a local folder, or a Hub repo pinned to a commit. One interface for both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hfcart import hub
from hfcart.errors import CorruptFileError
from hfcart.reader import LocalFile

SMALL = 1 << 20  # bytes; no config.json or README is larger


class LocalStore:
    """A folder on this machine. Messages know it by its base name, never by its path."""

    repo = revision = commit = None

    def __init__(self, folder: Path) -> None:
        """List the files at the folder's top level."""
        self.folder = folder
        self.label = folder.resolve().name
        self.sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}

    def small(self, name: str, limit: int = SMALL) -> bytes | None:
        """A small file's bytes, None if there is no such file. Raises CorruptFileError if it is above `limit`."""
        if name not in self.sizes:
            return None
        if self.sizes[name] > limit:
            raise CorruptFileError(f"{self.label}/{name} has {self.sizes[name]:,} bytes, expected at most {limit:,}.")
        return (self.folder / name).read_bytes()

    def digest(self, name: str) -> str | None:
        """The sha256 that is known without reading the file: none here."""
        return None

    def here(self, name: str) -> bool:
        """Whether the file needs no download."""
        return True

    def fetch(self, name: str, on_bytes: Callable[[int], None] | None = None) -> Path:
        """Path of the whole file on this machine."""
        return self.folder / name

    def read(self, name: str, start: int, end: int) -> bytes:
        """The bytes [start, end) of a file."""
        file = LocalFile(self.folder / name, f"{self.label}/{name}")
        try:
            return file.read(start, end)
        finally:
            file.close()


class HubStore:
    """A Hub repo at one commit; every call uses that commit."""

    def __init__(self, snapshot: hub.Snapshot) -> None:
        """Take the resolved repo; only files at its top level are seen."""
        self._snapshot = snapshot
        self.label = self.repo = snapshot.repo
        self.revision, self.commit = snapshot.revision, snapshot.commit
        self.sizes = {name: file.size for name, file in snapshot.files.items() if "/" not in name}

    def small(self, name: str, limit: int = SMALL) -> bytes | None:
        """A small file's bytes, None if there is no such file. Raises CorruptFileError if it is above `limit`."""
        return hub.read_small(self._snapshot, name, limit)

    def digest(self, name: str) -> str | None:
        """The sha256 that the Hub promises for an LFS file; None for a file outside LFS."""
        return self._snapshot.files[name].sha256

    def here(self, name: str) -> bool:
        """Whether the file is in the local cache at this commit."""
        return hub.cached(self._snapshot, name) is not None

    def fetch(self, name: str, on_bytes: Callable[[int], None] | None = None) -> Path:
        """Path of the whole file on this machine, downloaded unless it is in the cache."""
        return hub.fetch(self._snapshot, name, on_bytes)

    def read(self, name: str, start: int, end: int) -> bytes:
        """The bytes [start, end) of a file, by one ranged request."""
        return hub.read_bytes(self._snapshot, name, start, end)


Store = LocalStore | HubStore
