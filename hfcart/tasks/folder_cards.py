"""The task card of a folder of images: what its folders or its metadata tell, as a card, and as a draft to edit."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

from hfcart.errors import SourceError
from hfcart.quoting import quoted, some
from hfcart.tasks.image_folder import ALL, ImageFolder, look

TEMPLATE = "a photo of a {}."
# How columns of labels are called, the likeliest first.
LABEL_COLUMNS = ("label", "labels", "cls", "class", "target", "y", "fine_label")


@dataclass(frozen=True)
class Found:
    """What a folder of images tells of its task.

    Attributes:
        folder: its files.
        label_column: of its metadata; `label` without.
        columns: that could hold labels; none without metadata.
        labels: texts, one a class, sorted; none where labels are numbers.
    """

    folder: ImageFolder
    label_column: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def id(self) -> str:
        """An id for the task."""
        return slug(self.folder.name)

    @property
    def classnames(self) -> tuple[str, ...]:
        """The labels as words."""
        return tuple(" ".join(label.replace("_", " ").split()) for label in self.labels)


def slug(name: str) -> str:
    """A task's id made of a name."""
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower())[:64].strip("-_") or "task"


def find(path: Path) -> Found:
    """Look at a folder of images.

    Raises:
        SourceError: it has no images, or it is not certain what their labels are; see `look` and `classes`.
    """
    folder = look(path)
    if not folder.metadata:
        labels = sorted(set(folder.classes().values()))
        if len(labels) < 2:
            raise SourceError(
                f"The folder {path} has one class, {quoted(labels[0])}: expected at least 2.",
                hint="Name the folder above those of the classes.",
            )
        return Found(folder, "label", (), tuple(labels))
    from hfcart.tasks.data import label_columns, metadata_columns, metadata_labels  # datasets takes seconds to import

    columns = tuple(label_columns(folder))
    if not columns:
        raise SourceError(
            f"{folder.name}/{folder.metadata[0]} has no column of labels: its columns are "
            f"{some(metadata_columns(folder))}."
        )
    column = next((name for known in LABEL_COLUMNS for name in columns if name.lower() == known), columns[0])
    values = set(metadata_labels(folder, "image", column).values()) - {None}
    texts = sorted(value for value in values if isinstance(value, str))
    if texts and len(texts) < 2:
        raise SourceError(f"{folder.name}/{folder.metadata[0]} has one label, {quoted(texts[0])}: expected at least 2.")
    return Found(folder, column, columns, tuple(texts))


def fields_of(found: Found) -> dict[str, object]:
    """The fields of its card. Raises SourceError where labels are numbers, which no name is known of."""
    folder = found.folder
    if not found.labels:
        raise SourceError(
            f"The labels of {folder.name} in the column {quoted(found.label_column)} are numbers, and nothing names "
            "the classes.",
            hint=f"A card can: hfcart tasks new {shlex.quote(str(folder.path))}",
        )
    dataset: dict[str, object] = {
        "folder": str(folder.path),
        "test_split": folder.test_split,
        "train_split": folder.train_split,
        "label_column": found.label_column,
        "labels": list(found.labels),
    }
    return {
        "id": found.id,
        "title": folder.name,
        "dataset": dataset,
        "templates": [TEMPLATE],
        "classnames": list(found.classnames),
    }


def draft_lines(found: Found, folder: str) -> list[str]:
    """The lines of a draft.

    Args:
        found: what the folder tells.
        folder: its path, as the card is to have it.
    """

    here = found.folder
    others = [split for split in here.splits if split not in (here.test_split, here.train_split)]
    no_train = "null # nothing is learned from this folder: it has no train/ beside a test/"
    lines = [
        f"# Drafted from the folder {scalar(here.name)}.",
        '# Check what is marked "check", then use it: hfcart eval user/tower --tasks FILE',
        f"id: {scalar(found.id)}",
        f"title: {scalar(here.name)}",
        "dataset:",
        f"  folder: {scalar(folder)} # as seen from this card",
        f"  test_split: {here.test_split}" + (" # all of its images" if here.test_split == ALL else ""),
        f"  train_split: {here.train_split or no_train}",
        *([f"  # other splits: {some(others, 20)}"] if others else []),
    ]
    if here.metadata:
        more = f" # check: it could be any of {some(found.columns, 20)}" if len(found.columns) > 1 else ""
        lines.append(f"  label_column: {scalar(found.label_column)}{more}")
    if found.labels:
        lines.append("  labels: # as the folders or the metadata say; leave them")
        lines += [f"    - {scalar(label)}" for label in found.labels]
    lines += [
        "# check: prompts that say what the images are do better, such as `a satellite photo of {}.`",
        "templates:",
        f"  - {TEMPLATE}",
    ]
    if not found.labels:
        return [*lines, "# check: the labels are numbers. Name each class in words, in their order.", "classnames: []"]
    lines.append("# check: CLIP reads these as words; `annual crop land` does better than `AnnualCrop`.")
    return [*lines, "classnames: # in the order of the labels", *(f"  - {scalar(one)}" for one in found.classnames)]


def scalar(value: str) -> str:
    """A YAML scalar that means this very text, on one line and without anything that ends a comment."""
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9 ./'&()-]*[A-Za-z0-9.)]|[A-Za-z]", value)
    if plain and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=not value.isprintable())
