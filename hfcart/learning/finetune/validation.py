"""How a tower in training does on the seeded validation split: what `hfcart eval --part validation` would say of it."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import reduce

from hfcart.errors import NonFiniteError
from hfcart.learning.finetune.plan import FinetunePlan
from hfcart.progress import Progress
from hfcart.quoting import plural
from hfcart.system.device import Machine
from hfcart.zero_shot.scoring import Scorer, nothing_decoded, score

Counts = tuple[int, ...]  # one number a task


def cost(plan: FinetunePlan) -> str:
    """What looking at the validation images adds, in a sentence. A step's image costs about three forward passes."""
    recipe, images = plan.recipe, sum(len(split) for split in plan.validation)
    looks = 1 + -(-recipe.steps // recipe.validation_steps)
    share = round(100 * images * looks / (3 * recipe.steps * recipe.batch_size)) or "less than 1"
    return (
        f"{plural(images, 'validation image')}, looked at {looks} times: about {share} % more work "
        f"(--validate-every 0 leaves it out)."
    )


def count_correct(
    plan: FinetunePlan, tower: torch.nn.Module, accelerator: Accelerator, device: torch.device
) -> tuple[Counts, Counts]:
    """Validation images put into their class, and those that could be decoded: numbers of all processes together.

    Args:
        plan: whose validation images and heads are used; each process scores its share.
        tower: on the device; it is in training again afterwards.
        accelerator: of the training.
        device: where it is.

    Raises:
        NonFiniteError: the tower gives NaN or Inf; in every process.
        SourceError: not one image of a task can be decoded.
    """
    shard, shards = accelerator.process_index, accelerator.num_processes
    machine = Machine.on(device, plan.precision, plan.recipe.workers)
    tower.eval()  # dropout, if the base's config asks for any, is for training
    scorer = Scorer(tower, plan.base.projection, plan.base.preprocessor, machine)  # type: ignore[arg-type]
    counts, broken = [], None
    try:
        for split, head in zip(plan.validation, plan.heads, strict=True):
            (confusion,), _ = score(split, [scorer], head, machine, shard=shard, shards=shards, progress=Progress())
            counts.append([int(confusion.trace()), int(confusion.sum())])
    except NonFiniteError as error:
        broken, counts = error, [[0, 0]] * len(plan.heads)
    finally:
        tower.train()
    # A process that raised alone would leave the others waiting: all are told.
    told = reduce(torch.tensor([*counts, [int(broken is not None), 0]], device=device), "sum").tolist()
    if told.pop()[0]:
        raise broken or NonFiniteError("the tower gives NaN or Inf for an image.")
    for split, (_, images) in zip(plan.validation, told, strict=True):
        if not images:
            raise nothing_decoded(split, len(split))
    return tuple(correct for correct, _ in told), tuple(images for _, images in told)
