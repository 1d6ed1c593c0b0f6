"""A record's JSON, which may be anybody's: parsed strictly, and what is wrong with it told by the field's name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from hfcart.formats.safetensors_file import strict_json
from hfcart.quoting import printable, quoted

Record = TypeVar("Record")
_LONGEST = 20_000  # characters of any text
_LARGEST = 1 << 64  # whole number
_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def record_json(data: bytes) -> Any:  # noqa: ANN401 (whatever the JSON holds)
    """What the JSON of a record holds: finite numbers, whole ones below 2⁶⁴, texts of a bounded length, no name twice.

    Raises:
        ValueError: a phrase that says what is wrong, and names the field.
    """
    why: ValueError | None = None
    try:
        found = strict_json(data)
    except ValueError as error:
        found, why = _loosely(data), error
    try:
        fault = _fault(found)
    except RecursionError:
        fault = [], "is nested too deeply"
    if fault is not None:
        path, what = fault
        raise ValueError(f"{_name(path[::-1]) or 'it'} {what}")
    if why is not None:
        raise ValueError("it is no JSON" if isinstance(why, json.JSONDecodeError | UnicodeDecodeError) else str(why))
    return found


def as_record(data: bytes, kind: type[Record]) -> Record:
    """A record of this kind, its types checked strictly.

    Raises:
        ValueError: a phrase that names the first field that is wrong.
    """
    try:
        record: Record = _adapter(kind).validate_json(data, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        expected = printable(problem["msg"], 200)
        raise ValueError(f"{_name(problem['loc'])}: {expected[:1].lower()}{expected[1:]}".removeprefix(": ")) from None
    return record


def unlike(found: object, again: object, name: str = "it") -> str | None:
    """The name of the first field in which a record's JSON differs from that of the record read; None if in none."""
    if isinstance(found, dict) and isinstance(again, dict):
        pairs = [(key, found.get(key, ...), again.get(key, ...)) for key in [*found, *again]]
    elif isinstance(found, list) and isinstance(again, list) and len(found) == len(again):
        pairs = [*zip(map(str, range(len(found))), found, again, strict=True)]
    else:
        return None if found == again else name
    inner = (unlike(one, other, f"{name}.{key}".removeprefix("it.")) for key, one, other in pairs)
    return next(filter(None, inner), None)


def _loosely(data: bytes) -> Any:  # noqa: ANN401
    """The same, whatever numbers and names twice it holds: only to find where they are. None if it is no JSON."""
    try:
        return json.loads(data, parse_int=lambda digits: int(digits) if len(digits) < 30 else math.inf)
    except (ValueError, RecursionError):
        return None


def _fault(value: object) -> tuple[list[object], str] | None:
    """Where there is what no record holds, as the names that lead there, the innermost first, and what that is."""
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(key, str) and len(key) > _LONGEST:
                return [], f"has a name in it, {quoted(key, 20)}, that is longer than any of a record"
            if (fault := _fault(one)) is not None:
                fault[0].append(key)
                return fault
    elif isinstance(value, str):
        return ([], "is longer than any text of a record") if len(value) > _LONGEST else None
    elif isinstance(value, float):
        return None if math.isfinite(value) else ([], "is no number that a record has")
    elif isinstance(value, int):
        return None if abs(value) < _LARGEST else ([], "is no number that a record has")
    return None


def _name(path: Sequence[object]) -> str:
    return printable(".".join(map(str, path)), 200)
