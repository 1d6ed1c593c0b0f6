"""Recipes as YAML: those that come with hfcart, a user's files, and what a finished merge writes."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from hfcart.errors import UsageError
from hfcart.formats import safe_yaml
from hfcart.names import meant, spelled
from hfcart.quoting import printable
from hfcart.recipes import mergekit
from hfcart.system.cards_folder import cards_dir

_NAME = re.compile(r"[A-Za-z0-9][\w-]{0,60}", re.ASCII)
_LONGEST = 1 << 22  # characters; the directions of twenty towers of the largest CLIP take two and a half millions


def as_yaml(fields: dict[str, Any]) -> str:
    """A recorded recipe as YAML: a line for each field, and one for each tensor's coefficients and directions."""
    long = ("coefficients", "directions")
    rest = {key: value for key, value in fields.items() if key not in long}
    lines = {key: fields[key] for key in long if fields.get(key) is not None}
    text = yaml.safe_dump(rest, sort_keys=False, allow_unicode=True)
    return text + (yaml.safe_dump(lines, sort_keys=False, default_flow_style=None, width=math.inf) if lines else "")


def names() -> list[str]:
    """The recipes that come with hfcart: cards/recipes/<name>.yaml."""
    return sorted(path.stem for path in (cards_dir() / "recipes").glob("*.yaml"))


def read(path: Path) -> dict[str, Any]:
    """The fields of a recipe file, not validated yet (the command line may override some).

    Args:
        path: a file, or the plain name of a recipe that comes with hfcart. A file of that name goes before it.

    Raises:
        UsageError: no such recipe; the file cannot be read, is no YAML, or no mapping.
    """
    if _NAME.fullmatch(str(path)) and not path.is_file():
        found = spelled(str(path), names())
        if found is None:
            raise UsageError(
                f"There is no file {path} here, and no recipe of that name. {meant(str(path), names())}",
                hint=f"Give the path of a file, or one of these names: {', '.join(names())}",
            )
        path = cards_dir() / "recipes" / f"{found}.yaml"
    try:
        fields = safe_yaml.load(path.read_text(encoding="utf-8"), _LONGEST)
    except OSError as error:
        raise UsageError(f"The recipe {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        raise UsageError(f"The recipe {path} is not valid YAML{place}: {printable(problem, 300)}.") from None
    if not isinstance(fields, dict) or not all(isinstance(k, str) for k in fields):
        raise UsageError(f"The recipe {path} is not a mapping of fields to values.")
    if mergekit.is_config(fields):
        raise mergekit.refusal(fields, path)
    return fields
