"""Licences: what the sources state, and what a card may state in the words that the Hub knows. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hfcart.records import SourceRecord
from hfcart.report.links import HUB, page_of

# The Hub refuses a card with a licence that is not on its list; such a licence goes under `other`, by name.
_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma grok2-community other
"""
HUB_LICENSES = frozenset(_LICENSES.split())

LINK = re.compile(r"https://[A-Za-z0-9.-]+(?:/[A-Za-z0-9._~/%#?&=+-]*)?")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def license_fields(base: SourceRecord) -> dict[str, str | None]:
    """A model's licence, where its card states one that the Hub knows, or names and links one of its own."""
    facts = base.facts
    if facts.license == "other":
        link = facts.license_link if LINK.fullmatch(facts.license_link or "") else None
        return {"license": "other", "license_name": _slug(facts.license_name or "other"), "license_link": link}
    return {"license": facts.license} if facts.license in HUB_LICENSES else {}


def license_of(source: SourceRecord) -> str | None:
    """What a source states: an identifier, the name of a licence of its own, or None (`unknown` states nothing)."""
    stated = source.facts.license
    if stated == "other":
        return source.facts.license_name or stated
    return None if stated in (None, "", "unknown") else stated


def by_license(sources: Iterable[SourceRecord]) -> list[tuple[str | None, list[str]]]:
    """(licence, labels of the towers that state it), sorted, and the towers that state none at the end."""
    stated: dict[str | None, list[str]] = {}
    for source in sources:
        stated.setdefault(license_of(source), []).append(source.label)
    return sorted(stated.items(), key=lambda item: (item[0] is None, item[0] or ""))


def joint_license_fields(sources: Sequence[SourceRecord], repo: str | None) -> dict[str, str | None]:
    """The licence of what was made of several models: theirs if they agree, else `other`; {} if one states none.

    Args:
        sources: the models.
        repo: where the result's card is going to be, `user/name`, whose own section names the licences.
    """
    names = [license_of(source) for source in sources]
    if None in names:
        return {}
    stated = sorted({name for name in names if name})
    if len(stated) == 1 and stated[0] in HUB_LICENSES - {"other"}:
        return {"license": stated[0]}
    links = {_license_link(source) for source in sources}
    # Different licences, or one that every source links elsewhere: this card's own section names them all.
    own = f"{HUB}/{repo}#licence" if repo else None
    link = links.pop() if len(stated) == len(links) == 1 else None
    return {"license": "other", "license_name": _slug("-and-".join(stated)), "license_link": link or own}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip("-.")[:120] or "other"


def _license_link(source: SourceRecord) -> str | None:
    link = source.facts.license_link or ""
    if LINK.fullmatch(link):
        return link
    if _FILE.fullmatch(link) and (page := page_of(source.repo, source.commit)):
        return f"{page}/blob/{source.commit}/{link}"
    return None
