"""One split of a pinned dataset, read over the network or kept in the cache of datasets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import datasets
from datasets.utils.file_utils import xopen

from hfcart import hub
from hfcart.data._checks import Columns, sentence
from hfcart.data._client import client_call, failure, open_stream
from hfcart.data._parquet import parquet_rows
from hfcart.errors import HfcartError, SourceError, together
from hfcart.progress import Progress

T = TypeVar("T")
MAX_IMAGE = 1 << 28  # bytes of an image file that is a file of the repo


class Source:
    """One split of a pinned dataset, as a stream or as a table on this machine."""

    def __init__(self, pinned: hub.PinnedDataset, split: str, builder: datasets.DatasetBuilder) -> None:
        self.pinned, self.split = pinned, split
        self.name = f"the {split} split of {pinned.repo}"
        self.table: datasets.Dataset | None = None
        self.rows = 0
        self._stream: datasets.IterableDataset | None = None
        self._builder = builder

    def open(self, columns: Columns, *, streaming: bool, promised: int | None, progress: Progress) -> None:
        """Open it; the features are checked before any image is read, the rows counted."""
        files = [str(file) for file in self._builder.config.data_files[self.split]]
        parquet = all(file.endswith(".parquet") for file in files)
        if not streaming:
            progress.step(f"Reading {self.name} into the cache")
            prepare = partial(self._builder.download_and_prepare, verification_mode="no_checks")
            try:
                self._ask(prepare, again=True)
            except SourceError:
                if parquet:  # the client makes nothing of a split without rows
                    self._count(files)
                raise
            table = self._ask(lambda: self._builder.as_dataset(split=self.split))
            columns.check(table.features)
            if isinstance(table.features[columns.image], datasets.Image):
                table = table.cast_column(columns.image, datasets.Image(decode=False))
            self.table = table.select_columns(columns.names)
            self.rows = len(table)
            return
        if promised is not None:
            self.rows = promised
        elif parquet:
            self._count(files)
        stream = self._ask(partial(open_stream, self._builder, self.split))
        columns.check(stream.features)
        # decode(False) comes first, and cast_column would not do: a stream of files of their own would be decoded.
        self._stream = stream.decode(False).select_columns(columns.names)
        if not self.rows:
            progress.step(f"Counting the rows of {self.name}")
            self.rows = sum(1 for _ in self.stream())

    def _count(self, files: list[str]) -> None:
        self.rows = sum(self._ask(partial(parquet_rows, file)) for file in files)
        if self.rows == 0:
            raise SourceError(f"{sentence(self.name)} is empty: it has 0 rows.", hint=f"Look at {self.pinned.page}.")

    def stream(self) -> Iterator[dict[str, Any]]:
        """Its rows from the first on."""
        try:
            yield from self._stream or ()
        except Exception as error:
            raise failure(f"Reading {self.name}", self.pinned, error) from error

    def miscounted(self, found: str) -> HfcartError:
        """The error for a split that is longer or shorter than its own metadata says."""
        return SourceError(
            f"The metadata of {self.pinned.repo} says that {self.name} has {self.rows:,} rows; it has {found}.",
            hint=together(
                "Run the same command with --no-streaming: it counts them itself.",
                f"Or tell its owner: {self.pinned.page}/discussions",
            ),
        )

    def image(self, value: object, where: str) -> bytes:
        """The bytes of an image; none for a missing image, which then cannot be decoded and is counted as such."""
        path = None
        if isinstance(value, dict):
            path, value = value.get("path"), value.get("bytes")
        if isinstance(value, bytes) or (value is None and path is None):
            return value or b""
        if value is None and isinstance(path, str) and self._inside(path):
            return self._ask(partial(_read_file, path))
        # Never follow a name that the dataset's author chose to a file of this machine, or of another repo.
        raise SourceError(f"The image of {where} is the name of a file outside the dataset.")

    def _inside(self, path: str) -> bool:
        if self.table is None:
            ours = re.escape(f"hf://datasets/{self.pinned.repo}@{self.pinned.commit}/")
            return re.fullmatch(rf"(?:(?:zip|tar)://[^:]+::)?{ours}(?!.*\.\./)[^:]+", path) is not None
        caches = (hub.cache_folder(), Path(datasets.config.HF_DATASETS_CACHE))
        return any(Path(path).absolute().is_relative_to(cache.absolute()) and ".." not in path for cache in caches)

    def _ask(self, fn: Callable[[], T], *, again: bool = False) -> T:
        # Not again by default: the requests of a stream are tried again one by one.
        return client_call(f"Reading {self.name}", self.pinned, fn, again=again)


def _read_file(path: str) -> bytes:
    with xopen(path, "rb") as opened:
        return bytes(opened.read(MAX_IMAGE))
