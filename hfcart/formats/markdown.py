"""Text put into Markdown so that it stays text: strangers' names, our own words, blocks of code."""

from __future__ import annotations

import re

_LOOKALIKES = str.maketrans("`|$\\<>", "ˋ¦＄＼‹›")
_WORDS = re.compile(r"[A-Za-z0-9]+(?:[ -][A-Za-z0-9]+)*")


def code(value: object, limit: int = 120) -> str:
    """Untrusted text as an inline code span that nothing in it can leave, on one line of at most `limit` characters.

    What cannot be seen (controls, line breaks, bidi marks) becomes a space; what Markdown, KaTeX or a table would
    read becomes its look-alike. The exact text stays in the JSON beside the card.
    """
    return f"`{one_line(value, limit).translate(_LOOKALIKES) or '?'}`"


def words(value: object, limit: int = 60) -> str:
    """Untrusted text as it stands if it is nothing but plain words, which no reader of Markdown can take for more."""
    text = str(value)
    return text if len(text) <= limit and _WORDS.fullmatch(text) else code(value, limit)


def text(value: object) -> str:
    """Our own words as Markdown text: on one line, with what Markdown would read escaped by a backslash."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", one_line(value, 1000))


def fence(value: str, language: str = "") -> str:
    """A fenced code block that nothing in it can close: its fence is longer than any run of backticks inside."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", value)), default=0))
    return f"{ticks}{language}\n{value.strip()}\n{ticks}"


def one_line(value: object, limit: int) -> str:
    """On one line of at most `limit` characters; what cannot be printed becomes a space."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
