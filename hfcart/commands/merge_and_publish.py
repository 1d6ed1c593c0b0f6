"""`hfcart merge` from a recipe to the end: merge, measure if asked to, publish if asked to."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hfcart.commands.merge import merge_folder, rehearse
from hfcart.errors import AGAIN, HfcartError, HubError, next_step
from hfcart.progress import Progress
from hfcart.recipes.merge_recipe import Recipe
from hfcart.records import EvalRecord, MergeRecord
from hfcart.records.file_names import RECORDS
from hfcart.system.processes import Team
from hfcart.system.work_folder import refuse_existing

if TYPE_CHECKING:
    from hfcart.engine.plan import Plan
    from hfcart.hub import Published, Target


@dataclass(frozen=True)
class Done:
    """A recipe carried out: the merge, its results (None without `eval`), the commit (None without `push_to`)."""

    record: MergeRecord
    results: EvalRecord | None
    published: Published | None


def run_merge(recipe: Recipe, progress: Progress, team: Team | None = None) -> Done:
    """Merge, verify and write the folder; evaluate it and publish it in one commit, as far as the recipe says.

    Under `accelerate launch` the processes share the groups, and what runs images through towers, adaptation and
    evaluation. The first alone calls this, with its team; the others follow it.

    Raises:
        HfcartError: see hfcart.errors; the partial folder can be resumed unless the error says otherwise.
        KeyboardInterrupt: with a note that says how to go on.
    """
    _check_tasks(recipe)
    target = _target(recipe, progress) if recipe.push_to else None
    record = merge_folder(recipe, progress, None if recipe.create_pr else target, team)
    if recipe.eval and team is not None:
        from hfcart.learning.adapt.taking_part import join_accelerate

        team.call(measure_too, recipe)
        join_accelerate(recipe)
    results = _evaluated(recipe, progress) if recipe.eval else None
    return Done(record, results, _published(recipe, target, progress) if target else None)


def measure_too(team: Team, recipe: Recipe) -> None:
    """Take part in the evaluation that follows a merge of another process's. Raises as it does."""
    from hfcart.learning.adapt.taking_part import join_accelerate

    join_accelerate(recipe)
    _evaluated(recipe, Progress())


def run_dry(recipe: Recipe, progress: Progress) -> Plan:
    """Make the plan and stop; says, and raises, what the merge would before its first byte. Nothing is written."""
    _check_tasks(recipe)
    target = _target(recipe, progress) if recipe.push_to else None
    return rehearse(recipe, progress, None if recipe.create_pr else target)


def _check_tasks(recipe: Recipe) -> None:
    """An unknown task is refused before the work."""
    if not (recipe.eval or recipe.adapt):
        return
    from hfcart.tasks.task_cards import parts, read_tasks

    learned = parts(recipe.adapt) if isinstance(recipe.adapt, str) else []
    # What has an = in it may say which source a task is of: that is looked at when the sources are known.
    for names in ([recipe.eval or ""], [name for name in learned if "=" not in name]):
        if any(names):
            read_tasks(names)


def _target(recipe: Recipe, progress: Progress) -> Target:
    refuse_existing(recipe.folder, RECORDS, overwrite=recipe.overwrite)
    # The Hub's client takes time and memory that a merge of local folders need not spend.
    from hfcart import hub

    hub.set_notifier(progress.note)
    progress.step(f"Checking write access to {recipe.push_to}")
    return hub.check_target(
        recipe.push_to or "", private=recipe.private, overwrite=recipe.overwrite, create_pr=recipe.create_pr
    )


def _evaluated(recipe: Recipe, progress: Progress) -> EvalRecord | None:
    from hfcart.commands.evaluate_and_publish import run_measure
    from hfcart.tasks.task_cards import read_tasks
    from hfcart.zero_shot.measurement import Measurement

    try:
        base = recipe.base if isinstance(recipe.base, str) else None
        measurement = Measurement(read_tasks([recipe.eval or ""]), base=base, device=recipe.device)
        done = run_measure(str(recipe.folder), measurement, progress=progress)
    except HfcartError as error:
        error.hint = next_step(error.hint, *_go_on(recipe))
        raise
    return done.record if done else None


def _go_on(recipe: Recipe) -> list[str]:
    """What is left to do of a recipe whose merge is complete."""
    base = ["--base", recipe.base] if isinstance(recipe.base, str) else []
    again = shlex.join(["hfcart", "eval", str(recipe.folder), "--tasks", recipe.eval or "", *base])
    lines = [f"The merge is complete in {recipe.folder}. To measure it: {again}"]
    if recipe.push_to:
        from hfcart.hub import push_command

        push = push_command(recipe.folder, recipe.push_to, recipe.private, recipe.create_pr, recipe.overwrite)
        lines.append(f"Then, to publish it: {push}")
    return lines


def _published(recipe: Recipe, target: Target, progress: Progress) -> Published:
    from hfcart import hub
    from hfcart.commands.push import run_push

    try:
        return run_push(
            recipe.folder,
            target.repo,
            target=target,
            overwrite=recipe.overwrite,
            private=recipe.private,
            create_pr=recipe.create_pr,
            message=recipe.commit_message,
            progress=progress,
        )
    except HubError as error:
        if AGAIN in (error.hint or ""):  # the merge is not to be made again
            push = hub.push_command(recipe.folder, target.repo, recipe.private, recipe.create_pr, recipe.overwrite)
            done = "The merge and its results are" if recipe.eval else "The merge is"
            error.hint = next_step(error.hint, f"{done} in {recipe.folder}: {push}")
        raise
