"""The folder in which an output is made: locked, journalled, and renamed into place when it is whole.

Everything is done in `<out>.partial/`. A finished folder is always complete; work in a partial one goes on when the
same command runs again. What is written into it, and what a line of its journal means, is its users' own affair.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shlex
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hfcart.errors import OutputError, together
from hfcart.quoting import quoted
from hfcart.system.disk import explain_os_errors, standing_parent, sync, write_all
from hfcart.system.journal import Journal, Line, whole_lines

_JOURNAL, _LOCK = "journal.jsonl", ".lock"
_OTHERS = "journal-*.jsonl"  # of the other processes of a launch, one each: no two append to one file


def work_path(out: Path) -> Path:
    """Where the work on `out` lies until it is done."""
    return out.with_name(out.name + ".partial")


@dataclass(frozen=True)
class SharedFolder:
    """A work folder that the first process of a launch has begun, as the others are told of it.

    Attributes:
        path: where the work is done.
        fingerprint: of the work.
        mark: a word in the folder that nobody else knows: who reads it there sees the same folder.
    """

    path: Path
    fingerprint: str
    mark: str


class SharedJournal:
    """What another process of the same launch notes in a work folder that the first has begun."""

    def __init__(self, folder: SharedFolder, place: int) -> None:
        """Find the folder.

        Args:
            folder: as the first process tells of it.
            place: of this process, from 1.

        Raises:
            OutputError: it is not the first process's folder.
        """
        self.path, lock = folder.path, folder.path / _LOCK
        if not lock.is_file() or lock.read_text() != folder.mark:
            raise OutputError(
                f"{self.path} on {socket.gethostname()} is not the folder that the first process writes to.",
                hint="Processes on several hosts need an --out on a disk that all of them share.",
            )
        self._journal = Journal(self.path / _OTHERS.replace("*", str(place)), folder.fingerprint, synced=False)

    @property
    def lines(self) -> list[Line]:
        """Nothing: what earlier runs have done, the first process knows and says."""
        return []

    def note(self, line: Line) -> None:
        """Append a line to this process's journal. One thread at a time."""
        with explain_os_errors(self.path):
            self._journal.append(line)


