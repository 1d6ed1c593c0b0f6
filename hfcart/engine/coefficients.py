"""Which groups of a plan have learned coefficients, how many singular directions are chosen from, and both checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfcart.clip.tensor_names import Group
from hfcart.errors import UsageError
from hfcart.methods.shared.directions import from_hex
from hfcart.quoting import plural

if TYPE_CHECKING:
    from hfcart.engine.plan import Plan

_ANEW = "They were learned for another architecture, method or --qkv: learn them anew with --adapt."


def has_coefficients(plan: Plan, group: Group) -> bool:
    """Whether a group has a coefficient for each tower: those that are given say it themselves."""
    recipe = plan.recipe
    if recipe.adaptive is None or group.copied:
        return False
    if recipe.coefficients is not None:
        return group.key in recipe.coefficients
    return group.matrix or plan.method.alike or recipe.adapt_tensors == "all"


def directions_in(plan: Plan, group: Group) -> int | None:
    """How many directions of each tower are chosen from in a group; None where none are chosen."""
    if plan.recipe.adapt_ranks is None or not group.matrix:
        return None
    from hfcart.maths.low_rank import rank_of  # scipy: not for a plan alone

    full = plan.full_rank(group)
    return rank_of(plan.recipe.adapt_ranks, full, full)


def factors_in(plan: Plan, group: Group) -> int | None:
    """How many directions each tower's factors have while coefficients are learned; None for whole tensors."""
    rank = plan.recipe.parameters.get("rank")
    if plan.recipe.adapt_ranks is not None or rank is None or not group.matrix:
        return directions_in(plan, group)
    from hfcart.maths.low_rank import rank_of

    full = plan.full_rank(group)
    return rank_of(rank, full, full)


def kept_in(plan: Plan, group: Group) -> tuple[list[int], ...] | None:
    """The places of the directions of each tower that stay, in the towers' present order; None where all do."""
    given, count = (plan.recipe.directions or {}).get(group.key), directions_in(plan, group)
    if given is None or count is None:
        return None
    return tuple(from_hex(text, count) for text in plan.sources.canonical(given))


def check_coefficients(plan: Plan) -> None:
    """Raise UsageError if coefficients or directions that are given are not those of the plan's tensors."""
    matrices = {group.key for group in plan.groups if group.matrix and not group.copied}
    for group in plan.groups:
        if plan.recipe.adapt_ranks is not None and group.matrix:
            _check_ranks(plan.recipe.adapt_ranks, plan.recipe.given("rank"), group, plan.full_rank(group))
    if plan.recipe.coefficients is None:
        return
    every = {group.key for group in plan.groups if not group.copied}
    found, adaptive = set(plan.recipe.coefficients), plan.recipe.adaptive
    some = matrices if not plan.method.alike else every
    able = bool(adaptive and adaptive.other_parts)
    _refuse_others(found, every if able and found - some else some, "coefficients", plan)
    if plan.recipe.directions is None:
        return
    _refuse_others(set(plan.recipe.directions), matrices, "directions", plan)
    for group in plan.groups:
        try:
            kept_in(plan, group)
        except ValueError as error:
            raise UsageError(f"The directions of {group.key} are none: {error}.", hint=_ANEW) from None


def _check_ranks(most: int | float, start: int | float | None, group: Group, full: int) -> None:
    """Raise UsageError if a matrix has not so many directions, or more are to be on at the start than there are."""
    for name, asked in (("adapt_ranks", most), ("rank", start)):
        if isinstance(asked, int) and asked > full:
            raise UsageError(
                f"{name} {asked} is above the size of {group.key}, which has {plural(full, 'singular direction')}.",
                hint=f"Give --{name.replace('_', '-')} of at most {full}, or a share such as 16%.",
            )
    from hfcart.maths.low_rank import rank_of

    there = rank_of(most, full, full)
    if start is not None and (on := rank_of(start, full, full)) > there:
        raise UsageError(
            f"rank {start} has {plural(on, 'direction')} of {group.key} on at the start, and adapt_ranks {most} has "
            f"but {there} to choose from.",
            hint=f"Give --rank of at most {there}, or a larger --adapt-ranks.",
        )


def _refuse_others(found: set[str], wanted: set[str], what: str, plan: Plan) -> None:
    if wanted != found:
        lack = f"lack {min(wanted - found)}" if wanted - found else f"name {min(found - wanted)[:120]}"
        has = "has one for each tower" if wanted - found else f"has none with {plan.method.name}"
        raise UsageError(f"The {what} {lack}, which {has}.", hint=_ANEW)
