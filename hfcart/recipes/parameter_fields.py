"""The fields of a merge's recipe that methods bring: one for each of their parameters, and of those of `adapt`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from hfcart.methods import ADAPTING, METHODS, Parameter
from hfcart.recipes.options import BASICS, METHOD, Option

# By name: fields of the recipe, and options of the command line.
PARAMETERS = {p.name: p for p in (*ADAPTING, *(p for m in METHODS.values() for p in m.parameters))}
SHARES = ("number", "rank", "numbers", "each")  # kinds of parameters that may be written in per cent

_TYPES: dict[str, Any] = {
    "number": float | None,
    "whole": int | None,
    "rank": int | float | None,
    "choice": str | None,
    "numbers": Annotated[tuple[float, ...], Field(strict=False)] | None,
    "each": float | Annotated[tuple[float, ...], Field(strict=False)] | None,
}


_LONGEST = 30  # characters of methods' names before an option's help, which has one line
_METAVARS = {"rank": "RANK", "numbers": "W,W,...", "each": "X or X,X"}


def field_of(parameter: Parameter) -> tuple[Any, None]:
    """The field of a method's parameter: its type, and no value, which means the method's own default."""
    takers = {m.name: p for m in METHODS.values() if (p := m.parameter(parameter.name))}
    if learned := next((p for p in ADAPTING if p.name == parameter.name), None):
        takers["adapt"] = learned
    defaults = {p.default for p in takers.values()}
    basic = parameter.name in ("rank", "scale")
    names = ", ".join(takers)
    few = names if len(names) <= _LONGEST else ", ".join([*takers][:2]) + " and others"
    short, _, more = next(iter(takers.values())).help.partition(". ")
    short = short.removesuffix(".") + "."
    option = Option(
        short if basic else f"{few}: {short[0].lower()}{short[1:]}",
        BASICS if basic else METHOD,
        f"{more} Of {names}.".strip(),
        metavar="|".join(parameter.choices) or _METAVARS.get(parameter.kind, ""),
        default="" if defaults == {None} else str(defaults.pop()) if len(defaults) == 1 else "the method's",
        taken=lambda method: method.parameter(parameter.name) is not None,
    )
    return Annotated[_TYPES[parameter.kind], option], None
