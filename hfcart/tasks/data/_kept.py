"""A split that was kept in the cache of datasets: found again without a request, and proven.

What is kept of it is a list of its tables, each with its sha256. They were made from files whose digests the pinned
commit lists; a table that is gone or altered counts as none, and is made again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import datasets

from hfcart import hub
from hfcart.formats.safetensors_file import sha256_of


def kept_table(pinned: hub.PinnedDataset, config: str | None, split: str) -> datasets.Dataset | None:
    """The split as an earlier run kept it; None if none did, or if it is not what it was."""
    try:
        listed = json.loads(_place(pinned, config, split).read_bytes())
        tables = [_proven(str(name), str(sha256)) for name, sha256 in listed]
        return datasets.concatenate_datasets([datasets.Dataset.from_file(str(table)) for table in tables])
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def keep_table(pinned: hub.PinnedDataset, config: str | None, split: str, table: datasets.Dataset) -> None:
    """Remember where a split is kept. A cache that cannot be written is no reason to fail."""
    try:
        tables = [Path(file["filename"]).absolute() for file in table.cache_files]
        listed = [[path.relative_to(_cache()).as_posix(), sha256_of(path)] for path in tables]
    except (OSError, ValueError):
        return
    hub.write_whole(_place(pinned, config, split), json.dumps(listed).encode())


def _place(pinned: hub.PinnedDataset, config: str | None, split: str) -> Path:
    key = hashlib.sha256(json.dumps([config, split]).encode()).hexdigest()[:32]
    return hub.assets("splits") / pinned.repo.replace("/", "--") / pinned.commit / f"{key}.json"


def _proven(name: str, sha256: str) -> Path:
    path = _cache() / name
    if ".." in path.parts or not path.is_relative_to(_cache()) or sha256_of(path) != sha256:
        raise ValueError("not what was kept")
    return path


def _cache() -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE).absolute()
