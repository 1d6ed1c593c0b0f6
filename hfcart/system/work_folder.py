"""The output folder: laid out up front, written in place, journalled, verified, renamed.

Everything is done in `<out>.partial/`. A finished folder is always complete; a partial one can be resumed
by running the same command again. The journal has one line for each group of tensors whose bytes are in
place, with their digests: a resumed run believes the digests, not the lines.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hfcart.errors import OutputError, VerifyError, together
from hfcart.formats.safetensors_file import LocalFile, parse_header
from hfcart.formats.shard_layout import Layout
from hfcart.system.journal import Journal, sync, whole_lines, write_all

# Beside the output while it is made: pickles converted, the work of an adaptation, and what candidates of a parameter
# reached. They stay while a merge is begun anew with other settings, and go when it is done.
CONVERTED = "converted"
_ASIDE = (CONVERTED, "adaptation.partial", "choosing")
_JOURNAL = "journal.jsonl"


class PartialFolder:
    """`<out>.partial/` while it is being filled. Use as a context manager.

    One process at a time: a lock file keeps a second one out. `write` and `record` may be called from several
    threads, each group by one of them.
    """

    def __init__(self, out: Path, *, overwrite: bool, inner: bool = False) -> None:
        """Check that `out` may be made. Raises OutputError if it exists (and not overwrite).

        Args:
            out: the folder to make.
            overwrite: replace one that hfcart made.
            inner: whether it is made inside another partial folder, which is the one that messages name.
        """
        self.out = out
        self.path = out.with_name(out.name + ".partial")
        self.overwrite = overwrite
        self._inner = inner
        self.done: dict[str, dict[str, Any]] = {}
        self.fit: dict[str, Any] | None = None
        self._files: dict[str, int] = {}
        self._journal: Journal | None = None
        self._lock = -1
        refuse_existing(out, overwrite=overwrite)

    def __enter__(self) -> PartialFolder:
        """Make the folder and lock it. Raises OutputError if it cannot be, or another process has it."""
        with explain_os_errors(self.path):
            _refuse_foreign(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise self._taken() from None
        return self

    def refuse_in_the_way(self) -> None:
        """Raise what entering would, and make nothing."""
        _refuse_foreign(self.path)
        lock = self.path / ".lock"
        if lock.is_file():
            with explain_os_errors(self.path), lock.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise self._taken() from None
        place = next(folder for folder in self.path.absolute().parents if folder.exists())
        with explain_os_errors(self.path):
            if not place.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if not os.access(place, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def rehearse(self, layout: Layout, fingerprint: str | None) -> None:
        """Raise what `open` would, and touch nothing. Without a fingerprint other work may be there or not."""
        if fingerprint and not self.overwrite and Journal(self.path / _JOURNAL, fingerprint).foreign:
            raise self._other_work()
        place = next(folder for folder in self.path.absolute().parents if folder.exists())
        reserved = sum(path.stat().st_size for path in self.path.glob("*.safetensors"))
        with explain_os_errors(self.path):
            if shutil.disk_usage(place).free + reserved < sum(layout.sizes.values()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _taken(self) -> OutputError:
        return OutputError(f"Another hfcart is writing {self.path}.", hint="Wait for it to end, or give another --out.")

    def _other_work(self) -> OutputError:
        return OutputError(
            f"{self.path} holds unfinished work with other sources, settings or versions.",
            hint=together(
                "Run that one again to finish it, give another --out, or --overwrite to start anew.",
                f"Or remove it: rm -r {shlex.quote(str(self.path))}",
            ),
        )

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        """Close every file. Work stays for the next run; a folder nothing was done in goes.

        Who interrupts it, or has no room for it, is told where the work is, if there is any.
        """
        for descriptor in self._files.values():
            os.close(descriptor)
        if not self._work_done():
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._files, self._journal, self._lock = {}, None, -1
        if self._inner or not self.path.is_dir():
            return
        if isinstance(error, KeyboardInterrupt):
            error.add_note(f"What is done so far is kept in {self.path}: run the same command again to go on.")
        elif isinstance(error, OutputError) and isinstance(error.__cause__, OSError):
            error.hint = f"{error.hint} What is done so far is kept in {self.path}."

    def _work_done(self) -> bool:
        """Whether the folder holds anything that a later run need not do again.

        Nothing are reserved space, converted pickles, and a journal without a group.
        """
        names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        others = {name for name in names if not name.endswith(".safetensors")} - {".lock", CONVERTED, _JOURNAL}
        return bool(others) or len(whole_lines(self.path / _JOURNAL)[0]) > 1

    def open(self, layout: Layout, fingerprint: str) -> None:
        """Reserve the space of every shard, then read the journal and believe what its digests prove.

        Args:
            layout: where every tensor goes.
            fingerprint: digest of all that decides the bytes; a journal with another is not resumed.

        Raises:
            OutputError: the disk is too small, or the folder holds another merge (and not overwrite).
        """
        self._layout = layout
        # Not synced: what a line says is done is proven by the bytes that are in place.
        journal = self._journal = Journal(self.path / _JOURNAL, fingerprint, synced=False)
        if journal.foreign and not self.overwrite:
            raise self._other_work()
        if journal.new:
            self._clear()
        with explain_os_errors(self.path):
            for file, header in layout.headers.items():
                descriptor = os.open(self.path / file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
                self._files[file] = descriptor
                os.ftruncate(descriptor, layout.sizes[file])
                reserve(descriptor, layout.sizes[file])
                write_all(descriptor, header, 0)
            journal.append()
        self.done = {line["group"]: line for line in journal.lines if self._proven(line)}
        # Statistics gathered before the first group: they follow from what the fingerprint covers.
        self.fit = next((line["fit"] for line in journal.lines if "fit" in line), None)

    def write(self, name: str, data: memoryview) -> str:
        """Put a tensor's bytes into its slot. Returns their sha256."""
        slot = self._layout.slots[name]
        with explain_os_errors(self.path):
            write_all(self._files[slot.file], data, slot.start)
        return hashlib.sha256(data).hexdigest()

    def record(self, line: dict[str, Any]) -> None:
        """Append a finished group to the journal. One thread at a time."""
        assert self._journal is not None  # opened
        with explain_os_errors(self.path):
            self._journal.append(line)

    def add(self, name: str, data: bytes) -> None:
        """Write a small file beside the weights (`figures/energy.png` makes its folder)."""
        with explain_os_errors(self.path):
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def commit(self) -> None:
        """fsync everything, drop the journal, and rename the folder into place in one step.

        An existing output is exchanged for the new one, and removed only when the new one stands.
        """
        with explain_os_errors(self.path):
            refuse_existing(self.out, overwrite=self.overwrite)  # another run may have finished meanwhile
            for name in (_JOURNAL, ".lock"):
                (self.path / name).unlink(missing_ok=True)
            for name in _ASIDE:
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

    def _proven(self, line: dict[str, Any]) -> bool:
        digests = line.get("sha256", {})
        return bool(digests) and all(
            name in self._layout.slots and hashlib.sha256(data).hexdigest() == digests[name]
            for name, data in ((name, self.read(name)) for name in digests if name in self._layout.slots)
        )

    def read(self, name: str) -> bytes:
        """A tensor's bytes, read back from its slot."""
        slot = self._layout.slots[name]
        return os.pread(self._files[slot.file], slot.end - slot.start, slot.start)

    def _clear(self) -> None:
        for path in self.path.iterdir():
            if path.name in (".lock", _JOURNAL, *_ASIDE):  # a journal cuts itself
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def refuse_existing(out: Path, *, overwrite: bool) -> None:
    """Raise OutputError if `out` exists and must not be replaced: --overwrite replaces merges of hfcart only."""
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise OutputError(f"The output folder {out} exists already.", hint="Give another --out, or --overwrite.")
    empty = out.is_dir() and not any(out.iterdir())
    ours = any((out / name).is_file() for name in ("hfcart.json", "sweep.json", "compare.json"))
    if out.is_symlink() or not out.is_dir() or not (empty or ours):
        raise OutputError(
            f"{out} exists and is not a folder that hfcart made: --overwrite does not touch it.",
            hint="Give another --out, or remove it yourself.",
        )


