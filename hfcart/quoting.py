"""What is quoted from files and servers in messages: printable, on one line, and cut."""

from __future__ import annotations

from collections.abc import Iterable

MOST = 2_000  # characters of a message
MOST_ROWS = 50  # of a table in a message; a tower of which every tensor is named otherwise differs in 46 ways


def printable(value: object, most: int = MOST) -> str:
    """On one line of at most `most` characters: what is longer is cut, what cannot be printed becomes �."""
    text = str(value)
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return cut if cut.isprintable() else "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in cut)


def quoted(value: object, most: int = 80) -> str:
    """As Python would write it, but no longer than about `most` characters."""
    try:
        text = repr(value[: most + 1] if isinstance(value, str) else value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        text = "a number of thousands of digits"
    if len(text) <= most + 2:
        return text
    return printable(text[:most] + "…" + ("'" if isinstance(value, str) else ""))


def some(names: Iterable[object], most: int = 8) -> str:
    """The first of several names, each cut, and how many more there are."""
    given = list(names)
    more = f" and {len(given) - most:,} more" if len(given) > most else ""
    return ", ".join(printable(name, 100) for name in given[:most]) + more


def plural(count: int, noun: str, nouns: str = "") -> str:
    """A number and what there are so many of: "1 tower", "0 towers", "2,000 images".

    Args:
        count: at least 0.
        noun: in the singular.
        nouns: the plural, where it is not the singular and an s: matrices.
    """
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"
