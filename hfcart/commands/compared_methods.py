"""Which methods a comparison merges with: what was asked for, with which settings, and what keeps one from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hfcart.errors import UsageError
from hfcart.methods import ADAPTING, ADAPTIVE, METHODS, RANKED, behind
from hfcart.names import key, meant, spelled
from hfcart.quoting import quoted
from hfcart.recipes.merge_recipe import make
from hfcart.recipes.named import SourceTask
from hfcart.sources.towers import Reopened
from hfcart.tasks.task_cards import TaskCard

Ref = str | Reopened
EVERY_DIRECTION = 1.0  # of each matrix: what AdaRank chooses from, as published


def offered(sources: int, *, adapted: bool = False) -> list[str]:
    """Every method that can merge so many sources, in the registry's order; then what `adapt` makes of them."""
    found = [name for name, method in METHODS.items() if method.exactly in (0, sources)]
    return found + [name for name, method in ADAPTIVE.items() if adapted and method in found]


def chosen(methods: Sequence[str], sources: int) -> tuple[tuple[str, ...], bool]:
    """The methods asked for, each once, and whether that is all there are: those may be left out if need be.

    Args:
        methods: names of the registry and of what `adapt` makes of its methods, however spelled; () for all that take
            so many sources and learn no coefficients, ("all",) for those that do as well.
        sources: how many are merged.

    Raises:
        UsageError: an unknown method.
    """
    every = not methods or [key(name) for name in methods] == ["all"]
    return tuple(offered(sources, adapted=bool(methods)) if every else dict.fromkeys(map(_named, methods))), every


def _named(name: str) -> str:
    """The name of a method, or of what `adapt` makes of one, however it was spelled. Raises UsageError."""
    known = (*METHODS, *ADAPTIVE, "all")
    if (found := spelled(name, known)) in (None, "all"):
        told = "All stands alone." if found else f"There is no method {quoted(name)}. {meant(name, known)}"
        raise UsageError(told, hint="`hfcart methods` lists them.")
    return found


def settings_of(sources: Sequence[str], name: str, any_task: TaskCard) -> dict[str, Any]:
    """The parameters that a method has in a comparison: its defaults. Raises UsageError if it takes no such sources."""
    # Which tasks decides no parameter; whether a method takes some is known here already.
    one = SourceTask.of(any_task, None)
    told: dict[str, Any] = {"tasks": [one] * len(sources)} if name in METHODS and METHODS[name].statistics else {}
    if name in ADAPTIVE:
        told["adapt"] = (one,)
    if name in RANKED:
        told["adapt_ranks"] = EVERY_DIRECTION
    settings = make({"sources": tuple(sources), "method": ADAPTIVE.get(name, name), **told}).parameters
    return settings | ({p.name: p.default for p in ADAPTING} if name in ADAPTIVE else {})


def blind(name: str, sources: Mapping[Ref, TaskCard | None], tasks: Sequence[TaskCard]) -> str | None:
    """Why a method that looks at training images cannot do so; None if it can, or needs none."""
    looks_at: Sequence[TaskCard | None] = tasks if name in ADAPTIVE else ()
    if name in METHODS and METHODS[name].statistics:
        looks_at = list(sources.values())
        if lost := [str(ref).partition("@")[0] for ref, task in sources.items() if task is None]:
            return (
                f"They look at images of each source's own task, and none of these tasks is that of {', '.join(lost)}."
            )
    if closed := sorted({task.id for task in looks_at if task and task.dataset.train_split is None}):
        return f"They look at training images, and {', '.join(closed)} names no train split."
    return None


def blind_ones(
    names: Sequence[str], sources: Mapping[Ref, TaskCard | None], tasks: Sequence[TaskCard]
) -> list[tuple[list[str], str]]:
    """The methods that cannot look at the images they need, by what keeps them from it."""
    found: dict[str, list[str]] = {}
    for name in names:
        if why := blind(name, sources, tasks):
            found.setdefault(why, []).append(name)
    return [(left, why) for why, left in found.items()]


def needs_of(name: str) -> str:
    """What a method needs, in the words of `hfcart methods`."""
    return behind(name).needs + (", unlabelled images" if name in ADAPTIVE else "")
