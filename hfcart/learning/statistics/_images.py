"""The images that statistics are gathered on: a sample of each task's training images, decoded some batches at once."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfcart.clip.images import UndecodableImage, decode
from hfcart.clip.pixels import normalised, to_pixels
from hfcart.engine.plan import Plan
from hfcart.errors import NonFiniteError, SourceError
from hfcart.progress import Progress
from hfcart.records import SourceData
from hfcart.sources.towers import Tower
from hfcart.tasks.data import Example, Split, open_split
from hfcart.tasks.task_cards import TaskCard
from hfcart.zero_shot.scoring import nothing_decoded

AT_ONCE = 4  # batches in memory; never the number of workers, which must not change how sums are cut


class Some(NamedTuple):
    """Some batches of images.

    Attributes:
        pixels: of each batch, normalised, on the device; [] where none could be decoded.
        places: of their images in the split.
        images: how many there are.
        undecodable: how many could not be decoded.
    """

    pixels: list[Tensor]
    places: list[list[int]]
    images: int
    undecodable: int


def open_splits(plan: Plan, progress: Progress) -> list[Split]:
    """The sample of each source's task, in the towers' order; a task of several is opened once."""
    found: dict[str, Split] = {}

    def split(task: TaskCard, commit: str | None) -> Split:
        key = f"{task.id} {task.sha256} {commit}"
        if key not in found:
            examples, seed = plan.settings["examples"], plan.settings["seed"]
            found[key] = open_split(task, "train", commit=commit, limit=examples, seed=seed, progress=progress)
        return found[key]

    return [split(own.found, own.commit) for own in plan.own_tasks]


def label_of(plan: Plan, tower: Tower, split: Split) -> str:
    """What the pass of a tower's images is called."""
    place = next(i for i, one in enumerate(plan.towers, start=1) if one is tower)
    return f"{tower.label} on {split.task.title} ({place} of {len(plan.towers)})"


def batches(split: Split, fields: dict[str, Any], size: int, device: torch.device, pool: Executor) -> Iterator[Some]:
    """All images of a sample, in batches of `size`, AT_ONCE of them at a time.

    Args:
        split: the sample; what of it cannot be decoded is noted there.
        fields: the tower's image preprocessing.
        size: images of a batch; fewer where some cannot be decoded.
        device: where the towers run.
        pool: worker threads, which decode.
    """
    examples = split.examples(chunk=size)
    while some := list(itertools.islice(examples, AT_ONCE * size)):
        cut = [some[i : i + size] for i in range(0, len(some), size)]
        found = [each for each in pool.map(partial(_pixels, split, fields, device), cut) if each]
        count = sum(len(places) for _, places in found)
        yield Some([pixels for pixels, _ in found], [places for _, places in found], count, len(some) - count)


def _pixels(
    split: Split, fields: dict[str, Any], device: torch.device, batch: Sequence[Example]
) -> tuple[Tensor, list[int]] | None:
    """The images of a batch that can be decoded, ready for the tower, and their places in the split."""
    decoded: list[tuple[Tensor, int]] = []
    for example in batch:
        try:
            decoded.append((to_pixels(decode(example.image), fields), example.index))
        except UndecodableImage:
            split.broken.add(example.index)
            continue
    if not decoded:
        return None
    pixels, places = zip(*decoded, strict=True)
    return normalised(torch.stack(pixels).to(device), fields), list(places)


def nothing_of(tower: Tower, split: Split, undecodable: int) -> SourceError:
    """The error where not one image of a tower's task could be decoded."""
    other = f"--tasks {shlex.quote(tower.label)}=TASK"
    hint = f"Look at {split.dataset.label}, or give {tower.label} another task: {other}"
    return nothing_decoded(split, undecodable, hint=hint)


def broken_at(tower: Tower, name: str) -> NonFiniteError:
    """The error where a tower gives NaN or Inf."""
    return NonFiniteError(
        f"{tower.label} gives NaN or Inf on images of its task, first seen at {name}.",
        hint="Its weights are broken: leave it out, or name an earlier revision of it.",
    )


def unreadable(tower: Tower) -> SourceError:
    """The error where the cache does not give back what was written."""
    return SourceError(
        f"The statistics of {tower.label} were written to the cache and cannot be read back.",
        hint="Look at the disk that holds it, or name another place for it with HF_ASSETS_CACHE.",
    )


def source_data(tower: Tower, split: Split, kind: str, images: int, undecodable: int, sha256: str) -> SourceData:
    """What a tower's statistics were gathered on, for the record."""
    return SourceData(
        source=tower.label,
        task=split.task.id,
        title=split.task.title,
        dataset=split.dataset,
        part=split.part,
        images=images,
        undecodable=undecodable,
        card_sha256=split.task.sha256,
        statistics=kind,
        sha256=sha256,
    )
