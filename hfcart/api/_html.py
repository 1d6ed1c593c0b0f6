"""What a notebook shows of a result: a line, facts, a table and remarks, as HTML in which every text is escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence

from hfcart.quoting import printable

_LONGEST = 300  # characters of a cell
_MOST = 60  # rows


def shown(
    title: str,
    *,
    facts: Sequence[tuple[str, str]] = (),
    columns: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
    remarks: Sequence[str] = (),
) -> str:
    """HTML of a result, whose texts may come from strangers' repos.

    Args:
        title: one line.
        facts: name and value, a row each.
        columns: headings of the table.
        rows: its cells; of very many, the first.
        remarks: sentences below it.
    """
    parts = [f"<p><strong>{_text(title)}</strong></p>"]
    if facts:
        lines = "".join(f"<tr><th style='text-align:left'>{_text(n)}</th>{_cell(v)}</tr>" for n, v in facts)
        parts.append(f"<table>{lines}</table>")
    if columns:
        heads = "".join(f"<th>{_text(column)}</th>" for column in columns)
        lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows[:_MOST])
        parts.append(f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>")
    left = [f"{len(rows) - _MOST:,} more rows: to_frame() has them."] if len(rows) > _MOST else []
    parts += [f"<p>{_text(remark)}</p>" for remark in (*left, *remarks)]
    return f"<div>{''.join(parts)}</div>"


def _cell(text: str) -> str:
    address = text.startswith("https://") and not any(c.isspace() for c in text)
    inside = f'<a href="{_text(text)}" rel="noopener">{_text(text)}</a>' if address else _text(text)
    return f"<td style='text-align:left'>{inside}</td>"


def _text(text: object) -> str:
    return html.escape(printable(text, _LONGEST), quote=True)
