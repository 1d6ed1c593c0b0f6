"""A folder of images in the imagefolder layout of `datasets`: its files, its splits, the classes of its folders.

    photos/<class>/x.jpg            photos/train/<class>/x.jpg, photos/test/<class>/y.jpg

or images anywhere, named with their labels by metadata.csv, metadata.jsonl or metadata.parquet beside or above them.

What `datasets` itself makes of such a folder is not taken: it takes splits from the names of files as well, and leaves
out the others without a word; it follows links; and it keeps tables in a cache, by the times of files.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hfcart.errors import SourceError
from hfcart.progress import Progress
from hfcart.quoting import plural, quoted, some
from hfcart.system.threads import in_parallel

# As folders of splits are called, the likeliest first.
TESTS = ("test", "testing", "validation", "valid", "val", "dev", "eval")
TRAINS = ("train", "training")
ALL = "all"  # the split of a folder that has none
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2")
    + (".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico")
)
LAYOUT = "expected photos/CLASS/x.jpg, or photos/train/CLASS/x.jpg and photos/test/CLASS/y.jpg"


@dataclass(frozen=True)
class ImageFolder:
    """What lies in a folder, by paths relative to it, with `/`.

    Attributes:
        path: the folder.
        files: every regular file, hidden ones left out, sorted.
        images: those that are images by their suffix.
        metadata: those that name images and their labels.
        links: links that lead out of the folder, or to other folders: they are not followed.
        splits: names of the folders of splits, in order; `all` alone where there are none.
    """

    path: Path
    files: frozenset[str]
    images: tuple[str, ...]
    metadata: tuple[str, ...]
    links: int
    splits: tuple[str, ...]

    @property
    def name(self) -> str:
        """The folder's base name."""
        return self.path.name if self.path.name not in ("", "..") else self.path.resolve().name

    def split_of(self, file: str) -> str:
        """The split that a file is in."""
        return ALL if self.splits == (ALL,) else file.partition("/")[0]

    @property
    def test_split(self) -> str:
        """The split to report on."""
        return next((name for kind in TESTS for name in self.splits if name.lower() == kind), self.splits[0])

    @property
    def train_split(self) -> str | None:
        """The split to train on, None if there is none beside the one to report on."""
        found = (name for name in self.splits if name.lower() in TRAINS and name != self.test_split)
        return next(found, None)

    def classes(self) -> dict[str, str]:
        """The class of every image by its file: the name of the folder that it is in.

        Raises:
            SourceError: an image is in no folder of a class, or it is not certain which of its folders that is.
        """
        found: dict[str, str] = {}
        first: dict[str, tuple[str, ...]] = {}
        depths: dict[int, str] = {}
        for file in self.images:
            inner = PurePosixPath(file).parts[0 if self.splits == (ALL,) else 1 : -1]
            if not inner:
                raise SourceError(
                    f"{self.name}/{file} is in no folder of a class: {LAYOUT}.",
                    hint="Put each image into a folder that is called as its class, or name the images and their "
                    "labels in a metadata.csv: columns file_name and label.",
                )
            depths.setdefault(len(inner), file)
            above = first.setdefault(inner[-1], inner)
            if above != inner:
                both = " and ".join("/".join(one) for one in (above, inner))
                raise SourceError(
                    f"Which folders of {self.name} are the classes is not certain: {quoted(inner[-1])} is there as "
                    f"{both}. {LAYOUT[0].upper()}{LAYOUT[1:]}.",
                    hint="Name the images and their labels in a metadata.csv: columns file_name and label.",
                )
            found[file] = inner[-1]
        if len(depths) > 1:
            one, other = list(depths.values())[:2]
            raise SourceError(
                f"Which folders of {self.name} are the classes is not certain: {one} and {other} lie at different "
                f"depths. {LAYOUT[0].upper()}{LAYOUT[1:]}."
            )
        return found


