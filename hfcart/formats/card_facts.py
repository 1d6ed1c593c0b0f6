"""The few facts taken from a source's model card. The card is untrusted text: what does not fit exactly is dropped."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

from hfcart.formats import safe_yaml
from hfcart.formats.front_matter import FRONT_MATTER
from hfcart.records import CardFacts
from hfcart.records.repo_id import is_repo_id

MAX_FRONT_MATTER = 1 << 16  # characters; the largest honest ones of vision towers have a few thousand
MAX_ITEMS = 100  # entries kept of one list

_LICENSE = re.compile(r"[a-z0-9.+-]{1,64}")
_URL = re.compile(r"https?://[A-Za-z0-9.-]+(?::\d+)?(?:/[A-Za-z0-9._~/%#?&=+-]*)?")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z0-9]{2,8}){0,3}|multilingual")


def card_facts(readme: str | None) -> CardFacts:
    """What the front matter of a model card says of licence, datasets, languages and base models.

    Args:
        readme: the text of a README.md, from anyone; None if there is none.

    Returns:
        The facts that have the form they must have; empty facts for a card without front matter, or with one
        that is no plain YAML (broken, too long, too deep, with anchors or tags of its own). Never raises.
    """
    return _facts(_front_matter(readme or ""))


def are_facts(facts: CardFacts) -> bool:
    """Whether these, of a record that anyone may have written, are what some card would have given."""
    card = {name: getattr(facts, name) for name in ("license", "license_name", "license_link")}
    lists = {"datasets": facts.datasets, "language": facts.languages, "base_model": facts.base_models}
    return facts == _facts({**card, **{name: list(values) for name, values in lists.items()}})


def _facts(card: dict[Any, Any]) -> CardFacts:
    licenses = [text.lower() for text in _texts(card.get("license"))]
    links = _matching(card.get("license_link"), _URL, 300) or _matching(card.get("license_link"), _FILE, 64)
    names = [name for name in _texts(card.get("license_name")) if len(name) <= 120 and name.isprintable()]
    languages = card.get("language")
    return CardFacts(
        license=licenses[0] if len(licenses) == 1 and _LICENSE.fullmatch(licenses[0]) else None,
        license_name=names[0] if names else None,
        license_link=links[0] if links else None,
        datasets=_repos(card.get("datasets")),
        # YAML reads an unquoted `no`, Norwegian, as False.
        languages=_matching(["no" if x is False else x for x in _items(languages)], _LANGUAGE, 32),
        # The card of a merge names there what was merged, not what that was fine-tuned from.
        base_models=() if card.get("base_model_relation") == "merge" else _repos(card.get("base_model")),
    )


def _front_matter(readme: str) -> dict[Any, Any]:
    found = FRONT_MATTER.match(readme[:MAX_FRONT_MATTER])
    if found is None:
        return {}
    try:
        card = safe_yaml.load(found[1])
    except (yaml.YAMLError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def _items(value: object) -> list[Any]:
    return value[:MAX_ITEMS] if isinstance(value, list) else [value]


def _texts(value: object) -> list[str]:
    return [text for item in _items(value) if isinstance(item, str) and (text := item.strip())]


def _repos(value: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in _texts(value) if is_repo_id(text)))


def _matching(value: object, form: re.Pattern[str], longest: int) -> tuple[str, ...]:
    fitting: Iterable[str] = (text for text in _texts(value) if len(text) <= longest and form.fullmatch(text))
    return tuple(dict.fromkeys(fitting))
