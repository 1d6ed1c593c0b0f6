"""The fields of a merge's recipe that methods bring: one for each of their parameters, and those of adaptation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hfcart.methods import ADAPTING, METHODS, Parameter
from hfcart.recipes.named import SourceTask
from hfcart.recipes.options import ADAPTATION, BASICS, METHOD, Option

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


class AdaptationFields(BaseModel):
    """What of a recipe is about coefficients and directions: how they are learned, or what they are.

    `coefficients` (group of tensors -> one for each source) and `directions` (matrix -> which of each source's stay, as
    hfcart.methods.shared.directions has it) are only ever recorded, never options.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    coefficients: dict[str, list[float]] | None = None
    directions: dict[str, list[str]] | None = None
    adapt: Annotated[
        str | Annotated[tuple[SourceTask, ...], Field(strict=False)] | None,
        Option(
            "Learn coefficients on images without labels.",
            ADAPTATION,
            "One for each tower and tensor; tasks as `hfcart eval` takes them. In place of --scale, where they begin. "
            "With cart that is CART++, with task_arithmetic AdaMerging, with ties AdaMerging++. Takes --steps, --lr "
            "and --seed.",
            metavar="TASKS",
            taken=lambda method: method.adaptive is not None,
        ),
    ] = None
    adapt_split: Annotated[
        Literal["train", "validation", "test"],
        Option("Which images.", ADAPTATION, "The papers take test images; the card then says so."),
    ] = "train"
    objective: Annotated[
        Literal["auto", "entropy", "infomax", "distill"],
        Option(
            "What adaptation minimises.",
            ADAPTATION,
            "entropy: how undecided the merged tower is (the papers'); infomax: that, less how evenly its predictions "
            "are spread over the classes; distill: how far they are from those of the task's own tower. auto: distill "
            "where the own tower of each task is known, else infomax. Which tower is a task's own is found as for "
            "--tasks; SOURCE=TASK in --adapt says it.",
            taken=lambda method: method.adaptive is not None,
        ),
    ] = "auto"
    adapt_ranks: Annotated[
        int | float | None,
        Option(
            "AdaRank: choose among so many directions.",
            ADAPTATION,
            "Which singular directions of each tower stay is learned beside the coefficients: of each matrix's so many "
            "strongest, as a share (100% as published) or a number. Those on at the "
            "start are --rank (16% with cart, all with task_arithmetic).",
            metavar="RANK",
            taken=lambda method: method.adaptive is not None and method.adaptive.ranked is not None,
            recorded="changed",
        ),
    ] = None
    adapt_tensors: Annotated[
        Literal["auto", "matrices", "all"],
        Option(
            "Which tensors have coefficients.",
            ADAPTATION,
            "matrices: the attention and MLP weights. all: biases, norms and embeddings too. auto: as the method's "
            "paper writes it, which is matrices with cart, all with the others.",
            taken=lambda method: method.adaptive is not None,
        ),
    ] = "auto"
    adapt_per: Annotated[Literal["tensor", "task"], Option("For each tensor, or for each tower.", ADAPTATION)] = (
        "tensor"
    )
    batch_size: Annotated[
        int,
        Field(ge=1, le=100_000),
        Option("Images of each task in a batch.", ADAPTATION, taken=lambda method: method.adaptive is not None),
    ] = 16


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
