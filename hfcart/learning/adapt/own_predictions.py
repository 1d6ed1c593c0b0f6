"""What each task's own tower says of the images that an adaptation will see: once an image, one tower in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from hfcart.clip.forward import pooled
from hfcart.clip.pixels import normalised
from hfcart.clip.tensor_names import PROJECTION
from hfcart.errors import NonFiniteError
from hfcart.learning.adapt.objective import log_predictions
from hfcart.learning.adapt.work import Work
from hfcart.learning.batches import Loader, Place
from hfcart.progress import Progress
from hfcart.sources.preprocessor import read_preprocessor
from hfcart.system.checkpoints import Checkpoints
from hfcart.system.device import full_float32
from hfcart.system.threads import default_workers
from hfcart.zero_shot.loaded_tower import read_tensor, running

_BATCH = 32  # images a pass


@dataclass(frozen=True)
class OwnPredictions:
    """Log predictions of each task's own tower, by the images' places in their splits.

    Attributes:
        rows: for each task, an image's index in its split -> its row.
        log_p: for each task, images × classes, on the CPU.
    """

    rows: Sequence[dict[int, int]]
    log_p: Sequence[Float[Tensor, "images classes"]]

    def of(self, places: Sequence[Place]) -> Float[Tensor, "b classes"]:
        """Of images of one task."""
        task = places[0][0]
        return self.log_p[task][[self.rows[task][index] for _, index in places]]


def own_predictions(work: Work, folder: Path, accelerator: Accelerator, progress: Progress) -> OwnPredictions:
    """Run each task's own tower on the images that the steps will see, or read what an earlier run kept of it.

    The processes share the tasks.

    Args:
        work: with a tower for each task.
        folder: where the predictions are kept; they are this work's alone.
        accelerator: of this process.
        progress: told the images of each tower.

    Raises:
        NonFiniteError: a tower gives NaN or Inf.
        SourceError: a tower or a dataset cannot be read.
    """
    progress.step("What the tasks' own towers say")
    order, seen = work.order, [set[int]() for _ in work.splits]
    for step in range(work.setting("steps")):
        for task, index in order.batch(step, work.images_a_step):
            seen[task].add(index)
    indices = [sorted(each) for each in seen]
    kept = [Checkpoints(folder / f"{task:03d}") for task in range(len(indices))]
    for task in range(accelerator.process_index, len(kept), accelerator.num_processes):
        if kept[task].newest() is None:
            kept[task].save(1, {"log_p": _predicted(work, task, indices[task], progress)})
    accelerator.wait_for_everyone()
    found = [each.newest() for each in kept]
    rows = [{index: row for row, index in enumerate(each)} for each in indices]
    return OwnPredictions(rows, [each[1]["log_p"] for each in found if each is not None])


@torch.inference_mode()
def _predicted(work: Work, task: int, indices: Sequence[int], progress: Progress) -> Tensor:
    tower, split = work.own(task), work.splits[task]
    model = torch.nn.Module.to(running(tower), work.device)
    own = tower.tensors.get(PROJECTION) if work.recipe.with_projection else None
    projection = (work.base.projection if own is None else read_tensor(tower, own)).to(work.device)
    head = work.heads[task].to(work.device)
    fields = read_preprocessor(tower.describing, tower.architecture.image_size) or work.base.preprocessor
    loader = Loader(
        order=_InTurn(task, indices),
        splits=work.splits,
        preprocessor=fields,
        side=tower.architecture.image_size,
        batch_size=_BATCH,
        process=0,
        processes=1,
        workers=work.recipe.workers or default_workers(),
    )
    parts: list[Tensor] = []
    steps = -(-len(indices) // _BATCH)
    with (
        _told(progress, f"{tower.label} on {split.task.title}", len(indices)),
        full_float32(),
        contextlib.closing(loader.batches(0, steps)) as batches,
    ):
        for batch in batches:
            pixels = normalised(batch.pixels.to(work.device), fields)
            with torch.autocast(work.device.type, torch.bfloat16, enabled=work.precision == "bfloat16"):
                features = pooled(model, pixels)
            parts.append(log_predictions(features, head, projection, work.base.logit_scale).cpu())
            progress.advance(len(pixels))
    found = torch.cat(parts)
    if not bool(torch.isfinite(found).all()):
        raise NonFiniteError(
            f"{tower.label} gives NaN or Inf for an image of {split.task.title}.",
            hint="Its weights are broken: leave it out, or name an earlier revision of it.",
        )
    return found


@contextlib.contextmanager
def _told(progress: Progress, label: str, images: int) -> Iterator[None]:
    progress.start(label, images, "images")
    try:
        yield
    finally:
        progress.finish()


@dataclass(frozen=True)
class _InTurn:
    """Some images of one task, one after the other."""

    task: int
    indices: Sequence[int]

    def batch(self, step: int, size: int) -> list[Place]:
        """The images of one step."""
        return [(self.task, index) for index in self.indices[step * size : (step + 1) * size]]
