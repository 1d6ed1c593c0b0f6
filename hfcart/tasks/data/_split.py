"""A part of a task's dataset: which rows it has, and its examples one by one."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hfcart import hub
from hfcart.errors import HubError, SourceError, UsageError
from hfcart.progress import Progress
from hfcart.quoting import plural, some
from hfcart.records import ImagesRecord
from hfcart.tasks.data._checks import Columns, checked_label, sentence
from hfcart.tasks.data._client import check_split, open_builder, promised_rows
from hfcart.tasks.data._folder import FolderSource, no_train_split, open_folder
from hfcart.tasks.data._source import Source
from hfcart.tasks.task_cards import TaskCard

Part = Literal["test", "validation", "train"]
VALIDATION_SEED = 0
VALIDATION_SHARE = 10  # one row in ten of the train split
VALIDATION_MOST = 5_000
MAX_ROWS = 20_000_000


@dataclass(frozen=True)
class Example:
    """One labelled image: its place in what is read (0 .. len − 1), the file's bytes (encoded), its label."""

    index: int
    image: bytes
    label: int


class Split:
    """A part of a task's dataset, ready to be read; made by `open_split`. Can be sent to other processes.

    Attributes:
        task: the task card.
        part: test, validation or train.
        dataset: what is read, pinned.
        rows: examples that this part holds.
        limit: how many were asked for, None for all.
        seed: of the sample.
        broken: places of examples that were found undecodable, by whoever decoded them.
    """

    def __init__(
        self,
        task: TaskCard,
        part: Part,
        source: Source | FolderSource,
        numbers: Sequence[int],
        *,
        limit: int | None,
        seed: int,
    ) -> None:
        """Take the open split and the row numbers (sorted) that make up the part."""
        self.task, self.part, self.limit, self.seed = task, part, limit, seed
        self.dataset: ImagesRecord = source.record
        self.rows = len(numbers)
        self.broken: set[int] = set()
        self._source, self._classes = source, task.classes()
        if limit is not None and limit < self.rows:
            numbers = [numbers[i] for i in sorted(random.Random(seed).sample(range(self.rows), limit))]
        self._numbers = numbers

    def part_beside(self, part: Part) -> Split:
        """Another part of the same split of the dataset: train and validation share the train split.

        Raises:
            SourceError: the split has too few rows for it.
        """
        return Split(self.task, part, self._source, _numbers(part, self._source), limit=None, seed=0)

    def where(self, index: int) -> str:
        """What an example is called in messages: its row, or its file in a folder."""
        return self._source.where(self._numbers[index])

    def left_out(self, count: int) -> str:
        """The sentence for so many images that cannot be decoded: it names some of those that are known."""
        known = f" ({some(map(self.where, sorted(self.broken)), 3)})" if self.broken else ""
        return f"{plural(count, 'image')} of {self.task.title} cannot be decoded: left out{known}."

    def decides(self) -> list[Any]:
        """What decides which examples these are and how they are scored, as JSON holds it: a part of fingerprints."""
        return [self.task.sha256, dataclasses.asdict(self.dataset), self.part, len(self), self.seed]

    def __len__(self) -> int:
        """Examples it yields: `rows`, or the limit where that is less."""
        return len(self._numbers)

    def examples(self, shard: int = 0, shards: int = 1, chunk: int = 32) -> Iterator[Example]:
        """The examples of one shard, in the dataset's order; example i belongs to shard (i // chunk) % shards.

        Raises:
            SourceError: a label is none of the task's, an image is no file, or the split is not as long as its
                card says; names the row.
            HubError: the Hub stopped answering.
        """
        if not 0 <= shard < shards or chunk < 1:
            raise ValueError(f"no shard {shard} of {shards} in chunks of {chunk}")
        mine = (i for i in range(len(self)) if (i // chunk) % shards == shard)
        if self._source.table is not None:
            yield from map(self.__getitem__, mine)
            return
        place = next(mine, None)
        if place is None:
            return
        # A whole split is read to its end, to know that it has no more rows than its metadata says.
        whole = len(self) == self._source.rows
        for number, row in enumerate(self._source.stream()):
            if place is not None and number == self._numbers[place]:
                yield self._example(place, number, row)
                place = next(mine, None)
                if place is None and not whole:
                    return
            elif number >= self._source.rows:
                raise self._source.miscounted("more")
        if place is not None:
            raise self._source.miscounted("fewer")

    def __getitem__(self, index: int) -> Example:
        """The example at a place; only without streaming. Raises as `examples` does."""
        if self._source.table is None:
            raise TypeError("a streamed split has no random access: open it with streaming=False")
        number = self._numbers[index]
        return self._example(index, number, self._source.table[number])

    def _example(self, index: int, number: int, row: dict[str, Any]) -> Example:
        reference = self.task.dataset
        where = self._source.where(number)
        label = checked_label(row[reference.label_column], where, self.task, self._classes)
        return Example(index, self._source.image(row[reference.image_column], where), label)


def open_split(
    task: TaskCard,
    part: Part,
    *,
    commit: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    streaming: bool = True,
    progress: Progress,
) -> Split:
    """Pin a task's dataset to a commit, or a folder to its content, and open one part of it.

    "test" is the card's test split. "validation" is a tenth of the train split, at most 5,000 rows, always the
    same ones; "train" is the rest of it.

    Args:
        task: the task card.
        part: test, validation or train.
        commit: the dataset's, 40 hex digits, if it is settled already; None to take the revision that the card names.
        limit: read a sample of so many examples, drawn with `seed`; the same with and without streaming.
        seed: of that sample, and of nothing else.
        streaming: read over the network as needed; False keeps the split in the cache and gives random access. A
            folder is read where it is, either way.
        progress: told of warnings and of slow steps.

    Raises:
        UsageError: the limit is below 1, or the card names no train split.
        SourceError: no such dataset, config, split or column, a wrong kind of column, or an empty part.
        HubError: the Hub is down, slow or limiting.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"A sample of {limit} images makes no sense: expected at least 1.")
    split = task.dataset.test_split if part == "test" else task.dataset.train_split
    if split is None:
        if task.dataset.folder is not None:
            raise no_train_split(task, part)
        raise UsageError(
            f"The task {task.id} names no train split, and {part} images are taken from there.",
            hint="Give its card a train_split.",
        )
    if task.dataset.folder is not None:
        local = open_folder(task, split, progress)
        return Split(task, part, local, _numbers(part, local), limit=limit, seed=seed)
    revision = commit or task.dataset.revision
    pinned = hub.pin_dataset(task.dataset.label + (f"@{revision}" if revision else ""))
    if pinned.remembered:
        meant = f"{pinned.commit[:12]}…, what {revision or 'main'} meant when it was last asked"
        progress.warn(f"The Hub cannot be reached: the dataset {pinned.repo} is taken at {meant}.")
    config = task.dataset.config
    source = Source(pinned, config, split)
    columns = Columns(task, source.name, progress)
    if streaming or not source.open_kept(columns):
        if hub.is_offline():
            raise HubError(
                f"{sentence(source.name)} at {pinned.commit[:12]}… is not in the cache, and HF_HUB_OFFLINE is set."
                if not streaming
                else f"{sentence(source.name)} cannot be streamed: HF_HUB_OFFLINE is set.",
                hint="Run the same command with --no-streaming; the first time without HF_HUB_OFFLINE.",
            )
        whole = open_builder(pinned, config)
        check_split(whole, split, pinned, task)
        builder = open_builder(pinned, config, whole, split)
        if streaming:
            source.open(columns, builder, promised=promised_rows(whole, split), progress=progress)
        else:
            source.keep(columns, builder, progress)
    return Split(task, part, source, _numbers(part, source), limit=limit, seed=seed)


def _numbers(part: Part, source: Source | FolderSource) -> Sequence[int]:
    numbers = part_rows(part, source.rows)
    if not numbers:
        raise SourceError(
            f"{sentence(source.name)} has {plural(source.rows, 'row')}: nothing is there for the {part} part."
        )
    return numbers


def part_rows(part: Part, rows: int) -> Sequence[int]:
    """The sorted row numbers, out of `rows`, that a part consists of.

    Raises:
        SourceError: there are more rows than could be handled.
    """
    if rows > MAX_ROWS:
        raise SourceError(f"The split has {plural(rows, 'row')}, expected at most {MAX_ROWS:,}.")
    if part == "test" or rows == 0:
        return range(rows)
    count = min(VALIDATION_MOST, max(1, rows // VALIDATION_SHARE))
    validation = sorted(random.Random(VALIDATION_SEED).sample(range(rows), count))
    if part == "validation":
        return validation
    held_out = set(validation)
    return [row for row in range(rows) if row not in held_out]
