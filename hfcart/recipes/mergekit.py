"""A mergekit configuration given as a recipe: recognised, and told field by field how its fields are called here.

It is not read: its weights, gradients and slices of layers mean what no recipe can say, and a merge that is only nearly
what was asked for is worse than none.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from hfcart.errors import UsageError
from hfcart.methods import METHODS
from hfcart.names import meant, spelled
from hfcart.quoting import printable, quoted

_MOST = 12  # sources in the command, and parameters that are told
_METHODS = {"dare_linear": "dare"}  # that are there by another name
_FIELDS = {
    "models": "sources",
    "base_model": "base",
    "dtype": "dtype",
    "out_dtype": "dtype",
    "slices": "",
    "modules": "",
    "parameters": "",
}
_PARAMETERS = {
    "weight": "weights with linear and slerp (one for each source), else scale (one for all)",
    "lambda": "scale",
    "t": "weights with slerp, 1 − t and t",
    "density": "density (one for all)",
    "select_topk": "density",
    "gamma": "gamma",
    "epsilon": "epsilon",
}
_NOT_HERE = {
    "slices": "towers are merged whole",
    "modules": "a tower has one part",
    "tokenizer": "a tower has no tokenizer",
    "tokenizer_source": "a tower has no tokenizer",
    "chat_template": "a tower has no chat",
}


def is_config(fields: dict[str, Any]) -> bool:
    """Whether the fields of a YAML file are mergekit's: no recipe has `merge_method`, `slices` or `models`."""
    return any(name in fields for name in ("merge_method", "slices", "models"))


def refusal(fields: dict[str, Any], path: object) -> UsageError:
    """What to answer: each of its fields, and what it is called here; then the command, as far as it can be said."""
    command = _command(fields)
    return UsageError(
        f"{printable(path, 200)} is a configuration of mergekit: its fields are called otherwise here.",
        hint="\n".join([*_lines(fields), *([f"To begin with: {command}"] if command else [])]),
    )


def _lines(fields: dict[str, Any]) -> Iterator[str]:
    named = fields.get("merge_method")
    method = _method(named)
    if method:
        yield f"merge_method is method: {method}"
    elif named is not None:
        yield f"merge_method is method, and {quoted(named, 40)} is none of them. {meant(str(named)[:40], METHODS)}"
    for name in list(fields)[:_MOST]:
        if here := _FIELDS.get(name):
            yield f"{name} is {here}"
        elif name not in ("merge_method", "parameters"):
            yield f"{printable(name, 40)} has no counterpart: {_NOT_HERE.get(name, 'there is no such setting')}"
    for name in _parameters(fields)[:_MOST]:
        here = _PARAMETERS.get(name, "")
        yield f"parameters: {printable(name, 40)} " + (f"is {here}" if here else "has no counterpart")


def _method(named: object) -> str | None:
    if not isinstance(named, str):
        return None
    return _METHODS.get(spelled(named, _METHODS) or "") or spelled(named, METHODS)


def _parameters(fields: dict[str, Any]) -> list[str]:
    """Names of all parameters, of the whole and of each model."""
    models = fields.get("models")
    holders = [fields, *(models[:_MOST] if isinstance(models, list) else [])]
    found: dict[str, None] = {}
    for holder in holders:
        own = holder.get("parameters") if isinstance(holder, dict) else None
        found |= dict.fromkeys(map(str, own)) if isinstance(own, dict) else {}
    return list(found)


def _command(fields: dict[str, Any]) -> str | None:
    """The merge as a command without its parameters; None if a source or the method is not one that can be typed."""
    models, base, method = fields.get("models"), fields.get("base_model"), _method(fields.get("merge_method"))
    if not isinstance(models, list) or not 1 <= len(models) <= _MOST or method is None:
        return None
    named = [model.get("model") if isinstance(model, dict) else None for model in models]
    sources = [name for name in named if isinstance(name, str) and name != base]
    typed = [*sources, *([base] if isinstance(base, str) else [])]
    if len([*sources, *(name for name in named if name == base)]) != len(models) or not sources:
        return None
    if any(not name.isprintable() or not name or name[0] == "-" or len(name) > 200 for name in typed):
        return None
    needed = ["--base", base] if isinstance(base, str) and METHODS[method].needs_base else []
    return shlex.join(["hfcart", "merge", *sources, "--method", method, *needed])
