"""Fields that every recipe has, of a merge or a fine-tuning, each with its check; and their mistakes in words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ValidationError

from hfcart.names import near
from hfcart.quoting import printable, quoted
from hfcart.records.repo_id import is_repo_id

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", value):
        raise ValueError(f"unknown device {quoted(value)}, expected auto, cpu, cuda, cuda:N or mps")
    return value


def _folder_of_its_own(value: str) -> str:
    name = Path(value).name
    if name in ("", "..") or "\0" in name or len(os.fsencode(name)) > 200:
        raise ValueError(f"{quoted(value, 80)} names no folder that could be made and replaced as a whole")
    if name.endswith(".partial"):
        raise ValueError(f"{quoted(value)} is the name of unfinished work")
    return value


def _hub_repo(value: str) -> str:
    if not is_repo_id(value, namespace=True):
        raise ValueError(f"{quoted(value)} is not a Hub repo, expected user/name")
    return value


_PERCENT = re.compile(r"\s*(\d{1,6}(?:\.\d{1,12})?)\s*%\s*")
_MOST = 5  # mistakes that are told

Device = Annotated[str, AfterValidator(_device)]
OutFolder = Annotated[str, AfterValidator(_folder_of_its_own)]
HubRepo = Annotated[str, AfterValidator(_hub_repo)]


def number(text: str) -> int | float:
    """A number as it is typed: 1 is a whole one, 1.0 and 1e-3 are not, 8% is 0.08. Raises ValueError if it is none."""
    if percent := _PERCENT.fullmatch(text):
        return float(Decimal(percent[1]) / 100)
    return int(text) if re.fullmatch(r"\s*[+-]?\d{1,300}\s*", text) else float(text)


def out_of_percent(value: object) -> object:
    """A share for what is written in per cent, alone or in a list; anything else as it is."""
    if isinstance(value, list | tuple):
        return tuple(out_of_percent(one) for one in value)
    return number(value) if isinstance(value, str) and _PERCENT.fullmatch(value) else value


def explain(error: ValidationError | TypeError, where: str, known: Iterable[str] = ()) -> str:
    """Each wrong field once, in a sentence that begins with where the fields come from.

    Args:
        error: what checking the fields raised.
        where: the fields come from.
        known: names of the fields that there are; an unknown one is answered with those that may be meant.
    """
    if isinstance(error, TypeError):
        return f"{where}: {printable(error, 300)}."
    lines: dict[str, str] = {}
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"][:1])
        if problem["type"] == "extra_forbidden":
            text = f"unknown field {quoted(name)}. {near(name, known)}".rstrip()
        else:
            text = (f"{name}: " if name else "") + problem["msg"].removeprefix("Value error, ")
        lines.setdefault(name, text)
    shown = [printable(line, 300).rstrip(".") for line in lines.values()]
    more = f"; and {len(shown) - _MOST:,} more" if len(shown) > _MOST else ""
    told = f"In {printable(where, 300)}: " + "; ".join(shown[:_MOST]) + more
    return told if told.endswith("?") else told + "."


def parse_size(text: str) -> int:
    """Bytes of a size such as 5GB, 500MB, 200KiB or 1000000 (K, M, G, T are powers of 1000, Ki … of 1024).

    Raises:
        ValueError: not a size, or zero.
    """
    found = _SIZE.fullmatch(text.strip())
    size = 0
    if found:
        size = int(float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " "))
    if size <= 0:
        raise ValueError(f"{quoted(text)} is not a size, expected such as 5GB or 500MB")
    return size
