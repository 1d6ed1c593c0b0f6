"""Cards are rendered here: a template of `cards/` and values. The only importer of jinja2."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml

from hfcart.errors import HfcartError, UsageError
from hfcart.formats.markdown import code, fence, text, words
from hfcart.quoting import printable
from hfcart.system.cards_folder import cards_dir


def render(name: str, **values: Any) -> str:  # noqa: ANN401 (whatever the template shows)
    """A template of `cards/`, filled.

    Args:
        name: its file name.
        **values: what it shows. Strangers' text goes through one of the filters: code, text, words, fence.

    Raises:
        UsageError: the template (which users may edit) does not render.
        HfcartError: it cannot be read.
    """
    path = cards_dir() / name
    try:
        return _environment(cards_dir()).get_template(name).render(**values)
    except jinja2.TemplateNotFound:
        raise HfcartError(f"The card template {path} cannot be read: No such file.") from None
    except jinja2.TemplateError as error:
        raise UsageError(f"The card template {path} does not render: {printable(error, 300)}") from None
    except OSError as error:
        raise HfcartError(f"The card template {path} cannot be read: {error.strerror}.") from None


@cache
def _environment(folder: Path) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Markdown, not HTML: the filters escape
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "code": code,
        "text": text,
        "words": words,
        "fence": fence,
        "some": some,
        "percent": percent,
        "signed": signed,
    }
    return environment


def front_matter(metadata: dict[str, Any]) -> str:
    """A card's metadata as YAML, what is empty left out."""
    there = {key: value for key, value in metadata.items() if value}
    return yaml.safe_dump(there, sort_keys=False, allow_unicode=True, width=math.inf)


def some(cells: list[str], most: int = 6) -> str:
    """The first of many, and how many more there are."""
    return ", ".join(cells[:most]) + (f" and {len(cells) - most} more" if len(cells) > most else "")


def percent(share: float) -> str:
    """0.123 as "12.3"."""
    return f"{100 * share:.1f}"


def signed(cosine: float) -> str:
    """A cosine with two decimals and a real minus sign, and no minus before zero."""
    # + 0.0 turns -0.0 into 0.0; a hyphen is no minus sign.
    return f"{round(cosine, 2) + 0.0:.2f}".replace("-", "−")
