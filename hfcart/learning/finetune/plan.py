"""All that a fine-tuning starts from: the base pinned, its tower, the tasks' training images and frozen heads."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from hfcart.clip.architecture import expected_shapes
from hfcart.clip.tensor_groups import GROUPS, named_tensors
from hfcart.errors import UsageError
from hfcart.formats.shard_layout import Layout, lay_out
from hfcart.learning.finetune.recipe import FinetuneRecipe
from hfcart.progress import Progress
from hfcart.records import Environment
from hfcart.system.checkpoints import digest_of
from hfcart.system.environment import fingerprint
from hfcart.tasks.data import Split, open_split
from hfcart.tasks.task_cards import TaskCard, read_tasks
from hfcart.zero_shot.heads import Base, make_head, open_base
from hfcart.zero_shot.loaded_tower import LoadedTower, load_tower

_SHARD = 5_000_000_000  # bytes, as in a merge by default
# Fields of the recipe that decide the result, and are recorded as they are.
_NUMBERS = ("lr", "weight_decay", "steps", "batch_size", "seed", "max_grad_norm")


@dataclass(frozen=True)
class FinetunePlan:
    """A fine-tuning that is ready to begin.

    Attributes:
        recipe: what was asked for.
        base: the frozen parts.
        tower: what is trained.
        tasks: one card a task.
        splits: their training images, in the same order.
        validation: their validation images, in the same order; none if nothing is to be validated.
        heads: their zero-shot heads, classes × projection width, rows of unit length.
        precision: float32 or bfloat16.
        freeze: what is frozen of the tower, by the names as they are written.
        frozen: the tensors that these mean, by canonical name.
    """

    recipe: FinetuneRecipe
    base: Base
    tower: LoadedTower
    tasks: list[TaskCard]
    splits: list[Split]
    validation: list[Split]
    heads: list[torch.Tensor]
    precision: str
    freeze: tuple[str, ...]
    frozen: frozenset[str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the output's tensors, in output order."""
        return expected_shapes(self.tower.architecture, projection=False)

    @property
    def parameters(self) -> int:
        """How many numbers the tower has, those that are frozen with them."""
        return sum(prod(shape) for shape in self.shapes.values())

    @property
    def layout(self) -> Layout:
        """Where the output's tensors go."""
        return lay_out(self.shapes, "F32", _SHARD)

    def recorded_recipe(self) -> dict[str, Any]:
        """The recipe with the base pinned and every default filled in; nothing of this machine."""
        source = self.base.source
        local = {"path": source.label, "sha256": source.sha256}
        return {
            "base": source.ref or local,
            "tasks": [task.id for task in self.tasks],
            **{name: getattr(self.recipe, name) for name in _NUMBERS},
            "warmup": self.recipe.warmup_steps,
            "validate_every": self.recipe.validation_steps,
            "keep": self.recipe.keep,
            "precision": self.precision,
            **({"freeze": list(self.freeze)} if self.freeze else {}),
        }

    def fingerprint(self, environment: Environment, processes: int) -> str:
        """Digest of all that decides the bytes: a checkpoint of another training is not resumed."""
        heads = digest_of({str(i): values for i, values in enumerate(self.heads)})
        base = [self.base.source.sha256, self.base.preprocessor, self.base.logit_scale]
        data = [split.decides() for split in self.splits]
        return fingerprint(environment, self.recorded_recipe(), base, data, heads, processes)


def make_finetune_plan(recipe: FinetuneRecipe, precision: str, progress: Progress) -> FinetunePlan:
    """Read the task cards, pin and load the base, open the training images and make the heads.

    Raises:
        UsageError: an unknown task, or a part to freeze that the tower has not.
        SourceError: the base is no CLIP model, or a dataset cannot be used.
    """
    tasks = read_tasks(recipe.tasks)
    base = open_base(recipe.base, progress)
    tower = load_tower(base.again, progress)  # the very commit whose projection was read
    freeze, frozen = _frozen(recipe, tower)
    splits = [open_split(task, "train", streaming=False, progress=progress) for task in tasks]
    validation = [split.part_beside("validation") for split in splits if recipe.validation_steps]
    heads = [make_head(base, task, progress) for task in tasks]
    return FinetunePlan(recipe, base, tower, tasks, splits, validation, heads, precision, freeze, frozen)


def _frozen(recipe: FinetuneRecipe, tower: LoadedTower) -> tuple[tuple[str, ...], frozenset[str]]:
    """What stays as it is: the names, and the tensors. Raises UsageError for a name that means nothing, or for all."""
    tensors = list(expected_shapes(tower.architecture, projection=False))
    hint = f"Names: {', '.join(GROUPS)}, or a module such as encoder.layers.0; several with commas."
    try:
        names, found = named_tensors(recipe.freeze, tensors)
    except ValueError as error:
        raise UsageError(f"--freeze: {error}", hint=hint) from None
    if len(found) == len(tensors):
        raise UsageError("--freeze leaves nothing of the tower to train.", hint=hint)
    return names, frozenset(found)
