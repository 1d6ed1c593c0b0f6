"""What a method's declaration must be, checked: a package's may say anything."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import get_args, get_type_hints

from hfcart.methods.contract import FAMILIES, Adaptive, Method, Parameter

_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
_ADAPTIVE_NAME = re.compile(r"[a-z][a-z0-9_+]{0,30}")
_WHERE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
ARXIV = re.compile(r"\d{4}\.\d{4,5}")
_LONGEST = 2000  # characters of any text
# Fields of a recipe that no method's parameter may be called.
TAKEN = frozenset(
    (
        *(
            "sources",
            "recipe",
            "method",
            "lines",
            "svc",
            "adapters",
            "adapters_carry",
            "coefficients",
            "base",
            "qkv",
            "matrices",
            "with_projection",
            "sweep",
            "activation",
            "format",
        ),
        *("full_clip", "allow_distant", "tasks", "batch_size", "precision"),
        *("adapt", "adapt_split", "adapt_per", "adapt_ranks", "adapt_tensors", "directions", "objective"),
        *("out", "overwrite", "dtype", "max_shard_size", "eval", "push_to", "private", "create_pr", "commit_message"),
        *("device", "workers", "stream", "dry_run", "quiet", "json", "debug", "progress"),
        *("task", "to", "help"),  # which the command line takes for `tasks` and `push_to`
    )
)


def check(method: Method, others: Sequence[Method], adapting: Sequence[Parameter]) -> None:
    """Raise ValueError if a declaration is not one that help, card, recipe and engine can rely on.

    Args:
        method: as a package declares it.
        others: the methods there are already; names must differ, parameters of one name must be of one kind.
        adapting: the parameters of `adapt`.
    """
    _name(method.name, _NAME, "name")
    if method.name in {name for other in others for name in _names_of(other)}:
        raise ValueError(f"there is a method {method.name} already")
    if method.family not in FAMILIES:
        raise ValueError(f"family {method.family!r} is none of {', '.join(FAMILIES)}")
    for field in ("title", "summary", "matrices", "others", "formula", "citation", "note"):
        _text(getattr(method, field), field, empty=field == "note")
    _name(method.arxiv, ARXIV, "arxiv")
    for field in ("matrix_rule", "other_rule", "updates", "fit"):
        if (where := getattr(method, field)) is not None:
            _name(where, _WHERE, field)
    for field in ("needs_base", "task_vectors", "through_merged", "heads", "decomposes", "batched", "any_matrix"):
        if not isinstance(getattr(method, field), bool):
            raise ValueError(f"{field} is {getattr(method, field)!r}, expected True or False")
    if method.statistics not in (None, "fisher", "gram"):
        raise ValueError(f"statistics is {method.statistics!r}, expected fisher, gram or None")
    if method.through_merged and (method.statistics != "gram" or method.fit is not None or method.task_vectors):
        raise ValueError("through_merged goes with statistics gram, without fit and task_vectors")
    for field, least in (("exactly", 0), ("fewest", 1), ("copies", 0)):
        if type(getattr(method, field)) is not int or getattr(method, field) < least:
            raise ValueError(f"{field} is {getattr(method, field)!r}, expected a whole number of at least {least}")
    _figures(method.published)
    if not isinstance(method.parameters, tuple) or not all(isinstance(p, Parameter) for p in method.parameters):
        raise ValueError("parameters is no tuple of hfcart.methods.Parameter")
    known = {p.name: p for other in others for p in other.parameters} | {p.name: p for p in adapting}
    for parameter in method.parameters:
        _parameter(parameter, known.get(parameter.name))
    if len({p.name for p in method.parameters}) != len(method.parameters):
        raise ValueError("two of its parameters have one name")
    if method.adaptive is not None:
        _adaptive(method.adaptive)
    if method.chosen is not None:
        _name(method.chosen.candidate, _WHERE, "chosen.candidate")
        if method.parameter(method.chosen.parameter) is None or not method.chosen.candidates:
            raise ValueError("chosen names none of its parameters, or no candidates")


def _names_of(method: Method) -> list[str]:
    found = [method.adaptive, method.adaptive.ranked] if method.adaptive else []
    return [method.name, *(adaptive.name for adaptive in found if adaptive)]


def _parameter(parameter: Parameter, known: Parameter | None) -> None:
    _name(parameter.name, _NAME, "a parameter's name")
    where = f"parameter {parameter.name}"
    if parameter.name in TAKEN:
        raise ValueError(f"{where}: every recipe has a field of that name")
    _text(parameter.help, f"{where}: help")
    _text(parameter.symbol, f"{where}: symbol", empty=True)
    kinds = get_args(get_type_hints(Parameter)["kind"])
    if parameter.kind not in kinds:
        raise ValueError(f"{where}: kind {parameter.kind!r} is none of {', '.join(kinds)}")
    if known is not None and known.kind != parameter.kind:
        raise ValueError(f"{where} is a {parameter.kind} here and a {known.kind} in another method")
    if (parameter.kind == "choice") != bool(parameter.choices):
        raise ValueError(f"{where}: a choice has choices, and nothing else has")
    if parameter.default is not None:
        try:
            parameter.check(parameter.default)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: its default is not allowed: {error}") from None


def _adaptive(adaptive: Adaptive) -> None:
    _name(adaptive.name, _ADAPTIVE_NAME, "adaptive.name")
    for field in ("title", "formula", "matrices", "citation", "note", "others"):
        _text(getattr(adaptive, field), f"adaptive.{field}", empty=field in ("note", "others"))
    _name(adaptive.parts, _WHERE, "adaptive.parts")
    if adaptive.other_parts:
        _name(adaptive.other_parts, _WHERE, "adaptive.other_parts")
    _name(adaptive.arxiv, ARXIV, "adaptive.arxiv")
    _figures(adaptive.published)
    if adaptive.ranked is not None:
        _adaptive(adaptive.ranked)


def _name(value: object, pattern: re.Pattern[str], field: str) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{field} is {str(value)[:80]!r}, expected the form {pattern.pattern}")


def _text(value: object, field: str, *, empty: bool = False) -> None:
    if not isinstance(value, str) or len(value) > _LONGEST or not (value.strip() or empty):
        raise ValueError(f"{field} is no text of 1 to {_LONGEST} characters")
    if not all(c.isprintable() or c == "\n" for c in value):
        raise ValueError(f"{field} has characters that cannot be printed")


def _figures(published: object) -> None:
    if not isinstance(published, tuple) or len(published) != 2:
        raise ValueError("published is not a pair of figures")
    if not all(figure is None or isinstance(figure, int | float) for figure in published):
        raise ValueError("published holds something else than numbers or None")
