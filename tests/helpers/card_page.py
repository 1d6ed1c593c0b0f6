"""A card as a page: its Markdown as the Hub reads it (GitHub's tables, HTML), in a column as wide as the Hub's."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from card_text import body_of
from markdown_it import MarkdownIt

COLUMN = 768  # pixels of text beside the Hub's own column, in a window of 1280
# As the Hub's: a table that is too wide scrolls in itself, code as well, and a picture is never wider than the text.
_STYLE = f"""
body {{ margin: 0; font: 16px/1.6 sans-serif; color: #1f2328 }}
main {{ box-sizing: border-box; max-width: {COLUMN + 48}px; margin: auto; padding: 8px 24px 48px }}
h1, h2 {{ border-bottom: 1px solid #d8dee4; padding-bottom: 6px; line-height: 1.25 }}
a {{ color: #0969da }}
table {{ display: block; width: max-content; max-width: 100%; overflow: auto; border-collapse: collapse }}
th, td {{ border: 1px solid #d0d7de; padding: 5px 12px }}
tr:nth-child(2n) {{ background: #f6f8fa }}
code {{ background: #eff1f3; border-radius: 5px; padding: 2px 5px; font-size: 85% }}
pre {{ background: #f6f8fa; border-radius: 6px; padding: 14px; overflow: auto; line-height: 1.45 }}
pre code {{ background: none; padding: 0 }}
p, li {{ overflow-wrap: break-word }}
img {{ max-width: 100% }}
summary {{ cursor: pointer }}
"""


def write_page(card: str, folder: Path) -> Path:
    """Write `card.html` beside a card's figures. Formulas stay as they are written: the Hub's KaTeX is not here."""
    text = re.sub(r"(?ms)^\$\$\n(.*?)\n\$\$$", lambda found: f"<p><i>{escape(found[1])}</i></p>", body_of(card))
    body = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)
    page = folder / "card.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><style>{_STYLE}</style><main>{body}</main>", encoding="utf-8")
    return page
