"""What a reader finds in a card: its metadata, tables, code and paragraphs."""

from __future__ import annotations

import re

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token


def body_of(text: str) -> str:
    return re.split(r"(?m)^---$", text, maxsplit=2)[2]


def metadata_of(text: str) -> dict:
    return yaml.safe_load(re.split(r"(?m)^---$", text, maxsplit=2)[1])


def tokens_of(text: str) -> list[Token]:
    """Every Markdown token of a card's body, inline ones included."""
    flat = []
    for token in MarkdownIt("commonmark").enable("table").parse(body_of(text)):
        flat += [token, *(token.children or [])]
    return flat


def tables(text: str, heading: str) -> list[list[list[str]]]:
    """The tables under a heading: rows of cells, as their visible text."""
    found: list[list[list[str]]] = []
    under = False
    tokens = MarkdownIt("commonmark").enable("table").parse(body_of(text))
    for before, token in zip(tokens, tokens[1:], strict=False):
        if before.type == "heading_open" and before.tag == "h2":
            under = token.content == heading
        elif under and before.type == "table_open":
            found.append([])
        elif under and before.type == "tr_open":
            found[-1].append([])
        elif under and before.type in ("th_open", "td_open"):
            found[-1][-1].append("".join(child.content for child in token.children or []))
    return found


def table(text: str, heading: str, corner: str = "") -> list[list[str]]:
    """The first table under a heading, or the first that has this corner."""
    return next(rows for rows in tables(text, heading) if corner in ("", rows[0][0]))


def blocks(text: str, language: str) -> list[str]:
    return [t.content for t in tokens_of(text) if t.type == "fence" and t.info == language]


def block(text: str, language: str) -> str:
    return blocks(text, language)[0]


def first_lines(text: str) -> str:
    """What a card says before its first heading of the second rank."""
    return body_of(text).split("\n## ")[0].strip()


def paragraph(text: str, heading: str) -> str:
    return body_of(text).split(f"\n## {heading}\n")[1].split("\n## ")[0].strip()
