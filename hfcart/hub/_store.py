"""A pinned Hub repo as a place with files in it, with the interface of hfcart.sources.stores.Store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event

from hfcart.errors import SourceError, UsageError
from hfcart.formats.safetensors_file import LocalFile
from hfcart.formats.shard_layout import WEIGHTS
from hfcart.hub._fetch import cached, fetch, read_small
from hfcart.hub._read import Snapshot, read_into, resolve
from hfcart.quoting import quoted, some
from hfcart.records.repo_id import is_place, split_place


class HubStore:
    """A Hub repo at one commit; every call uses that commit."""

    remote = True

    def __init__(self, snapshot: Snapshot, path: str | None = None) -> None:
        """Take the resolved repo.

        Args:
            snapshot: of it.
            path: folder or file of the commit that is meant; None for the top level.

        Raises:
            SourceError: the commit has no such folder and no such file.
        """
        self._snapshot = snapshot
        self.path = path.strip("/") if path else None
        self.chosen: str | None = None
        folder = self.path or ""
        if folder in snapshot.files:
            folder, _, self.chosen = folder.rpartition("/")
        self._folder = f"{folder}/" if folder else ""
        inside = {name: file.size for name, file in snapshot.files.items() if name.startswith(self._folder)}
        if not inside and self._folder:
            held = sorted({name.partition("/")[0] for name in snapshot.files})
            raise SourceError(
                f"{snapshot.repo} at commit {snapshot.commit[:7]} has no folder and no file {quoted(folder, 200)}: "
                f"at its top level are {some(held)}.",
                hint="Write user/name:path with the path as the Hub shows it.",
            )
        self.label = snapshot.repo + (f":{self.path}" if self.path else "")
        self.ref: str | None = f"{snapshot.repo}@{snapshot.commit}{f':{self.path}' if self.path else ''}"
        self.repo: str | None = snapshot.repo
        self.name: str | None = snapshot.name
        self.revision = snapshot.revision
        self.commit: str | None = snapshot.commit
        own = {name.removeprefix(self._folder): size for name, size in inside.items()}
        self.sizes = {name: size for name, size in own.items() if "/" not in name}

    @property
    def deeper(self) -> list[str]:
        """Folders inside it that hold weights, by their paths."""
        names = [name.removeprefix(self._folder) for name in self._snapshot.files if name.startswith(self._folder)]
        return sorted({name.rpartition("/")[0] for name in names if "/" in name and name.endswith(WEIGHTS)})

    def below(self, folder: str) -> dict[str, int]:
        """Path -> bytes of every file inside a folder of it."""
        own = self._folder + folder.strip("/") + "/"
        files = self._snapshot.files.items()
        return {name.removeprefix(self._folder): file.size for name, file in files if name.startswith(own)}

    def within(self, folder: str) -> HubStore:
        """A folder inside it, of the same commit."""
        return HubStore(self._snapshot, self._folder + folder)

    def small(self, name: str, limit: int = 1 << 20) -> bytes | None:
        """A small file's bytes, None if there is no such file. Raises CorruptFileError if it is above `limit`."""
        return read_small(self._snapshot, self._folder + name, limit)

    def digest(self, name: str) -> str | None:
        """The sha256 that the Hub promises for an LFS file; None for a file outside LFS."""
        return self._snapshot.files[self._folder + name].sha256

    def here(self, name: str) -> bool:
        """Whether the file is in the local cache at this commit, proven."""
        return cached(self._snapshot, self._folder + name) is not None

    def fetch(self, name: str, on_bytes: Callable[[int], None] | None = None, stop: Event | None = None) -> Path:
        """Path of the whole file on this machine, downloaded unless it is in the cache."""
        return fetch(self._snapshot, self._folder + name, on_bytes, stop)

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of a file from `start` on: of the cache's, or by one ranged request."""
        path = self._folder + name
        if (here := cached(self._snapshot, path)) is None:
            read_into(self._snapshot, path, start, buffer)
            return
        file = LocalFile(here, f"{self.label}/{name}")
        try:
            file.read_into(buffer, start)
        finally:
            file.close()


def open_repo(text: str) -> HubStore:
    """The place that `user/name`, `user/name@revision` or either with `:path` behind it means, pinned.

    Raises:
        UsageError: it has another form.
        SourceError: the commit has no such place, and as `hub.resolve`.
    """
    ref, place = split_place(text)
    if place is not None and not is_place(place.strip("/")):
        raise UsageError(
            f"{quoted(place, 120)} cannot be a place in {quoted(ref, 120)}.",
            hint="Write user/name:path with the path of a folder or a file as the Hub shows it.",
        )
    return HubStore(resolve(ref), place)
