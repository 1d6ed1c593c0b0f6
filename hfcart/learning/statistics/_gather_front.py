"""Statistics through the merged front (RegMean++, arXiv 2508.03121): what is kept of them, and what is to be gathered.

The front is merged from all towers, so what is kept belongs to one set of sources, tasks and parameters. A run that was
killed goes on with the blocks that are there.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import torch

from hfcart.engine.plan import Plan
from hfcart.learning.statistics import _gram
from hfcart.learning.statistics._front import FIRST, FrontGrams
from hfcart.learning.statistics._front_pass import FrontPass
from hfcart.learning.statistics._images import open_splits, source_data, unreadable
from hfcart.learning.statistics._store import open_stored
from hfcart.learning.statistics._store import place as place_of
from hfcart.progress import Progress
from hfcart.sources.preprocessor import clip_default, read_preprocessor
from hfcart.system.environment import current_environment, fingerprint
from hfcart.tasks.data import Split

_VERSION = 1  # of the numbers: raised when the same inputs would give others


@dataclasses.dataclass(frozen=True)
class _Kept:
    """What a file says of itself, once it is proven."""

    images: int
    undecodable: int
    sha256: str


def gather_front(plan: Plan, device: torch.device, workers: int, progress: Progress) -> FrontGrams:
    """Every tower's Gram matrices on its own task, each block's behind the merged blocks before it.

    Arguments and errors are those of `gather`.
    """
    splits, side = open_splits(plan, progress), plan.architecture.image_size
    fields = [read_preprocessor(tower.describing, side) or clip_default(side) for tower in plan.towers]
    grams = _grams(plan, splits, fields, device)
    blocks, places = range(plan.architecture.num_hidden_layers), range(len(plan.towers))
    wanted = [(block, place) for block in blocks for place in places]
    kept = {each: found for each in wanted if (found := _kept(grams, *each))}
    if missing := [each for each in wanted if each not in kept]:
        FrontPass(plan, grams, splits, fields, device, workers, progress).gather(missing)
        kept |= {each: found for each in missing if (found := _kept(grams, *each))}
    data = []
    for place, (tower, split) in enumerate(zip(plan.towers, splits, strict=True)):
        parts = [kept[block, place] for block in blocks if (block, place) in kept]
        if len(parts) < len(blocks):
            raise unreadable(tower)
        images, undecodable = parts[0].images, parts[0].undecodable
        if undecodable:
            progress.warn(split.left_out(undecodable))
        digest = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()
        data.append(source_data(tower, split, "gram", images, undecodable, digest))
    return dataclasses.replace(grams, data=tuple(data))


def _grams(plan: Plan, splits: list[Split], fields: list[dict[str, Any]], device: torch.device) -> FrontGrams:
    """Where they are kept, by all that decides them."""
    shapes = {name: shape for name, shape in plan.shapes.items() if name.startswith(FIRST)}
    tasks = [[s.task.sha256, dataclasses.asdict(s.dataset), f] for s, f in zip(splits, fields, strict=True)]
    sources = [tower.source.sha256 for tower in plan.towers]
    method = [plan.method.name, plan.method.package, plan.settings, plan.recipe.qkv]
    decides = [_VERSION, "front", sources, tasks, method, dataclasses.asdict(plan.architecture)]
    path = place_of("gram", fingerprint(current_environment(device), *decides))
    return FrontGrams(path.with_suffix(""), _gram.gram_shapes(shapes), plan.towers)


def _kept(grams: FrontGrams, block: int, place: int) -> _Kept | None:
    stored = open_stored(grams.path(block, place), grams.shapes)
    if stored is None:
        return None
    stored.close()
    return _Kept(stored.images, stored.undecodable, stored.sha256)
