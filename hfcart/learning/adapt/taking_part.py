"""What another process of a launch does for an adaptation when the first calls for it: see hfcart.system.processes."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from hfcart.engine.plan import Plan
from hfcart.learning.adapt.loop import adapt
from hfcart.progress import Progress
from hfcart.recipes.merge_recipe import Recipe
from hfcart.system.processes import Team

_PATIENCE = timedelta(hours=12)


def join_accelerate(recipe: Recipe) -> None:
    """Have accelerate's processes be those of this launch, on the recipe's kind of device."""
    # The others wait while one downloads, or runs a tower over its images: torch's half an hour is not enough.
    PartialState(cpu=recipe.device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=_PATIENCE)


def learn(team: Team, plan: Plan, folder: Path, preprocessor: dict[str, Any] | None) -> None:
    """Take part in the adaptation. Raises as it does.

    Args:
        team: of this process.
        plan: the first's.
        folder: where it keeps the adaptation's work.
        preprocessor: of the merged tower.
    """
    join_accelerate(plan.recipe)
    try:
        adapt(plan, folder, preprocessor, Progress())
    finally:
        plan.close()