def look(path: Path) -> ImageFolder:
    """List a folder of images. Nothing is opened, nothing written, and no link followed out of it.

    Raises:
        SourceError: there is no such folder, it cannot be read, holds no images, or holds splits beside other folders.
    """
    files: list[str] = []
    links, root = 0, path.resolve()
    failed: list[OSError] = []
    for place, folders, names in os.walk(root, onerror=failed.append):
        here = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links += sum((here / name).is_symlink() for name in folders)
        for file in (here / name for name in names if not name.startswith(".")):
            if _is_ours(file, root):
                files.append(file.relative_to(root).as_posix())
            else:
                links += file.is_symlink()
    if failed:
        where = Path(failed[0].filename or root)
        raise SourceError(f"The folder {where} cannot be read: {failed[0].strerror}.")
    files.sort()
    images = tuple(file for file in files if PurePosixPath(file).suffix.lower() in SUFFIXES)
    metadata = tuple(file for file in files if PurePosixPath(file).name in METADATA)
    if not images and not metadata:
        out = f" {plural(links, 'link')} to elsewhere {'is' if links == 1 else 'are'} not followed." if links else ""
        raise SourceError(f"The folder {path} holds no images.{out}", hint=f"{LAYOUT[0].upper()}{LAYOUT[1:]}.")
    return ImageFolder(path, frozenset(files), images, metadata, links, _splits(path, images))


def is_folder(text: str) -> bool:
    """Whether what was typed is a folder here; it may be what no path can be."""
    try:
        return Path(text).is_dir()
    except (OSError, ValueError):  # too long, a NUL in it
        return False


def holds_images(path: Path) -> bool:
    """Whether there is an image in a folder or below it, whatever the layout."""
    return any(file.suffix.lower() in SUFFIXES for file in path.rglob("*"))


def _is_ours(file: Path, root: Path) -> bool:
    try:
        inside = not file.is_symlink() or file.resolve(strict=True).is_relative_to(root)
        return inside and stat.S_ISREG(file.stat().st_mode)
    except (OSError, RuntimeError):  # a link to nothing, or in a circle
        return False


def _splits(path: Path, images: Sequence[str]) -> tuple[str, ...]:
    tops = {file.partition("/")[0] for file in images if "/" in file}
    found = sorted(name for name in tops if name.lower() in (*TESTS, *TRAINS))
    if not found:
        return (ALL,)
    if others := sorted({file.partition("/")[0] for file in images} - set(found)):
        raise SourceError(
            f"{path} holds folders of splits ({some(found)}) beside other images ({some(others, 4)}): these would "
            "belong to no split.",
            hint="Move them into a split, or out of the folder. If these names are classes, put all classes into one "
            "folder test.",
        )
    return tuple(found)


def digests(folder: ImageFolder, named: Iterable[str], progress: Progress) -> dict[str, str]:
    """sha256 of every image and metadata file, and of those that the metadata names, by their paths, in order."""
    files = sorted({*folder.images, *folder.metadata, *named})

    def one(file: str) -> str:
        data = read(folder, file)
        progress.advance(len(data))
        return hashlib.sha256(data).hexdigest()

    try:
        total = sum((folder.path / file).stat().st_size for file in files)
    except OSError as error:
        raise _unreadable(folder, str(error.filename), error) from None
    progress.start(f"Reading {folder.name}", total, "bytes")
    try:
        return dict(zip(files, in_parallel(one, files), strict=True))
    finally:
        progress.finish()


def digest_of(files: Mapping[str, str]) -> str:
    """The digest of a folder: of the lines that `sha256sum` prints of its files, in the order of their paths."""
    lines = b"".join(f"{sha256}  ".encode() + os.fsencode(file) + b"\n" for file, sha256 in sorted(files.items()))
    return hashlib.sha256(lines).hexdigest()


MAX_FILE = 1 << 28  # bytes of one image


def read(folder: ImageFolder, file: str, sha256: str | None = None) -> bytes:
    """The bytes of a file of the folder.

    Args:
        folder: as it was listed.
        file: one of its files.
        sha256: what it was, if that is known.

    Raises:
        SourceError: it cannot be read, is too large, or is another one than it was; names it.
    """
    path = folder.path / file
    try:
        with path.open("rb") as opened:
            data = opened.read(MAX_FILE + 1)
    except OSError as error:
        raise _unreadable(folder, file, error) from None
    if len(data) > MAX_FILE:
        raise SourceError(f"{folder.name}/{file} has more than {MAX_FILE:,} bytes, which no image has.")
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise SourceError(f"{folder.name}/{file} was changed while it was used.", hint="Run the same command again.")
    return data


def _unreadable(folder: ImageFolder, file: str, error: OSError) -> SourceError:
    return SourceError(f"{folder.name}/{Path(file).name if Path(file).is_absolute() else file}: {error.strerror}.")
