"""Results put into the front matter of a card that is not ours: one key changes, every other byte stays."""

from __future__ import annotations

import math
import re
from copy import deepcopy
from textwrap import indent
from typing import Any

import yaml
from yaml.representer import SafeRepresenter

from hfcart.formats import safe_yaml

KEY = "model-index"
FRONT_MATTER = re.compile(r"\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_MAP = "tag:yaml.org,2002:map"


def with_results(card: str, name: str, entries: list[dict[str, Any]], source: str) -> str:
    """A card with results in its model-index.

    Results that are there stay as they are written, but those of the same source on the same dataset, configuration
    and split, which the new ones replace. A card without front matter gets one.

    Args:
        card: the text of a README.md, from anyone.
        name: of the model, for a card without a model-index.
        entries: the results, in the form of a model-index.
        source: the name that the entries' source has.

    Returns:
        The new text; the same text if it has exactly these results already.

    Raises:
        ValueError: the front matter is not plain YAML that can be edited without a loss; the text says why.
    """
    found = FRONT_MATTER.match(card)
    if found is None:
        return f"---\n{_dump(_new(name, entries))}---\n{card}"
    text = found[1]
    fields = _loaded(text)
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode) or root.flow_style or not isinstance(fields, dict):
        raise ValueError("it is not a block of `key: value` lines")
    places = [i for i, (key, _) in enumerate(root.value) if key.value == KEY]
    if len(places) > 1:
        raise ValueError(f"it has {KEY} twice")
    if not places or not fields[KEY]:
        value, expected = _new(name, entries), [{"name": name, "results": entries}]
    else:
        value, expected = _merged(root.value[places[0]][1], deepcopy(fields[KEY]), entries, source)
        if expected == fields[KEY]:
            return card
    start, end = _span(text, root, places[0] if places else None)
    column = root.start_mark.column
    block = indent(_dump(value), " " * column).rstrip("\n")
    block = block[column:] if places else "\n" + block  # the key that is there has its indentation before it
    new = text[:start] + block.replace("\n", "\r\n" if "\r\n" in found[0] else "\n") + text[end:]
    if _loaded(new) != {**fields, KEY: expected}:
        raise ValueError("it would not survive the change")
    return card[: found.start(1)] + new + card[found.end(1) :]


def _loaded(text: str) -> Any:  # noqa: ANN401 (whatever the YAML holds)
    try:
        return safe_yaml.load(text)
    except yaml.YAMLError:
        raise ValueError("it is not valid YAML") from None


def _new(name: str, entries: list[dict[str, Any]]) -> yaml.Node:
    return _compose([{"name": name, "results": entries}])


def _compose(value: list[dict[str, Any]]) -> yaml.Node:
    node: yaml.Node = SafeRepresenter(default_flow_style=False, sort_keys=False).represent_data(value)
    return node


def _dump(value: yaml.Node) -> str:
    """The key with this value. Scalars keep the text they had: `no` and `1.50` do not become false and 1.5."""
    mapping = yaml.MappingNode(_MAP, [(yaml.ScalarNode("tag:yaml.org,2002:str", KEY), value)], flow_style=False)
    text: str = yaml.serialize(mapping, Dumper=yaml.SafeDumper, allow_unicode=True, width=math.inf)
    return text


def _span(text: str, root: yaml.MappingNode, place: int | None) -> tuple[int, int]:
    """Where the key and its value are; the end of the text for a key that is not there."""
    if place is None:
        end = len(text.rstrip())
        return end, end
    last = place + 1 == len(root.value)
    start = root.value[place][0].start_mark.index
    end = len(text) if last else root.value[place + 1][0].start_mark.index - root.start_mark.column
    # Blank lines and comments before the next key are that key's.
    lines = text[start:end].splitlines(keepends=True)
    while lines and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
        lines.pop()
    return start, start + len("".join(lines).rstrip())


def _merged(
    node: yaml.Node, models: list[Any], entries: list[dict[str, Any]], source: str
) -> tuple[yaml.Node, list[Any]]:
    """The model-index node and its value, with the entries in the place of older ones, or at the first model's end."""
    pending = list(entries)
    lists = [_results(model, each) for model, each in _pairs(node, models)]
    for nodes, results in lists:
        for i in reversed(range(len(results))):
            if not _is_of(results[i], source) or _place(results[i]) not in map(_place, entries):
                continue
            same = next((entry for entry in reversed(pending) if _place(entry) == _place(results[i])), None)
            nodes.value[i : i + 1] = [] if same is None else _compose([same]).value
            results[i : i + 1] = [] if same is None else [same]
            pending = [entry for entry in pending if entry is not same]
    if pending:
        nodes, results = lists[0]
        nodes.value, nodes.flow_style = [*nodes.value, *_compose(pending).value], False
        results += pending
    return node, models


def _pairs(node: yaml.Node, models: object) -> list[tuple[yaml.Node, object]]:
    if not isinstance(models, list) or not models:
        raise ValueError(f"its {KEY} has not the form that the Hub defines")
    return list(zip(node.value, models, strict=True))


def _results(node: yaml.Node, model: object) -> tuple[yaml.SequenceNode, list[Any]]:
    """The results of one model, as node and as value."""
    named = [value for key, value in node.value if key.value == "results"] if isinstance(model, dict) else []
    if len(named) != 1 or not isinstance(named[0], yaml.SequenceNode):
        raise ValueError(f"its {KEY} has not the form that the Hub defines")
    return named[0], model["results"]  # type: ignore[index]


def _place(result: dict[str, Any]) -> tuple[str, ...]:
    dataset = result.get("dataset")
    dataset = dataset if isinstance(dataset, dict) else {}
    return tuple(str(dataset.get(key)) for key in ("type", "config", "split"))


def _is_of(result: object, source: str) -> bool:
    stated = result.get("source") if isinstance(result, dict) else None
    return isinstance(stated, dict) and stated.get("name") == source
