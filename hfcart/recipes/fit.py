"""Whether the fields of a merge's recipe fit its method and each other."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hfcart.methods import ADAPTING, METHODS, Parameter
from hfcart.quoting import plural
from hfcart.recipes.named import SourceTask
from hfcart.recipes.parameter_fields import PARAMETERS

if TYPE_CHECKING:
    from hfcart.recipes.merge_recipe import Settings

_ADAPTERS = Parameter("adapters", None, "", kind="rank")
_RANKS = Parameter("adapt_ranks", None, "", kind="rank")
_HEX = re.compile(r"[0-9a-f]{1,5000}")  # of one matrix's directions, four a digit


def check_fit(recipe: Settings) -> None:
    """Raise ValueError, in one sentence, if a recipe whose fields are right one by one makes no sense as a whole."""
    method = METHODS[recipe.method]
    _check_parameters(recipe)
    _check_adapters(recipe)
    _check_wrappers(recipe)
    if recipe.matrices != "blocks" and not method.any_matrix:
        able = [name for name, line in METHODS.items() if line.any_matrix]
        why = f"{', '.join(able)}, not with {recipe.method}{_unasked(recipe, able)}"
        raise ValueError(f"matrices: {recipe.matrices} goes with {why}")
    _check_coefficients(recipe)
    _check_directions(recipe)
    _check_tasks(recipe)
    if method.exactly and len(recipe.sources) != method.exactly:
        raise ValueError(f"{recipe.method} merges {plural(method.exactly, 'source')}, not {len(recipe.sources)}")
    _check_output(recipe)


def _check_parameters(recipe: Settings) -> None:
    known = {p.name: p for p in METHODS[recipe.method].parameters}
    if recipe.adapt is not None:
        known = {**known, **{p.name: p for p in ADAPTING}}
    for name in PARAMETERS:
        value = recipe.given(name)
        if value is None:
            continue
        if name not in known:
            takes = ", ".join(sorted(known)) or "no parameters"
            able = [method.name for method in METHODS.values() if method.parameter(name)]
            raise ValueError(f"{recipe.method} has no {name}: it takes {takes}{_unasked(recipe, able)}")
        _check(known[name], value)
        if isinstance(value, tuple) and len(value) != len(recipe.sources):
            raise ValueError(f"{name}: {plural(len(value), 'number')} for {plural(len(recipe.sources), 'source')}")


def _unasked(recipe: Settings, able: Sequence[str]) -> str:
    """What to add where the method may be nobody's choice: under adapters it is the average."""
    if recipe.adapters is None or recipe.method != "average" or not able:
        return ""
    return f"; where adapters are asked for and no method, it is the average: add `--method {able[0]}`"


def _check(parameter: Parameter, value: Any) -> None:  # noqa: ANN401 (of the parameter's kind)
    try:
        parameter.check(value)
    except ValueError as error:
        raise ValueError(f"{parameter.name}: {error}") from None


def _check_adapters(recipe: Settings) -> None:
    if recipe.adapters is not None:
        _check(_ADAPTERS, recipe.adapters)
    elif recipe.adapters_carry != "all":
        raise ValueError("adapters_carry says what adapters hold: give adapters too, such as 8%")


def _check_wrappers(recipe: Settings) -> None:
    adds = METHODS[recipe.method].task_vectors
    other = f"{recipe.method} does not do{_unasked(recipe, [n for n, line in METHODS.items() if line.task_vectors])}"
    if recipe.lines is not None:
        if not adds:
            raise ValueError(f"lines scales what a method adds to the base, which {other}")
        if recipe.given("scale") is not None:
            raise ValueError("lines gives each block a scale of its own: leave scale out")
        if not math.isfinite(recipe.lines):
            raise ValueError(f"lines: {recipe.lines} is not a finite number")
    if recipe.svc is not None:
        if not adds:
            raise ValueError(f"svc calibrates what a method adds to the base, which {other}")
        if not 0 < recipe.svc < math.inf:
            raise ValueError(f"svc: {recipe.svc} is not a finite number above 0")


def _check_coefficients(recipe: Settings) -> None:
    asked = "adapt" if recipe.adapt is not None else "coefficients"
    if recipe.adapt is None and recipe.coefficients is None:
        return
    if METHODS[recipe.method].adaptive is None:
        able = [name for name, line in METHODS.items() if line.adaptive]
        why = f"{recipe.method} has no coefficient for each tower{_unasked(recipe, able)}"
        raise ValueError(f"{asked} goes with {', '.join(able)}: {why}")
    if recipe.adapt is not None and recipe.coefficients is not None:
        raise ValueError("adapt learns the coefficients that are given already: leave one of them out")
    if recipe.lines is not None:
        raise ValueError(f"lines gives each block a scale of its own, and {asked} each tensor: leave one of them out")
    if recipe.svc is not None:
        raise ValueError(f"svc changes the directions that {asked} scales: leave one of them out")
    for name, values in (recipe.coefficients or {}).items():
        if len(values) != len(recipe.sources):
            raise ValueError(f"coefficients: {len(values)} of {name[:120]} for {plural(len(recipe.sources), 'source')}")
        if not all(map(math.isfinite, values)):
            raise ValueError(f"coefficients: {name[:120]} has one that is not a finite number")
    if recipe.coefficients is not None and recipe.given("scale") is not None:
        raise ValueError("coefficients are the scales of each tower: leave scale out")


