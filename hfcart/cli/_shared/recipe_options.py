"""A recipe's fields as options of the command line: one for each, made from the field's declaration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from hfcart.recipes.fields import number
from hfcart.recipes.merge_recipe import OPTIONS, WRAPPERS, Recipe
from hfcart.recipes.options import Option
from hfcart.recipes.parameter_fields import PARAMETERS

_FIRST = ("method", "rank", "scale", "base", "out", "push_to")  # of the options, as the help lists them


def with_recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Put an option for every field of a recipe in place of a command's `**options`, panel by panel."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    first = [name for name in _FIRST if name in OPTIONS]
    made = [_option(name, OPTIONS[name]) for name in dict.fromkeys([*first, *OPTIONS])]
    command.__signature__ = signature.replace(parameters=[*own[:1], *made, *own[1:]])  # type: ignore[attr-defined]
    return command


def given_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were typed, as a recipe has them: numbers out of text where a field holds several kinds."""
    return {name: _value(name, typed) for name, typed in options.items() if typed is not None}


def flag(name: str) -> str:
    """The long option of a field."""
    return "--" + name.replace("_", "-")


def _option(name: str, option: Option) -> inspect.Parameter:
    field = Recipe.model_fields[name]
    parts = list(_parts(field.annotation))
    choices = [choice for part in parts if get_origin(part) is Literal for choice in get_args(part)]
    plain = next((kind for kind in (bool, int) if parts == [kind]), str)  # 8% is a number, and no float of Python's
    default = option.default or ("" if field.default in (None, False) else str(field.default))
    shown = typer.Option(
        None,
        flag(name),
        metavar=option.metavar or "|".join(map(str, choices)) or ("X" if parts == [float] else None),
        help=option.help + (f" Default: {default}." if default else "") + (f"\f{option.more}" if option.more else ""),
        rich_help_panel=option.panel,
    )
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=shown, annotation=plain | None)


def _parts(annotation: Any) -> Iterator[Any]:  # noqa: ANN401 (any type there is)
    """The types that a field's annotation allows besides None, without what stands around them."""
    if get_origin(annotation) is Annotated:
        yield from _parts(get_args(annotation)[0])
    elif get_origin(annotation) in (None, Literal, tuple):
        if annotation is not type(None):
            yield annotation
    else:
        for part in get_args(annotation):
            yield from _parts(part)


def _value(name: str, typed: Any) -> Any:  # noqa: ANN401 (whatever the option holds)
    kind = PARAMETERS[name].kind if name in PARAMETERS else ""
    if kind == "rank" or name in ("adapters", "adapt_ranks"):
        return _number(str(typed), name)
    if kind == "number" or name in WRAPPERS:
        return float(_number(str(typed), name))
    if kind in ("numbers", "each"):
        numbers = tuple(float(_number(part, name)) for part in str(typed).split(","))
        return numbers[0] if kind == "each" and len(numbers) == 1 else numbers
    return typed


def _number(text: str, name: str) -> int | float:
    """1 is a whole number of directions, 1.0 and 8% are shares: the text decides."""
    try:
        return number(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number", param_hint=flag(name)) from None
