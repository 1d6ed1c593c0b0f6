"""Where a source's files are: one interface for a local folder (here) and a pinned Hub repo (hub.HubStore)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Protocol

from hfcart.errors import CorruptFileError
from hfcart.formats.safetensors_file import LocalFile
from hfcart.formats.shard_layout import WEIGHTS

SMALL = 1 << 20  # bytes; no config.json or README is larger


class Store(Protocol):
    """A place with files in it. Only those at its top level are seen.

    Attributes:
        label: as in SourceRecord; what messages say.
        sizes: file name -> bytes.
        chosen: the weight file that was asked for, None if the folder was.
        repo: the Hub id, None for a folder; with it `revision` (as asked, or None) and `commit` (40 hex digits).
        path: the place inside the repo, None for its top level or a folder here.
        ref: as in SourceRecord.
        name: what the Hub calls that repo now, which may have been renamed; None for a folder.
        remote: whether reading goes over the network.
    """

    label: str
    sizes: dict[str, int]
    chosen: str | None
    repo: str | None
    name: str | None
    revision: str | None
    commit: str | None
    path: str | None
    ref: str | None
    remote: bool

    @property
    def deeper(self) -> list[str]:
        """Folders inside it that hold weights, by their paths."""

    def below(self, folder: str) -> dict[str, int]:
        """Path -> bytes of every file inside a folder of it, at any depth; empty if there is none."""

    def within(self, folder: str) -> Store:
        """A folder inside it, of the same commit."""

    def small(self, name: str, limit: int = SMALL) -> bytes | None:
        """A small file's bytes, None if there is no such file. Raises CorruptFileError if it is above `limit`."""

    def digest(self, name: str) -> str | None:
        """The sha256 that is known without reading the file; None if there is none."""

    def here(self, name: str) -> bool:
        """Whether the file needs no download."""

    def fetch(self, name: str, on_bytes: Callable[[int], None] | None = None, stop: Event | None = None) -> Path:
        """Path of the whole file on this machine, downloaded if need be; raises CancelledError once `stop` is set."""

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of a file from `start` on."""


class LocalStore:
    """A folder on this machine. Messages know it by its base name, never by its path."""

    remote = False

    def __init__(self, folder: Path, chosen: str | None = None) -> None:
        """List the files at the folder's top level; `chosen` is the weight file of it that was asked for."""
        self.folder, self.chosen = folder, chosen
        self.repo: str | None = None
        self.name: str | None = None
        self.revision: str | None = None
        self.commit: str | None = None
        self.path: str | None = None
        self.ref: str | None = None
        # The name as typed: a link to a folder of the Hub's cache should not be called by its commit.
        name = folder.name if folder.name not in ("", "..") else folder.resolve().name
        self.label = (f"{name}:{chosen}" if chosen else name).encode("utf-8", "replace").decode()
        self.sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        self._read: dict[str, bytes] = {}

    @property
    def opened(self) -> Path:
        """What opens it again: the folder, or the file of it that was asked for."""
        return self.folder / self.chosen if self.chosen else self.folder

    @property
    def deeper(self) -> list[str]:
        """Folders inside it that hold weights."""
        return sorted({path.parent.name for path in self.folder.glob("*/*") if path.suffix in WEIGHTS})

    def below(self, folder: str) -> dict[str, int]:
        """Path -> bytes of every file inside a folder of it."""
        files = [path for path in (self.folder / folder).rglob("*") if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in files}

    def within(self, folder: str) -> LocalStore:
        """A folder inside it."""
        return LocalStore(self.folder / folder)

    def small(self, name: str, limit: int = SMALL) -> bytes | None:
        """A small file's bytes, None if there is no such file: the same each time, whatever becomes of the file.

        Raises:
            CorruptFileError: it is above `limit`, or cannot be read.
        """
        if name not in self.sizes:
            return None
        if self.sizes[name] > limit:
            raise CorruptFileError(f"{self.label}/{name} has {self.sizes[name]:,} bytes, expected at most {limit:,}.")
        if name not in self._read:
            self._read[name] = self._now(name)
        return self._read[name]

    def check(self) -> None:
        """Prove that every small file is still what was read. Raises CorruptFileError naming the first that is not."""
        for name, data in self._read.items():
            if self._now(name) != data:
                raise CorruptFileError(
                    f"{self.label}/{name} changed while the folder was read.",
                    hint="Run the same command again when nothing else writes to it.",
                )

    def _now(self, name: str) -> bytes:
        try:
            with (self.folder / name).open("rb") as file:
                return file.read(self.sizes[name] + 1)
        except OSError as error:
            raise CorruptFileError(f"{self.label}/{name} cannot be read: {error.strerror}.") from None

    def digest(self, name: str) -> str | None:
        """The sha256 that is known without reading the file: none here."""
        return None

    def here(self, name: str) -> bool:
        """Whether the file needs no download."""
        return True

    def fetch(self, name: str, on_bytes: Callable[[int], None] | None = None, stop: Event | None = None) -> Path:
        """Path of the whole file on this machine."""
        return self.folder / name

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of a file from `start` on."""
        file = LocalFile(self.folder / name, f"{self.label}/{name}")
        try:
            file.read_into(buffer, start)
        finally:
            file.close()
