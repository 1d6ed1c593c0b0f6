"""The parts of hfcart.api that follow from the commands' declarations: the types of options, and their docstrings."""

from __future__ import annotations

import textwrap
from pathlib import Path

from hfcart.cli._shared.as_python import FUNCTIONS, Keyword, keywords

API = Path("hfcart/api")
_BEGIN, _END = "    Options:\n", "\n    Returns:\n"
_WIDTH = 116
_ANNOTATIONS = {
    "flag": "bool",
    "whole": "int | None",
    "number": "float | None",
    "rank": "float | str | None",
    "numbers": "Sequence[float] | None",
    "each": "float | Sequence[float] | None",
    "grid": "str | Sequence[float] | None",
    "names": "Names | None",
    "path": "StrPath | None",
    "text": "str | None",
}
# How the kind of a value is said in a docstring.
_WORDS = {
    "flag": "bool",
    "whole": "int",
    "number": "float",
    "rank": "float or int",
    "numbers": "numbers",
    "each": "float or numbers",
    "grid": "numbers",
    "names": "names",
    "path": "path",
    "text": "str",
}
_HEAD = '''"""The options of each function, for type checkers. Made from the commands' declarations by `make docs`.

What a package's method takes in addition is no part of them; when it is called, it is known.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, TypedDict

StrPath = str | os.PathLike[str]
Names = StrPath | Sequence[StrPath]  # a text may hold several, with commas
'''


def python_documents() -> dict[Path, str]:
    """What every generated file of hfcart.api must hold, and those in part generated around the rest of them."""
    found = {API / "options.py": _options()}
    for command, function in FUNCTIONS.items():
        path = API / f"{function.name}.py"
        before, begin, rest = path.read_text(encoding="utf-8").partition(_BEGIN)
        _, end, after = rest.partition(_END)
        if not (begin and end):
            raise ValueError(f"{path} has no docstring with Options and Returns")
        found[path] = before + begin + _documented(keywords(command)) + end + after
    return found


def _options() -> str:
    parts = [_HEAD]
    for command, function in FUNCTIONS.items():
        lines = [f"    {each.name}: {_annotation(each)}" for each in keywords(command)]
        name = f"{function.name.capitalize()}Options"
        doc = f'    """Of `hfcart.{function.name}`."""'
        parts.append("\n".join([f"class {name}(TypedDict, total=False):", doc, "", *lines, ""]))
    return "\n\n".join(parts)


def _annotation(option: Keyword) -> str:
    if option.choices:
        return f"Literal[{', '.join(_quoted(each) for each in option.choices)}] | None"
    return _ANNOTATIONS[option.kind]


def _documented(options: list[Keyword]) -> str:
    lines, panel = [], ""
    for option in options:
        if option.panel != panel:
            panel = option.panel
            lines.append(f"        {panel}:")
        kind = " | ".join(_quoted(each) for each in option.choices) or _WORDS[option.kind]
        text = f"{option.name} ({kind}): {option.meaning}".replace("\\", "\\\\")
        lines += textwrap.wrap(
            text, _WIDTH, initial_indent=" " * 12, subsequent_indent=" " * 16, break_long_words=False
        )
    return "\n".join([*lines, ""])


def _quoted(text: str) -> str:
    return f'"{text}"'