class WorkFolder:
    """`<out>.partial/` while it is being filled. Use as a context manager. A lock keeps a second process out.

    Attributes:
        out: the folder to make.
        path: where it is made.
        overwrite: whether an `out` or work that is there already is replaced.
    """

    def __init__(
        self,
        out: Path,
        records: Sequence[str],
        *,
        overwrite: bool,
        aside: Sequence[str] = (),
        redone: Sequence[str] = (),
        inner: bool = False,
    ) -> None:
        """Check that `out` may be made. Raises OutputError if it exists (and not overwrite).

        Args:
            out: the folder to make.
            records: names of files by any of which a folder is known to be one that may be replaced.
            overwrite: replace such a folder, and unfinished work of another fingerprint.
            aside: names of folders in it that stay while work is begun anew, and go when it is done.
            redone: names (or patterns) of what a later run makes again at no cost: alone it is not worth keeping.
            inner: whether it is made inside another work folder, which is the one that messages name.
        """
        self.out = out
        self.path = work_path(out)
        self.overwrite = overwrite
        self._records, self._aside, self._redone = tuple(records), tuple(aside), (_JOURNAL, _OTHERS, _LOCK, *redone)
        self._inner = inner
        self._journal: Journal | None = None
        self._others: list[Line] = []
        self._lock = -1
        self.refuse_existing()

    def __enter__(self) -> WorkFolder:
        """Make the folder and lock it. Raises OutputError if it cannot be, or another process has it."""
        with explain_os_errors(self.path):
            self._refuse_foreign()
            self.path.mkdir(parents=True, exist_ok=True)
            # It is written to: what a link of that name leads to is nobody's lock.
            self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise self._taken() from None
        return self

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        """Let go of it. Work stays for the next run; a folder nothing was done in goes.

        Who interrupts it, or has no room for it, is told where the work is, if there is any.
        """
        if not self._worth_keeping():
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._journal, self._lock = None, -1
        if self._inner or not self.path.is_dir():
            return
        if isinstance(error, KeyboardInterrupt):
            error.add_note(f"What is done so far is kept in {self.path}: run the same command again to go on.")
        elif isinstance(error, OutputError) and isinstance(error.__cause__, OSError):
            error.hint = f"{error.hint} What is done so far is kept in {self.path}."

    def refuse_existing(self) -> None:
        """Raise OutputError if the output exists and must not be replaced."""
        refuse_existing(self.out, self._records, overwrite=self.overwrite)

    def refuse_in_the_way(self) -> None:
        """Raise what entering would, and make nothing."""
        self._refuse_foreign()
        lock = self.path / _LOCK
        if lock.is_file():
            with explain_os_errors(self.path), lock.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise self._taken() from None
        place = standing_parent(self.path)
        with explain_os_errors(self.path):
            if not place.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if not os.access(place, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def refuse_other_work(self, fingerprint: str) -> None:
        """Raise what `begin` would, and touch nothing."""
        self._own_journal(fingerprint)

    def begin(self, fingerprint: str) -> None:
        """Go on with the work of that fingerprint, or begin it anew: then all goes but what stays aside.

        Args:
            fingerprint: digest of all that decides the bytes; a journal with another is not gone on with.

        Raises:
            OutputError: the folder holds other work (and not overwrite), or cannot be written to.
        """
        journal = self._own_journal(fingerprint)
        with explain_os_errors(self.path):
            if journal.new:
                self._clear()
            journal.append()
            paths = sorted(self.path.glob(_OTHERS))
            self._others = [line for path in paths for line in Journal(path, fingerprint, synced=False).lines]
        self._journal = journal

    def shared(self) -> SharedFolder:
        """This folder, once it is begun, for the other processes of the launch."""
        assert self._journal is not None  # begun
        word = secrets.token_hex(16)
        with explain_os_errors(self.path):
            os.ftruncate(self._lock, 0)
            write_all(self._lock, word.encode(), 0)
            os.fsync(self._lock)
        return SharedFolder(self.path.absolute(), self._journal.fingerprint, word)

    @property
    def lines(self) -> list[Line]:
        """What the journal has, earlier runs included. A line is on the disk, what it tells of may not be."""
        assert self._journal is not None  # begun
        return [*self._journal.lines, *self._others]

    def note(self, line: Line) -> None:
        """Append a line to the journal. One thread at a time."""
        assert self._journal is not None  # begun
        with explain_os_errors(self.path):
            self._journal.append(line)

    def add(self, name: str, data: bytes) -> None:
        """Write a small file (`figures/energy.png` makes its folder)."""
        with explain_os_errors(self.path):
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def commit(self) -> None:
        """fsync everything, drop journal, lock and what stayed aside, and rename the folder into place in one step.

        An existing output is exchanged for the new one, and removed only when the new one stands.
        """
        with explain_os_errors(self.path):
            self.refuse_existing()  # another run may have finished meanwhile
            for name in (_JOURNAL, _LOCK, *(path.name for path in self.path.glob(_OTHERS))):
                (self.path / name).unlink(missing_ok=True)
            for name in self._aside:
                shutil.rmtree(self.path / name, ignore_errors=True)
            for path in sorted(self.path.rglob("*")):
                sync(path)
            sync(self.path)
            if self.out.exists():
                _exchange(self.path, self.out)
                sync(self.out.parent)
                shutil.rmtree(self.path, ignore_errors=True)
            else:
                self.path.rename(self.out)
                sync(self.out.parent)

    def _own_journal(self, fingerprint: str) -> Journal:
        # Not synced: what a line says is done is proven by the bytes that are in place.
        journal = Journal(self.path / _JOURNAL, fingerprint, synced=False)
        if journal.foreign and not self.overwrite:
            raise OutputError(
                f"{self.path} holds unfinished work with other sources, settings or versions.",
                hint=together(
                    "Run that one again to finish it, give another --out, or --overwrite to start anew.",
                    f"Or remove it: rm -r {shlex.quote(str(self.path))}",
                ),
            )
        return journal

    def _taken(self) -> OutputError:
        return OutputError(f"Another hfcart is writing {self.path}.", hint="Wait for it to end, or give another --out.")

    def _worth_keeping(self) -> bool:
        """Whether the folder holds anything that a later run need not do again."""
        journals = [self.path / _JOURNAL, *self.path.glob(_OTHERS)]
        if any(len(whole_lines(path)[0]) > 1 for path in journals):  # more than the fingerprint
            return True
        paths = list(self.path.iterdir()) if self.path.is_dir() else []
        return any(not any(path.match(pattern) for pattern in self._redone) for path in paths)

    def _clear(self) -> None:
        for path in self.path.iterdir():
            if path.name in (_LOCK, *self._aside):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _refuse_foreign(self) -> None:
        """Raise OutputError for a `.partial` that hfcart did not make: it would be emptied, links in it followed."""
        path = self.path
        if not path.exists() and not path.is_symlink():
            return
        # The journal of another process alone: it noted a last line while the first took the folder away.
        known = (_LOCK, _JOURNAL, _OTHERS, *self._records, *self._aside)
        ours = path.is_dir() and not path.is_symlink()
        if not ours or (any(path.iterdir()) and not any(any(path.glob(name)) for name in known)):
            raise OutputError(
                f"{path} is in the way: it is no unfinished work of hfcart's.", hint="Move it, or give another --out."
            )
        paths = (Path(place, name) for place, folders, files in os.walk(path) for name in (*folders, *files))
        if link := next((each for each in paths if each.is_symlink()), None):
            raise OutputError(
                f"{path} is in the way: {quoted(str(link.relative_to(path)), 120)} in it is a link; hfcart makes none.",
                hint="Remove the link, or give another --out.",
            )


def refuse_existing(out: Path, records: Sequence[str], *, overwrite: bool) -> None:
    """Raise OutputError if `out` exists and must not be replaced: --overwrite replaces what hfcart made only.

    Args:
        out: the folder to make.
        records: names of files by any of which hfcart knows a folder that it made.
        overwrite: replace such a folder.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise OutputError(f"The output folder {out} exists already.", hint="Give another --out, or --overwrite.")
    empty = out.is_dir() and not any(out.iterdir())
    ours = any((out / name).is_file() for name in records)
    if out.is_symlink() or not out.is_dir() or not (empty or ours):
        raise OutputError(
            f"{out} exists and is not a folder that hfcart made: --overwrite does not touch it.",
            hint="Give another --out, or remove it yourself.",
        )


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders: in one step where the kernel can (Linux), else by way of a third name."""
    at_cwd, exchange = -100, 2
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 and renameat2(at_cwd, os.fsencode(new), at_cwd, os.fsencode(old), exchange) == 0:
        return
    aside = old.with_name(old.name + ".replaced")
    shutil.rmtree(aside, ignore_errors=True)
    old.rename(aside)
    new.rename(old)
    aside.rename(new)
