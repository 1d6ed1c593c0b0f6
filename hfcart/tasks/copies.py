"""Task cards of a user's own, copied beside the results: with them anybody can repeat the numbers.

A copy says what decides the images and how they are classified, and no path: of a folder its name and the digest of its
content, which pins it as a commit pins a dataset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from hfcart.errors import UsageError
from hfcart.records import DatasetRecord, FolderRecord, ImagesRecord
from hfcart.records.check import is_task_id
from hfcart.tasks.task_cards import TaskCard, benchmark_task, read_card

FOLDER = "tasks"


def copy_name(task: str) -> str:
    """The file of a task's copy, relative to the folder of results."""
    return f"{FOLDER}/{task}.yaml"


def copies(tasks: Iterable[tuple[TaskCard, ImagesRecord]]) -> dict[str, bytes]:
    """The copies of those tasks that do not come with hfcart, by their file.

    Args:
        tasks: each with the images that were read of it.
    """
    return {copy_name(task.id): _copy(task, images) for task, images in tasks if benchmark_task(task.id) != task}


def copies_in(folder: Path, used: Mapping[tuple[str, str], ImagesRecord]) -> dict[str, bytes]:
    """The copies that a folder holds of cards that were used, by their file.

    They are written anew: nothing is published of a file that is no card, or that names a path.

    Args:
        folder: with records or results.
        used: (id, sha256) of each card that these speak of -> the images that were read of it.
    """
    found = {}
    for path in sorted((folder / FOLDER).glob("*.yaml")):
        if path.is_symlink() or not is_task_id(path.stem):
            continue
        try:
            card = read_card(path)
        except UsageError:
            continue
        if card.id == path.stem and (images := used.get((card.id, card.sha256))):
            found[copy_name(card.id)] = _copy(card, images)
    return found


def _copy(task: TaskCard, images: ImagesRecord) -> bytes:
    lines = ["# The task as it was used here: the card that hfcart takes in place of a task's name."]
    if isinstance(images, FolderRecord):
        task = task.pinned(images.sha256)
    if isinstance(images, DatasetRecord):
        lines.append(f"# Its images were read from {images.repo} at commit {images.commit}.")
    if task.dataset.folder is not None:
        lines += [
            "# Its images are in a folder that is not here. Have it beside this file, or where you run hfcart, or put",
            "# its path for `folder`: hfcart compares its sha256 with the one below.",
        ]
    fields = task.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=110)
    return ("\n".join(lines) + "\n" + text).encode()
