"""What an adaptation is about: its tasks, which tower is a task's own, and hence what it can minimise."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hfcart.errors import UsageError
from hfcart.quoting import some
from hfcart.recipes.merge_recipe import Recipe
from hfcart.sources.own_tasks import own_towers, places_of
from hfcart.sources.towers import Tower
from hfcart.tasks.task_cards import TaskCard, name_of


@dataclass(frozen=True)
class AdaptationTask:
    """A task whose images coefficients are learned on.

    Attributes:
        card: its card.
        commit: of the dataset; None to take what the card says.
        own: the source that was fine-tuned on it; None if no card tells.
    """

    card: TaskCard
    commit: str | None
    own: Tower | None


def adaptation_tasks(recipe: Recipe, towers: Sequence[Tower]) -> tuple[AdaptationTask, ...]:
    """The tasks of `adapt`, () without it.

    Args:
        recipe: of the merge.
        towers: its sources in the order given, pinned.

    Raises:
        UsageError: an unknown task, or SOURCE=TASK of no source.
    """
    asked = recipe.adapt or ()
    if isinstance(asked, str):
        cards, places = own_towers(towers, recipe.sources, [asked])
        commits: Sequence[str | None] = [None] * len(cards)
    else:
        cards, commits = tuple(task.found for task in asked), [task.commit for task in asked]
        places = places_of(cards, towers)
    return tuple(
        AdaptationTask(card, commit, None if place is None else towers[place])
        for card, commit, place in zip(cards, commits, places, strict=True)
    )


def objective_of(recipe: Recipe, tasks: Sequence[AdaptationTask]) -> str:
    """What adaptation minimises: as asked; `auto` is to be like the tasks' own towers, if all of these are known.

    Raises:
        UsageError: a task's own tower is asked for and not known.
    """
    lost = [task.card for task in tasks if task.own is None]
    if recipe.objective == "distill" and lost:
        known = {name for task in tasks if task.own for name in (task.own.label, task.own.store.repo)}
        typed = [source if isinstance(source, str) else source.path for source in recipe.sources]
        free = [source for source in typed if not {source.partition("@")[0], Path(source).name} & known]
        told = [recipe.adapt] if isinstance(recipe.adapt, str) else []
        told.append(f"{free[0] if free else 'SOURCE'}={name_of(lost[0])}")
        raise UsageError(
            f"It is not known which source was fine-tuned on {some([card.title for card in lost])}: no card tells.",
            hint=f"Say it, such as --adapt {shlex.quote(','.join(told))}\n"
            "Or take another --objective, such as infomax.",
        )
    if recipe.objective != "auto":
        return recipe.objective
    return "infomax" if lost else "distill"