def _refuse_foreign(partial: Path) -> None:
    """Raise OutputError for a `.partial` that hfcart did not make: it would be emptied."""
    if not partial.exists() and not partial.is_symlink():
        return
    known = (".lock", _JOURNAL, "hfcart.json", *_ASIDE)
    ours = partial.is_dir() and not partial.is_symlink()
    if not ours or (any(partial.iterdir()) and not any((partial / name).exists() for name in known)):
        raise OutputError(
            f"{partial} is in the way: it is no unfinished work of hfcart's.", hint="Move it, or give another --out."
        )


def read_back(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], digests: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Read every written weight file once more, prove it tensor by tensor, and yield (file, sha256).

    Args:
        folder: the folder to read.
        shapes: name -> shape of every tensor that must be there.
        digests: name -> sha256 of every tensor's bytes.

    Raises:
        VerifyError: a name, shape or digest is not what it must be.
    """
    found: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        file = LocalFile(path, path.name)
        try:
            specs = parse_header(file.read, file.size, path.name)
            whole = hashlib.sha256()
            position = 0
            for spec in sorted(specs.values(), key=lambda s: s.start):
                whole.update(file.read(position, spec.start))
                data = file.read(spec.start, spec.end)
                whole.update(data)
                position = spec.end
                if shapes.get(spec.name) != spec.shape or hashlib.sha256(data).hexdigest() != digests[spec.name]:
                    raise VerifyError(
                        f"{path.name}: tensor {spec.name} reads back different from what was written.",
                        hint="The disk or its memory may be failing. Run the same command again.",
                    )
                found.add(spec.name)
        finally:
            file.close()
        yield path.name, whole.hexdigest()
    if missing := sorted(set(shapes) - found):
        raise VerifyError(f"{folder.name}: tensor {missing[0]} is missing after writing ({len(missing)} in all).")


def reserve(descriptor: int, size: int) -> None:
    """Reserve a file's bytes on the disk, so that a full disk fails now and not after an hour of work."""
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)


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
