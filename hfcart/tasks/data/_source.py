"""One split of a pinned dataset, read over the network or kept in the cache of datasets."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import datasets
from datasets.utils.file_utils import xopen

from hfcart import hub
from hfcart.errors import HfcartError, SourceError, together
from hfcart.progress import Progress
from hfcart.quoting import plural
from hfcart.records import DatasetRecord
from hfcart.system.threads import in_parallel
from hfcart.tasks.data._checks import Columns, sentence
from hfcart.tasks.data._client import client_call, failure, open_stream
from hfcart.tasks.data._kept import keep_table, kept_table
from hfcart.tasks.data._parquet import parquet_rows

T = TypeVar("T")
MAX_IMAGE = 1 << 28  # bytes of an image file that is a file of the repo


class Source:
    """One split of a pinned dataset, as a stream or as a table on this machine."""

    def __init__(self, pinned: hub.PinnedDataset, config: str | None, split: str) -> None:
        self.pinned, self.config, self.split = pinned, config, split
        self.name = f"the {split} split of {pinned.repo}"
        self.record = DatasetRecord(pinned.repo, config, split, pinned.commit)
        self.table: datasets.Dataset | None = None
        self.rows = 0
        self._stream: datasets.IterableDataset | None = None
        self._there: hub.Snapshot | None = None

    def open(
        self, columns: Columns, builder: datasets.DatasetBuilder, *, promised: int | None, progress: Progress
    ) -> None:
        """Open it as a stream; the features are checked before any image is read, the rows counted."""
        files = _files(builder, self.split)
        if promised is not None:
            self.rows = promised
        elif _all_parquet(files):
            self._count(files)
        stream = self._ask(partial(open_stream, builder, self.split))
        columns.check(stream.features)
        # decode(False) comes first, and cast_column would not do: a stream of files of their own would be decoded.
        self._stream = stream.decode(False).select_columns(columns.names)
        if not self.rows:
            progress.step(f"Counting the rows of {self.name}")
            self.rows = sum(1 for _ in self.stream())

    def open_kept(self, columns: Columns) -> bool:
        """Open it as a table that is in the cache already, without a request; False if there is none."""
        table = kept_table(self.pinned, self.config, self.split)
        if table is not None:
            self._take(table, columns)
        return table is not None

    def keep(self, columns: Columns, builder: datasets.DatasetBuilder, progress: Progress) -> None:
        """Read it into the cache, each of its files proven, and open it as a table."""
        files = _files(builder, self.split)
        self._fetch(files, progress)
        progress.step(f"Reading {self.name} into the cache")
        # Not from a table that is there already: who knows what bytes that was made from.
        prepare = partial(
            builder.download_and_prepare, download_mode="reuse_cache_if_exists", verification_mode="no_checks"
        )
        try:
            self._ask(prepare, again=True)
        except SourceError:
            if _all_parquet(files):  # the client makes nothing of a split without rows
                self._count(files)
            raise
        table = self._ask(lambda: builder.as_dataset(split=self.split))
        keep_table(self.pinned, self.config, self.split, table)
        self._take(table, columns)

    def _fetch(self, files: list[str], progress: Progress) -> None:
        """Have files of the pinned commit in the Hub's cache, where the datasets client then finds them."""
        there, prefix = self._files_there(), self._address()
        paths = [file.removeprefix(prefix) for file in files]
        missing = [path for path in paths if path in there.files and hub.cached(there, path) is None]
        if not missing:
            return
        stop = threading.Event()
        progress.start(f"Downloading {self.name}", sum(there.files[path].size for path in missing), "bytes")
        try:
            in_parallel(lambda path: hub.fetch(there, path, progress.advance, stop), missing, stop)
        finally:
            progress.finish()

    def _files_there(self) -> hub.Snapshot:
        if self._there is None:
            self._there = hub.dataset_files(self.pinned)
        return self._there

    def _address(self) -> str:
        return f"hf://datasets/{self.pinned.repo}@{self.pinned.commit}/"

    def _take(self, table: datasets.Dataset, columns: Columns) -> None:
        columns.check(table.features)
        if isinstance(table.features[columns.image], datasets.Image):
            table = table.cast_column(columns.image, datasets.Image(decode=False))
        self.table = table.select_columns(columns.names)
        self.rows = len(table)

    def _count(self, files: list[str]) -> None:
        self.rows = sum(self._ask(partial(parquet_rows, file)) for file in files)
        if self.rows == 0:
            raise SourceError(f"{sentence(self.name)} is empty: it has 0 rows.", hint=f"Look at {self.pinned.page}.")

    def stream(self) -> Iterator[dict[str, Any]]:
        """The split's rows, from the first on."""
        try:
            yield from self._stream or ()
        except Exception as error:
            raise failure(f"Reading {self.name}", self.pinned, error) from error

    def miscounted(self, found: str) -> HfcartError:
        """The error for a split that is longer or shorter than its own metadata says."""
        return SourceError(
            f"The metadata of {self.pinned.repo} says that {self.name} has {plural(self.rows, 'row')}; it has {found}.",
            hint=together(
                "Run the same command with --no-streaming: it counts them itself.",
                f"Or tell its owner: {self.pinned.page}/discussions",
            ),
        )

    def where(self, number: int) -> str:
        """What a row is called in messages."""
        return f"row {number} of {self.name}"

    def image(self, value: object, where: str) -> bytes:
        """The bytes of an image; none for a missing image, which then cannot be decoded and is counted as such."""
        path = None
        if isinstance(value, dict):
            path, value = value.get("path"), value.get("bytes")
        if isinstance(value, bytes) or (value is None and path is None):
            return value or b""
        if value is None and isinstance(path, str) and self._inside(path):
            return self._ask(partial(_read_file, self._proven(path)))
        # Never follow a name that the dataset's author chose to a file of this machine, or of another repo.
        raise SourceError(f"The image of {where} is the name of a file outside the dataset.")

    def _proven(self, path: str) -> str:
        """The path itself, or of a file of the commit: the one in the cache, fetched again if its bytes are others."""
        folder = f"/datasets--{self.pinned.repo.replace('/', '--')}/snapshots/{self.pinned.commit}/"
        _, found, name = path.partition(folder)
        if self.table is None or not found or name not in self._files_there().files:
            return path
        return str(hub.fetch(self._files_there(), name))

    def _inside(self, path: str) -> bool:
        if self.table is None:
            ours = re.escape(self._address())
            return re.fullmatch(rf"(?:(?:zip|tar)://[^:]+::)?{ours}(?!.*\.\./)[^:]+", path) is not None
        caches = (hub.cache_folder(), Path(datasets.config.HF_DATASETS_CACHE))
        return any(Path(path).absolute().is_relative_to(cache.absolute()) and ".." not in path for cache in caches)

    def _ask(self, fn: Callable[[], T], *, again: bool = False) -> T:
        # Not again by default: the requests of a stream are tried again one by one.
        return client_call(f"Reading {self.name}", self.pinned, fn, again=again)


def _files(builder: datasets.DatasetBuilder, split: str) -> list[str]:
    return [str(file) for file in builder.config.data_files[split]]


def _all_parquet(files: list[str]) -> bool:
    return all(file.endswith(".parquet") for file in files)


def _read_file(path: str) -> bytes:
    with xopen(path, "rb") as opened:
        return bytes(opened.read(MAX_IMAGE))