def _check_directions(recipe: Settings) -> None:
    """Of which singular directions are to be chosen, which were, and which tensors have coefficients."""
    adaptive = METHODS[recipe.method].adaptive
    if recipe.adapt_tensors != "auto" and recipe.adapt is None:
        raise ValueError("adapt_tensors says which tensors adapt learns coefficients of: give adapt too, such as 8")
    if recipe.adapt_tensors == "all" and adaptive and not (METHODS[recipe.method].alike or adaptive.other_parts):
        raise ValueError(f"adapt_tensors: {recipe.method} has coefficients for matrices alone")
    if recipe.adapt_tensors == "matrices" and METHODS[recipe.method].alike:
        raise ValueError(f"adapt_tensors: {recipe.method} treats every tensor alike, so all have coefficients")
    if recipe.adapt_ranks is None:
        if recipe.directions is not None:
            raise ValueError("directions were chosen among so many as adapt_ranks says: give it too")
        return
    if adaptive is None or adaptive.ranked is None:
        able = [name for name, line in METHODS.items() if line.adaptive and line.adaptive.ranked]
        why = f"{recipe.method} has no directions to choose from{_unasked(recipe, able)}"
        raise ValueError(f"adapt_ranks goes with {', '.join(able)}: {why}")
    _check(_RANKS, recipe.adapt_ranks)
    rank = recipe.given("rank") if "rank" in adaptive.ranked.replaces else None
    if rank is not None and type(rank) is type(recipe.adapt_ranks) and rank > recipe.adapt_ranks:
        raise ValueError(
            f"rank: {rank} cannot be on at the start where adapt_ranks is {recipe.adapt_ranks}: at most as much can"
        )
    if recipe.adapt is None and recipe.directions is None:
        raise ValueError("adapt_ranks says which directions adapt may choose from: give adapt too, such as 8")
    if recipe.adapt is not None and recipe.directions is not None:
        raise ValueError("adapt chooses the directions that are given already: leave one of them out")
    if recipe.directions is not None and recipe.coefficients is None:
        raise ValueError("directions go with coefficients: give both")
    if recipe.directions is not None and rank is not None:
        raise ValueError("directions say which are kept: leave rank out")
    for name, chosen in (recipe.directions or {}).items():
        if len(chosen) != len(recipe.sources):
            raise ValueError(f"directions: {len(chosen)} of {name[:120]} for {plural(len(recipe.sources), 'source')}")
        if not all(map(_HEX.fullmatch, chosen)):
            raise ValueError(f"directions: {name[:120]} has one that is not written in hexadecimal digits")


def _check_tasks(recipe: Settings) -> None:
    method = METHODS[recipe.method]
    if recipe.tasks is None:
        if method.statistics is not None:
            raise ValueError(
                f"{recipe.method} looks at images of each source's own task: say which tasks these are, such as "
                "tasks: 8, or --tasks 8"
            )
        return
    if not method.takes_tasks:
        able = [name for name, line in METHODS.items() if line.takes_tasks]
        raise ValueError(f"{recipe.method} looks at no images: leave tasks out{_unasked(recipe, able)}")
    if method.chosen and recipe.given(name := method.chosen.parameter) is not None:
        raise ValueError(f"tasks chooses the {name} that is given already: leave one of them out")
    recorded = sum(isinstance(task, SourceTask) for task in recipe.tasks)
    if recorded not in (0, len(recipe.tasks)) or (recorded and recorded != len(recipe.sources)):
        raise ValueError(f"tasks: {recorded} of a recorded recipe for {plural(len(recipe.sources), 'source')}")


def _check_output(recipe: Settings) -> None:
    if recipe.full_clip and recipe.with_projection:
        raise ValueError(
            "full_clip takes the visual projection from the base, with_projection merges the sources': give one"
        )
    if recipe.format == "open_clip":
        if not recipe.full_clip:
            raise ValueError("format: open_clip files hold the text side as well, so full_clip has to be given too")
        if recipe.adapters is not None:
            raise ValueError("adapters are loaded with transformers and peft: leave them out, or format open_clip")
        if recipe.max_shard_size != type(recipe).model_fields["max_shard_size"].default:
            raise ValueError("max_shard_size: OpenCLIP reads one file, so leave it out with format open_clip")
    if recipe.create_pr and recipe.push_to is None:
        raise ValueError("create_pr needs push_to")
