"""A recipe made a plan: sources pinned and proven alike, whatever cannot work refused, no weights fetched."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from hfcart.clip.architecture import expected_shapes
from hfcart.clip.tensor_names import Group, groups
from hfcart.clip.to_open_clip import lay_out_open_clip, model_cfg
from hfcart.engine.adaptation_tasks import adaptation_tasks, objective_of
from hfcart.engine.adapters.layout import plan_adapters, together
from hfcart.engine.adapters.names import adapter_names
from hfcart.engine.coefficients import check_coefficients
from hfcart.engine.plan import TORCH_NAME, Plan
from hfcart.errors import UsageError
from hfcart.formats.shard_layout import Layout, lay_out
from hfcart.methods import METHODS, Method
from hfcart.progress import Progress
from hfcart.quoting import plural
from hfcart.recipes.fields import parse_size
from hfcart.recipes.merge_recipe import Recipe
from hfcart.recipes.named import SourceTask
from hfcart.sources.full_clip import read_base_parts
from hfcart.sources.headers import read_headers
from hfcart.sources.lineage import infer_base, remember_bases
from hfcart.sources.one_architecture import check_alike, describe
from hfcart.sources.order import OrderedTowers
from hfcart.sources.own_tasks import match
from hfcart.sources.places import pin, pin_all
from hfcart.sources.stores import LocalStore
from hfcart.sources.towers import Tower

if TYPE_CHECKING:
    from hfcart.hub import Target

_SAFE_NAME = {name: dtype for dtype, name in TORCH_NAME.items()}


def make_plan(
    recipe: Recipe, converted: Path, progress: Progress, target: Target | None = None, beneath: str | None = None
) -> Plan:
    """Resolve, read headers, check; nothing of the weights is fetched (pickles excepted: they have no header).

    Args:
        recipe: what was asked.
        converted: folder for converted pickles; CONVERTED of a work folder.
        progress: told of each stage.
        target: where the result is to be published, if the push is to replace what is there.
        beneath: the base of adapters that name none, where the recipe has no base of its own.

    Raises:
        PublishError: the target may not be replaced by this merge.
        HfcartError: whatever is wrong with the sources or the recipe.
    """
    method = METHODS[recipe.method]
    towers = pin_all(recipe.sources, progress, recipe.base or beneath)
    remember_bases(towers)
    tasks, learns = _tasks(recipe, towers), adaptation_tasks(recipe, towers)
    objective_of(recipe, learns)  # refused before anything is fetched
    base = _base(recipe, method, towers, progress, beneath)
    if target is not None:
        from hfcart.sources.replacing import merge_of, refuse_replacing  # as the Hub's client, only for who publishes

        refuse_replacing(target, merge_of(towers, base), overwrite=recipe.overwrite, progress=progress)
    read_headers([*towers, *([base] if base else [])], converted, progress)
    describe(towers, base, recipe.activation)
    architecture = check_alike(towers, base, projection=recipe.with_projection)
    shapes = expected_shapes(architecture, projection=recipe.with_projection)
    also = {name for name, shape in shapes.items() if len(shape) == 2} if recipe.matrices == "all-2d" else ()
    to_do = groups(shapes, recipe.qkv, also)
    dtype = _SAFE_NAME[recipe.dtype] if recipe.dtype else _widest(towers)
    parts = read_base_parts(base) if recipe.full_clip and base else None
    if parts and base:
        architecture = dataclasses.replace(architecture, projection_dim=base.architecture.projection_dim)
        base.tensors |= parts.tensors
        shapes |= {name: spec.shape for name, spec in parts.tensors.items()}
        to_do += [Group((name,), matrix=False, copied=True) for name in parts.tensors]
    adapters = None
    if recipe.adapters is not None:
        flat = not (parts or recipe.with_projection)  # as the class of transformers 5 that loads the tower has it
        carry_all = recipe.adapters_carry == "all"
        names = adapter_names(towers)
        adapters = plan_adapters(names, recipe.adapters, to_do, shapes, dtype=dtype, flat=flat, all_tensors=carry_all)
    plan = Plan(
        recipe,
        method,
        OrderedTowers.as_given(towers),
        base,
        architecture,
        shapes,
        tuple(to_do),
        dtype,
        together(_layout(recipe, shapes, dtype), adapters),
        parts,
        tasks,
        adapters=adapters,
        learns=learns,
    )
    if parts and recipe.format == "open_clip":
        model_cfg(architecture, parts.text_config)  # refused before anything is fetched
    _check_rank(plan)
    check_coefficients(plan)
    return plan


def _base(recipe: Recipe, method: Method, towers: list[Tower], progress: Progress, beneath: str | None) -> Tower | None:
    """The base that was asked for, else the one that the towers lead to, where one is needed; else None."""
    ref = recipe.base
    if ref is None and (method.needs_base or method.heads or recipe.full_clip):
        ref = infer_base(towers, progress)
        progress.note(f"Base model: {ref} (give --base to choose another).")
    return _shared(pin(ref, progress, recipe.base or beneath), towers) if ref else None


def _shared(base: Tower, towers: list[Tower]) -> Tower:
    """The base; the very tower that adapters among the sources belong to if it is that one, which is opened once."""

    def place(tower: Tower) -> object:
        return tower.store.ref or (isinstance(tower.store, LocalStore) and tower.store.opened.resolve())

    return next((tower.base for tower in towers if tower.base and place(tower.base) == place(base)), base)


def _tasks(recipe: Recipe, towers: list[Tower]) -> tuple[SourceTask, ...]:
    """The task of each source, in the order given; () if the recipe names none."""
    told = [task for task in recipe.tasks or () if isinstance(task, SourceTask)]
    entries = [task for task in recipe.tasks or () if isinstance(task, str)]
    if not entries:
        return tuple(told)
    return tuple(SourceTask.of(task, None) for task in match(towers, recipe.sources, entries))


def _layout(recipe: Recipe, shapes: dict[str, tuple[int, ...]], dtype: str) -> Layout:
    if recipe.format == "open_clip":
        return lay_out_open_clip(shapes, dtype)
    return lay_out(shapes, dtype, parse_size(recipe.max_shard_size))


def _widest(towers: list[Tower]) -> str:
    """The narrowest dtype that holds every input's values: float16 beside bfloat16 needs float32."""
    found = {spec.dtype for tower in towers for spec in tower.tensors.values()}
    return found.pop() if len(found) == 1 else "F32"


def _check_rank(plan: Plan) -> None:
    rank = plan.recipe.parameters.get("rank")
    if not isinstance(rank, int):
        return
    for group in plan.groups:
        if group.matrix and rank > (full := plan.full_rank(group)):
            raise UsageError(
                f"rank {rank} is above the size of {group.key}, which has {plural(full, 'singular direction')}.",
                hint=f"Give --rank of at most {full}, or a fraction in (0, 1].",
            )
