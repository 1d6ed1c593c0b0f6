"""One split of a folder of images on this machine, pinned by its content and read file by file: no cache, no copy."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hfcart.errors import HfcartError, SourceError, UsageError
from hfcart.progress import Progress
from hfcart.quoting import plural, quoted, some
from hfcart.records import FolderRecord
from hfcart.tasks.data._checks import card_hint, checked_label
from hfcart.tasks.data._metadata import Label, metadata_labels
from hfcart.tasks.image_folder import ALL, ImageFolder, digest_of, digests, look, read
from hfcart.tasks.task_cards import TaskCard, name_of


@dataclass(frozen=True)
class _Rows:
    """The rows of the split, as a dataset's table gives them."""

    image: str
    label: str
    labels: list[tuple[str, Label]]

    def __getitem__(self, number: int) -> dict[str, Any]:
        file, label = self.labels[number]
        return {self.image: file, self.label: label}


class FolderSource:
    """One split of a folder. Files are proven by their digests whenever they are read."""

    def __init__(self, task: TaskCard, folder: ImageFolder, split: str, labels: dict[str, Label]) -> None:
        """Take the labels of all images of the folder, by file."""
        self.folder, self.split = folder, split
        self.name = f"the folder {folder.name}" if split == ALL else f"the {split} split of {folder.name}"
        mine = [(file, label) for file, label in labels.items() if folder.split_of(file) == split]
        self.table = _Rows(task.dataset.image_column, task.dataset.label_column, mine)
        self.rows = len(mine)
        self._sha256: dict[str, str] = {}

    def prove(self, task: TaskCard, labels: dict[str, Label], progress: Progress) -> None:
        """Read every file once, for the folder's digest. Raises SourceError if it is not the one that a card names."""
        self._sha256 = digests(self.folder, labels, progress)
        self.record = FolderRecord(self.folder.name, self.split, digest_of(self._sha256))
        wanted = task.dataset.sha256
        if wanted not in (None, self.record.sha256):
            raise SourceError(
                f"The folder {self.folder.path} holds other images than the task {task.id} is about: its sha256 is "
                f"{self.record.sha256[:12]}…, expected {(wanted or '')[:12]}….",
                hint="Give the path of the right folder in the card's `folder`, or leave `sha256` out of a card of "
                "your own.",
            )

    def refuse_the_same(self, other: str, progress: Progress) -> None:
        """Raise SourceError if the images of another split are the very same as ours; warn if some are."""
        theirs = {sha256: file for file, sha256 in self._sha256.items() if self.folder.split_of(file) == other}
        both = [(file, theirs[sha]) for file, _ in self.table.labels if (sha := self._sha256[file]) in theirs]
        if not both:
            return
        example = " and ".join(both[0])
        if len(both) == self.rows:
            raise SourceError(
                f"Every image of {self.name} is in {other}, too, such as {example}: nothing is held out.",
                hint="Leave in each split what the other has not.",
            )
        progress.warn(
            f"{plural(len(both), 'image')} of {self.name} {'is' if len(both) == 1 else 'are'} in {other}, too, such as "
            f"{example}: accuracy on test images is too high by what was learned from them."
        )

    def where(self, number: int) -> str:
        """What a row is called in messages."""
        return f"{self.folder.name}/{self.table.labels[number][0]}"

    def image(self, value: object, where: str) -> bytes:
        """The bytes of an image. Raises SourceError if the file is not what it was when the folder was opened."""
        return read(self.folder, str(value), self._sha256[str(value)])

    def stream(self) -> Iterator[dict[str, Any]]:
        """The rows, from the first on."""
        return map(self.table.__getitem__, range(self.rows))

    def miscounted(self, found: str) -> HfcartError:
        """Never: the rows were counted when the folder was listed."""
        raise AssertionError(found)


def open_folder(task: TaskCard, split: str, progress: Progress) -> FolderSource:
    """List the folder of a task, read its labels, and pin it by its content.

    Raises:
        SourceError: no such folder, no such split, a label that is none of the task's, or other images than a card's
            sha256 says; names the file.
    """
    reference = task.dataset
    if not reference.place.is_dir():
        pinned = f" (sha256 {reference.sha256[:12]}…)" if reference.sha256 else ""
        raise SourceError(
            f"The images of the task {task.id} are in a folder {reference.label}{pinned}, and there is no "
            f"{reference.place}.",
            hint=f"Run the same command where {reference.label} is, or give its path in the card's `folder`.",
        )
    folder = look(reference.place)
    for one in filter(None, (split, reference.train_split)):
        if one not in folder.splits:
            raise SourceError(
                f"The folder {folder.path} has no split {quoted(one)}: it has {some(folder.splits)}.",
                hint="Correct test_split or train_split. " + card_hint(task),
            )
    labels: dict[str, Label] = (
        metadata_labels(folder, reference.image_column, reference.label_column)
        if folder.metadata
        else dict(folder.classes())
    )
    source = FolderSource(task, folder, split, labels)
    _check_labels(task, source, progress)
    source.prove(task, labels, progress)
    _say(task, source, labels, progress)
    if reference.train_split:
        source.refuse_the_same(
            reference.train_split if split == reference.test_split else reference.test_split, progress
        )
    return source


def _check_labels(task: TaskCard, source: FolderSource, progress: Progress) -> None:
    classes = task.classes()
    seen = {checked_label(label, source.where(i), task, classes) for i, (_, label) in enumerate(source.table.labels)}
    if missing := [name for i, name in enumerate(task.classnames) if i not in seen]:
        progress.warn(f"{source.name[:1].upper()}{source.name[1:]} has no image of {some(map(quoted, missing))}.")


def _say(task: TaskCard, source: FolderSource, labels: dict[str, Label], progress: Progress) -> None:
    folder, given = source.folder, name_of(task)
    if folder.links:
        progress.warn(f"{plural(folder.links, 'link')} in {folder.name} to folders or out of it: not followed.")
    if folder.metadata and (left := [file for file in folder.images if file not in labels]):
        progress.warn(f"{plural(len(left), 'image')} of {folder.name} not in its metadata, left out: {some(left, 3)}.")
    if given.lower().endswith((".yaml", ".yml")) or given == task.id:
        return
    where = "metadata" if folder.metadata else "folders"
    progress.note(
        f"{folder.name}: {plural(len(task.classnames), 'class', 'classes')} by its {where}, an underscore read as a "
        f"space ({some(task.classnames, 4)}); prompts such as {quoted(task.templates[0])}. For a card to edit: "
        f"hfcart tasks new {shlex.quote(given)}"
    )


def no_train_split(task: TaskCard, part: str) -> UsageError:
    """The error for a task on a folder that names no split to learn from: its test images are not for that."""
    label, only = task.dataset.label, task.dataset.test_split
    beside = "" if only == ALL else f" beside {only}, which is tested on"
    return UsageError(
        f"{part.capitalize()} images of {label} are asked for, and it has no train split{beside}: to learn from the "
        "images that are tested on would make the accuracy worthless.",
        hint=f"Divide them: {label}/train/CLASS/x.jpg and {label}/test/CLASS/y.jpg. To measure on all of them, and "
        "choose nothing by it: --part test.",
    )
