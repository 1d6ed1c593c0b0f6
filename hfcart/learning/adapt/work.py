"""What an adaptation learns from, fixed before its first step: tasks, images, heads, numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from hfcart.engine.adaptation_tasks import objective_of
from hfcart.engine.plan import Plan
from hfcart.errors import UsageError
from hfcart.learning.batches import EveryTask
from hfcart.methods import ADAPTING, Adaptive
from hfcart.progress import Progress
from hfcart.quoting import plural
from hfcart.recipes.merge_recipe import Recipe
from hfcart.sources.towers import Tower
from hfcart.system.checkpoints import digest_of
from hfcart.system.device import choose_device, precision_for
from hfcart.tasks.data import Split, open_split
from hfcart.zero_shot.heads import Base, check_architecture, make_head, open_base


@dataclass(frozen=True)
class Work:
    """What is learned from, fixed before the first step.

    Attributes:
        plan: of the merge.
        adaptive: what its method becomes.
        base: the CLIP model behind the heads.
        splits: the images, one a task.
        objective: entropy, infomax or distill.
        heads: a zero-shot head for each task.
        preprocessor: of the merged tower.
        device: where it runs.
        precision: of its forward pass.
    """

    plan: Plan
    adaptive: Adaptive
    base: Base
    splits: Sequence[Split]
    objective: str
    heads: Sequence[Tensor]
    preprocessor: dict[str, Any]
    device: torch.device
    precision: str

    @property
    def recipe(self) -> Recipe:
        """What was asked."""
        return self.plan.recipe

    @property
    def start(self) -> float:
        """What every coefficient begins at."""
        scale: float | None = self.recipe.given("scale")
        return self.adaptive.start if scale is None else scale

    @property
    def rank(self) -> int | float | None:
        """How many directions of each matrix are on at the start; None where they are not chosen."""
        default = self.adaptive.rank
        asked: int | float | None = self.recipe.given("rank") if "rank" in self.adaptive.replaces else None
        return default if default is None or asked is None else asked

    def own(self, task: int) -> Tower:
        """The tower that was fine-tuned on a task; asked for where the objective needs it, and so knows it."""
        tower = self.plan.learns[task].own
        assert tower is not None
        return tower

    @property
    def order(self) -> EveryTask:
        """Of the images, step by step."""
        return EveryTask([len(split) for split in self.splits], self.setting("seed"))

    @property
    def images_a_step(self) -> int:
        """Of all tasks and all processes."""
        return len(self.splits) * self.adaptive.rounds * self.recipe.batch_size

    def setting(self, name: str) -> Any:  # noqa: ANN401 (a number of either kind)
        """The recipe's steps, lr or seed, or its default."""
        default = next(parameter.default for parameter in ADAPTING if parameter.name == name)
        given = self.recipe.given(name)
        return default if given is None else given

    def float32_plan(self) -> Plan:
        """The plan for taking apart: in float32, whatever the merge writes."""
        return dataclasses.replace(self.plan, dtype="F32")

    def decides(self, processes: int) -> list[Any]:
        """All that decides the coefficients, as JSON holds it."""
        numbers = [self.setting(name) for name in ("steps", "lr", "seed")]
        teachers = range(len(self.splits)) if self.objective == "distill" else ()
        return [
            self.plan.recorded_recipe(),
            [tower.source.sha256 for tower in self.plan.towers],
            [self.base.key, self.base.source.sha256, self.base.logit_scale, self.preprocessor],
            digest_of({str(i): head for i, head in enumerate(self.heads)}),
            [split.decides() for split in self.splits],
            [self.objective, *(self.own(task).source.sha256 for task in teachers)],
            [*numbers, self.recipe.batch_size, self.recipe.adapt_per, self.start, self.precision, processes],
            [self.recipe.adapt_ranks, self.rank, self.recipe.adapt_tensors],
        ]


def prepare(plan: Plan, accelerator: Accelerator, preprocessor: dict[str, Any] | None, progress: Progress) -> Work:
    """Read the task cards, pin the base, open the images and make the heads.

    Raises:
        UsageError: an unknown task, or a number of processes that the batches cannot be shared by.
        HfcartError: the base is not the towers', or a dataset cannot be used.
    """
    recipe, adaptive = plan.recipe, plan.recipe.adaptive
    assert adaptive is not None and recipe.adapt is not None  # the recipe was checked
    tasks = plan.learns
    batches = len(tasks) * adaptive.rounds
    if batches % accelerator.num_processes:
        raise UsageError(
            f"A step has {plural(batches, 'batch', 'batches')}, which "
            f"{plural(accelerator.num_processes, 'process', 'processes')} cannot share evenly.",
            hint=f"Start a number of processes that divides {batches}.",
        )
    several = accelerator.num_processes > 1
    device: torch.device = accelerator.device if several else choose_device(recipe.device)
    base = open_base(plan.clip_ref, progress)
    check_architecture("the towers", plan.architecture, base)
    splits = [
        open_split(task.card, recipe.adapt_split, commit=task.commit, streaming=False, progress=progress)
        for task in tasks
    ]
    heads = [make_head(base, task.card, progress) for task in tasks]
    precision = precision_for(recipe.precision, device)
    return Work(
        plan,
        adaptive,
        base,
        splits,
        objective_of(recipe, tasks),
        heads,
        preprocessor or base.preprocessor,
        device,
        precision,
    )
