"""A pinned Hub repo as a place with files in it, with the interface of hfcart.sources.stores.Store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event

from hfcart.hub._fetch import cached, fetch, read_small
from hfcart.hub._read import Snapshot, read_bytes


class HubStore:
    """A Hub repo at one commit; every call uses that commit."""

    remote = True

    def __init__(self, snapshot: Snapshot) -> None:
        """Take the resolved repo."""
        self._snapshot = snapshot
        self.label = snapshot.repo
        self.repo: str | None = snapshot.repo
        self.name: str | None = snapshot.name
        self.revision = snapshot.revision
        self.commit: str | None = snapshot.commit
        self.sizes = {name: file.size for name, file in snapshot.files.items() if "/" not in name}

    def small(self, name: str, limit: int = 1 << 20) -> bytes | None:
        """A small file's bytes, None if there is no such file. Raises CorruptFileError if it is above `limit`."""
        return read_small(self._snapshot, name, limit)

    def digest(self, name: str) -> str | None:
        """The sha256 that the Hub promises for an LFS file; None for a file outside LFS."""
        return self._snapshot.files[name].sha256

    def here(self, name: str) -> bool:
        """Whether the file is in the local cache at this commit, proven."""
        return cached(self._snapshot, name) is not None

    def fetch(self, name: str, on_bytes: Callable[[int], None] | None = None, stop: Event | None = None) -> Path:
        """Path of the whole file on this machine, downloaded unless it is in the cache."""
        return fetch(self._snapshot, name, on_bytes, stop)

    def read(self, name: str, start: int, end: int) -> bytes:
        """The bytes [start, end) of a file: of the cache's if it is there, else by one ranged request."""
        if (path := cached(self._snapshot, name)) is not None:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(end - start)
        return read_bytes(self._snapshot, name, start, end)
