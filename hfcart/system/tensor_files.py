"""Safetensors files that are laid out up front and filled in place, tensor by tensor, in any order."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from hfcart.errors import AGAIN, VerifyError
from hfcart.formats.safetensors_file import LocalFile, parse_header
from hfcart.formats.shard_layout import Layout
from hfcart.system.disk import explain_os_errors, reserve, standing_parent, write_all

TENSOR_FILES = "*.safetensors"
"""What these files are called. That they are there proves nothing: they have their full size from the start."""


class TensorFiles:
    """The files of a layout, open for writing and reading. Use as a context manager.

    `write` may be called from several threads, each tensor by one of them.
    """

    def __init__(self, folder: Path, layout: Layout, *, made: bool = False) -> None:
        """Touch nothing yet.

        Args:
            folder: where the files lie.
            layout: where every tensor goes.
            made: whether another process has made them, and has them open as well.
        """
        self._made = made
        self._folder = folder
        self._layout = layout
        self._descriptors: dict[str, int] = {}

    def __enter__(self) -> TensorFiles:
        """Reserve the space of every file and write its header; tensors of an earlier run stay as they are.

        Raises OutputError if the disk is too small.
        """
        try:
            with explain_os_errors(self._folder):
                for file, header in self._layout.headers.items():
                    if self._made:
                        self._descriptors[file] = os.open(self._folder / file, os.O_RDWR | os.O_CLOEXEC)
                        continue
                    for parent in reversed(PurePosixPath(file).parents[:-1]):
                        (self._folder / parent).mkdir(exist_ok=True)
                    descriptor = os.open(self._folder / file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
                    self._descriptors[file] = descriptor
                    os.ftruncate(descriptor, self._layout.sizes[file])
                    reserve(descriptor, self._layout.sizes[file])
                    write_all(descriptor, header, 0)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Close every file."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors = {}

    def write(self, name: str, data: memoryview) -> str:
        """Put a tensor's bytes into its slot. Returns their sha256; raises OutputError."""
        slot = self._layout.slots[name]
        with explain_os_errors(self._folder):
            write_all(self._descriptors[slot.file], data, slot.start)
        return hashlib.sha256(data).hexdigest()

    def is_transposed(self, name: str) -> bool:
        """Whether a tensor's slot takes the transpose of it."""
        return self._layout.slots[name].transposed

    def read(self, name: str) -> bytes:
        """A tensor's bytes, read back from its slot."""
        slot = self._layout.slots[name]
        return os.pread(self._descriptors[slot.file], slot.end - slot.start, slot.start)

    def hold(self, digests: Mapping[str, str]) -> bool:
        """Whether the bytes of every named tensor are in place: name -> sha256. Of no tensor nothing is in place."""
        return bool(digests) and all(
            name in self._layout.slots and hashlib.sha256(self.read(name)).hexdigest() == digest
            for name, digest in digests.items()
        )


def refuse_without_room(folder: Path, layout: Layout) -> None:
    """Raise the OutputError of a disk that is too small for the layout, and touch nothing. `folder` need not exist."""
    reserved = sum((folder / file).stat().st_size for file in layout.sizes if (folder / file).is_file())
    with explain_os_errors(folder):
        if shutil.disk_usage(standing_parent(folder)).free + reserved < sum(layout.sizes.values()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_back(folder: Path, layout: Layout, digests: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Read every written weight file once more, prove it tensor by tensor, and yield (its path in the folder, sha256).

    Args:
        folder: the folder to read.
        layout: of what was written there.
        digests: name -> sha256 of every tensor's bytes.

    Raises:
        VerifyError: a file, a header or a tensor is not what it must be.
    """

    def wrong(what: str) -> VerifyError:
        return VerifyError(
            f"{what} reads back different from what was written.",
            hint="The disk or its memory may be failing. Run the same command again.",
        )

    if foreign := sorted({path.name for path in folder.glob(TENSOR_FILES)} - layout.headers.keys()):
        raise VerifyError(
            f"{folder.name}: {foreign[0]} is no file of what was written.",
            hint=f"Take it out of the folder, {AGAIN}",
        )
    for name, header in sorted(layout.headers.items()):
        path = folder / name
        if not path.is_file():
            raise VerifyError(f"{folder.name}: {name} is missing after writing.")
        slots = sorted((slot.start, slot.end, tensor) for tensor, slot in layout.slots.items() if slot.file == name)
        memory = memoryview(bytearray(max((end - start for start, end, _ in slots), default=0)))
        file = LocalFile(path, name)
        try:
            whole = hashlib.sha256(header)
            if file.size != layout.sizes[name] or file.read(0, len(header)) != header:
                raise wrong(f"The header of {name}")
            parse_header(file.read, file.size, name)
            with ThreadPoolExecutor(1, "digest") as beside:  # of a tensor while the file's takes it in
                for start, end, tensor in slots:
                    data = memory[: end - start]
                    file.read_into(data, start)
                    own = beside.submit(hashlib.sha256, data)
                    whole.update(data)
                    if own.result().hexdigest() != digests[tensor]:
                        raise wrong(f"{name}: tensor {tensor}")
        finally:
            file.close()
        yield name, whole.hexdigest()
