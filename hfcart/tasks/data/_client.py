"""The datasets client: a pinned dataset opened, the whole of it or one split, and what it holds."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import datasets
from datasets.packaged_modules.cache.cache import Cache

from hfcart import hub
from hfcart.errors import HfcartError, SourceError, together
from hfcart.quoting import quoted, some
from hfcart.system.patience import RETRY_BASE
from hfcart.tasks.data._checks import card_hint, is_image, is_label, is_text, kind_of
from hfcart.tasks.folder_cards import LABEL_COLUMNS
from hfcart.tasks.task_cards import TaskCard

T = TypeVar("T")

_METADATA = ("README.md", ".huggingface.yaml", "dataset_infos.json")

# Calls home that are not needed to read data; bars and warnings belong to hfcart's own output.
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
# Requests are tried again by the client that hub has given to all; what may be read again is the rest of a file.
datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
datasets.config.STREAMING_READ_MAX_RETRIES = 2
datasets.config.STREAMING_READ_RETRY_INTERVAL = RETRY_BASE
datasets.disable_progress_bars()
datasets.logging.set_verbosity(logging.CRITICAL)


def open_builder(
    pinned: hub.PinnedDataset, config: str | None, whole: datasets.DatasetBuilder | None = None, split: str = ""
) -> datasets.DatasetBuilder:
    """The dataset's builder; given the builder of it all and a split, one that knows of that split's files only."""
    narrow: dict[str, Any] = {}
    if whole is not None:
        narrow = {"data_files": {split: list(whole.config.data_files[split])}, "features": whole.info.features}

    there = hub.dataset_files(pinned)
    for name in _METADATA:
        if name in there.files:
            hub.fetch(there, name)  # the client checks no digests; it takes them from the cache

    def load() -> datasets.DatasetBuilder:
        found = datasets.load_dataset_builder(_on_the_hub(pinned), name=config, revision=pinned.commit, **narrow)
        if isinstance(found, Cache):  # a Hub that fails makes the client take whichever commit it prepared last
            raise ConnectionError
        return found

    try:
        return hub.call_datasets(f"Opening the dataset {pinned.repo}", pinned, load)
    except HfcartError:
        raise
    except Exception as error:
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            # The client keeps for itself what the Hub answered (the dataset is gated, say): ask once more.
            hub.check_access(pinned)
        known = _configs(pinned)
        if (config or len(known) > 1) and config not in known and known:
            asked = f"has no config {quoted(config)}" if config else "has several configs, and the card names none"
            raise SourceError(
                f"The dataset {pinned.repo} {asked}: expected one of {', '.join(known[:20])}.",
                hint=together(
                    "Correct `config` in the task card.",
                    f"For a new draft: hfcart tasks new {pinned.repo} --config {shlex.quote(known[0])}",
                ),
            ) from error
        script = "it is made by a script, which is not run" if "script" in str(error) else innermost(error)
        raise SourceError(
            f"The dataset {pinned.repo} cannot be opened: {script}.", hint=f"Look at {pinned.page}."
        ) from error


def _on_the_hub(pinned: hub.PinnedDataset) -> str:
    """Its name in a form that no folder of this machine has: `user/name` alone would be read from one, if there is."""
    return f"hf://datasets/{pinned.repo}"


def _configs(pinned: hub.PinnedDataset) -> list[str]:
    try:
        return list(datasets.get_dataset_config_names(_on_the_hub(pinned), revision=pinned.commit))
    except Exception:  # it only makes a message better
        return []


def check_split(whole: datasets.DatasetBuilder, split: str, pinned: hub.PinnedDataset, task: TaskCard) -> None:
    there = [str(name) for name in whole.config.data_files or ()]
    if split not in there:
        raise SourceError(
            f"The dataset {pinned.repo} has no split {quoted(split)}: it has {some(there) or 'none'}.",
            hint="Correct test_split or train_split. " + card_hint(task),
        )


def promised_rows(whole: datasets.DatasetBuilder, split: str) -> int | None:
    """The number of rows that the dataset's metadata gives for a split, if it does."""
    found = (whole.info.splits or {}).get(split)
    rows = getattr(found, "num_examples", None)
    return rows if type(rows) is int and rows > 0 else None


def innermost(error: BaseException) -> str:
    """The name of the error at the bottom; its text may quote anything and is left to --debug."""
    seen = [error]  # chains of causes can be circular
    while (below := error.__cause__ or error.__context__) is not None and below not in seen:
        error = below
        seen.append(error)
    return type(error).__name__


@dataclass(frozen=True)
class Contents:
    """What a dataset holds, for a draft of a task card.

    Attributes:
        pinned: the dataset at its commit.
        splits: rows by the name of the split, None where its metadata does not say.
        columns: kind by the name of the column.
        images: columns that hold images.
        labels: columns that hold labels, with their class names (none where the dataset names none).
    """

    pinned: hub.PinnedDataset
    splits: dict[str, int | None]
    columns: dict[str, str]
    images: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]


def contents(ref: str, config: str | None = None) -> Contents:
    """Look at a dataset: its splits, its columns, its class names.

    Args:
        ref: `user/name` or `user/name@revision`.
        config: its configuration.

    Raises:
        SourceError, HubError: it cannot be opened.
    """
    pinned = hub.pin_dataset(ref)
    whole = open_builder(pinned, config)
    splits = {str(name): promised_rows(whole, str(name)) for name in whole.config.data_files or ()}
    if not splits:
        raise SourceError(f"The dataset {ref} has no data files.", hint=f"Look at {pinned.page}.")
    features = whole.info.features
    if features is None:
        split = "test" if "test" in splits else next(iter(splits))
        narrow = open_builder(pinned, config, whole, split)
        stream = partial(open_stream, narrow, split)
        features = client_call(f"Reading {ref}", pinned, stream, again=False).features
    return Contents(
        pinned,
        splits,
        {name: kind_of(feature) for name, feature in features.items()},
        tuple(name for name, feature in features.items() if is_image(feature)),
        {
            name: tuple(getattr(f, "names", None) or ())
            for name, f in features.items()
            if is_label(f) or (is_text(f) and name.lower() in LABEL_COLUMNS)  # most texts are captions
        },
    )


def open_stream(builder: datasets.DatasetBuilder, split: str) -> datasets.IterableDataset:
    """A split as a stream that knows its features; looks at its first rows where no metadata has them."""
    stream = builder.as_streaming_dataset(split=split)
    return stream if stream.features is not None else stream._resolve_features()


def client_call(what: str, pinned: hub.PinnedDataset, fn: Callable[[], T], *, again: bool) -> T:
    """fn(), a call of the datasets client, tried `again` if it may pass; what it raises becomes an HfcartError."""
    try:
        return hub.call_datasets(what, pinned, fn) if again else fn()
    except Exception as error:
        raise failure(what, pinned, error) from error


def failure(what: str, pinned: hub.PinnedDataset, error: Exception) -> HfcartError:
    """The HfcartError that an error of the datasets client means."""
    if isinstance(error, HfcartError):
        return error
    return hub.dataset_failure(what, pinned, error) or SourceError(
        f"{what} failed: its files are not what they should be ({innermost(error)}).",
        hint=f"Look at {pinned.page}.",
    )
