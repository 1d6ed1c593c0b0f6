"""YAML from anyone: plain data only, no anchors, no tags, not deep, not long."""

from __future__ import annotations

from typing import Any

import yaml

MAX_LENGTH = 1 << 18  # characters; recipes of a thousand sources and the longest honest front matter fit
_MOST = 1 << 17  # values and ends of collections, some seconds of parsing; MAX_LENGTH has room for as many
MAX_DEPTH = 16  # collections inside collections; model-index, the deepest honest part of a card, needs 8


def load(text: str, longest: int = MAX_LENGTH) -> Any:  # noqa: ANN401 (whatever the YAML holds)
    """yaml.safe_load of text that cannot blow up.

    Args:
        text: from anyone.
        longest: characters that it may have.

    Raises:
        ValueError: too long, too deep or of too many values, with anchors, aliases or tags of its own.
        yaml.YAMLError: no YAML.
    """
    if len(text) > longest:
        raise ValueError(f"it has {len(text):,} characters, expected at most {longest:,}")
    # The parser's events come one by one, so a bomb is seen before it is built, and brackets (which take the
    # scanner quadratic time: minutes for 64 KB) before they are all read.
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        if number > _MOST:
            raise ValueError(f"it has more than {_MOST:,} values")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ValueError("it has anchors or aliases")
        if getattr(event, "tag", None) is not None:  # `!!bool x` would be a KeyError of the loader's
            raise ValueError("it has tags")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
    return yaml.safe_load(text)
