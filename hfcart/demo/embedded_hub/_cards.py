"""The Hub's rules for the metadata on top of a card, as far as they can be checked without the Hub.

The rules and the wording of the refusals follow what https://huggingface.co/api/validate-yaml is known to answer.
Three are surmised: the forms of license_name, license_link and dataset ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import yaml

# https://huggingface.co/docs/hub/repositories-licenses, 2026-08.
_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown other
"""
LICENSES = tuple(_LICENSES.split())


class Rule(NamedTuple):
    """What a field may hold: one string, a list of them, or either; their form, and the complaint about any other."""

    one: bool = True
    many: bool = True
    form: re.Pattern[str] = re.compile(".*", re.DOTALL)
    complaint: str = ""


ANY_TEXT = Rule(many=False)
_REPO_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9_][\w.-]*", re.ASCII)
RULES = {
    "license": Rule(
        form=re.compile("|".join(map(re.escape, LICENSES))),
        complaint=f"must be one of [{', '.join(LICENSES)}, array]",
    ),
    "license_name": Rule(
        many=False,
        form=re.compile("[a-z0-9][a-z0-9.-]*"),
        complaint='with value "{value}" is not valid. Use an id in lower case, like my-license-1.0.',
    ),
    "license_link": Rule(
        many=False,
        form=re.compile(r"LICENSE(\.md)?|https?://\S+"),
        complaint='with value "{value}" is not valid. Use LICENSE, LICENSE.md or a URL.',
    ),
    "language": Rule(
        form=re.compile("[a-z]{2,3}|code|multilingual"),
        complaint='with value "{value}" is not valid. It must be an ISO 639-1, 639-2 or 639-3 code '
        '(two/three letters), or a special value like "code", "multilingual".',
    ),
    "datasets": Rule(
        form=_REPO_ID,
        complaint='with value "{value}" is not valid. If possible, use a dataset id from https://hf.co/datasets.',
    ),
    "tags": Rule(one=False),
    "metrics": Rule(one=False),
    "size_categories": Rule(),
    "task_categories": Rule(),
    "pipeline_tag": ANY_TEXT,
    "library_name": ANY_TEXT,
    "pretty_name": ANY_TEXT,
}
MODEL_RULES = {
    "base_model": Rule(
        form=_REPO_ID,
        complaint='with value "{value}" is not valid. Use a model id from https://hf.co/models.',
    ),
    "base_model_relation": Rule(
        many=False,
        form=re.compile("adapter|merge|quantized|finetune"),
        complaint="must be one of [adapter, merge, quantized, finetune]",
    ),
}
SPACE_RULES = {
    "sdk": Rule(
        many=False,
        form=re.compile("gradio|docker|static"),
        complaint="must be one of [gradio, docker, static]",
    ),
    "title": ANY_TEXT,
    "sdk_version": Rule(
        many=False,
        form=re.compile(r"\d+(\.\d+){1,2}"),
        complaint='with value "{value}" is not a version.',
    ),
    "python_version": Rule(
        many=False,
        form=re.compile(r"3(\.\d+){0,2}"),
        complaint='with value "{value}" is not a version of Python 3.',
    ),
    "app_file": ANY_TEXT,
    "short_description": Rule(
        many=False,
        form=re.compile(".{1,60}"),
        complaint="length must be less than or equal to 60 characters long",
    ),
    **{
        side: Rule(
            many=False,
            form=re.compile("red|yellow|green|blue|indigo|purple|pink|gray"),
            complaint="must be one of [red, yellow, green, blue, indigo, purple, pink, gray]",
        )
        for side in ("colorFrom", "colorTo")
    },
    "models": Rule(
        one=False,
        form=_REPO_ID,
        complaint='with value "{value}" is not valid. Use a model id from https://hf.co/models.',
    ),
}
# The objects in a result of a model-index, all required but the source: their required and optional strings.
RESULT_PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "task": (("type",), ("name",)),
    "dataset": (("type", "name"), ("config", "split", "revision")),
    "source": (("url",), ("name",)),
}

_FRONT_MATTER = re.compile(r"\s*---[\r\n]+(.*?)[\r\n]+---(?:\r\n|\n|\Z)", re.DOTALL)


class _Loader(yaml.SafeLoader):
    """YAML as the Hub's parser reads it: `no` and `on` are words, and a key that comes twice is an error."""

    yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in forms if tag != "tag:yaml.org,2002:bool"]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases, which the Hub takes: a few lines of them can stand for gigabytes."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping, with each of its keys once."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            raise yaml.YAMLError("duplicated mapping key")
        return mapping


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))


def front_matter(content: str) -> dict[str, Any]:
    """The metadata on top of a card, as JSON can hold it; empty if there is none or it cannot be read."""
    found = _FRONT_MATTER.match(content)
    try:
        value = json.loads(json.dumps(_load(found[1]), default=str)) if found else {}
    except (ValueError, TypeError, RecursionError):
        value = {}
    return value if isinstance(value, dict) else {}


def check_card(content: str, kind: str) -> tuple[list[str], list[str]]:
    """The errors and the warnings for a card of a repo of this kind: model, dataset or space."""
    found = _FRONT_MATTER.match(content)
    if found is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        value = _load(found[1])
    except ValueError as error:
        return [f"Invalid YAML in README.md: {error}"], []
    if isinstance(value, list):
        return ['"value" must be of type object'], []
    if not isinstance(value, dict):
        return ["The YAML metadata of your README.md is invalid."], []
    return list(_check_metadata(value, kind)), []


def _load(text: str) -> object:
    """The value of a YAML document.

    Raises:
        ValueError: it is not YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(str(error) or "nested too deeply") from error


def _check_metadata(card: dict[str, Any], kind: str) -> Iterator[str]:
    rules = RULES | {"model": MODEL_RULES, "space": SPACE_RULES}.get(kind, {})
    for name, rule in rules.items():
        value = card.get(name)
        if isinstance(value, list) and rule.many:
            for index, item in enumerate(value):
                yield from _check_text(item, f"{name}[{index}]", rule)
        elif name in card and rule.one:
            yield from _check_text(value, name, rule)
        elif name in card:
            yield f'"{name}" must be an array'
    if kind == "model" and "model-index" in card:
        yield from _check_list(card["model-index"], "model-index", _check_model)


def _check_text(value: object, where: str, rule: Rule) -> Iterator[str]:
    if not isinstance(value, str):
        yield f'"{where}" must be a string'
    elif not value:
        yield f'"{where}" is not allowed to be empty'
    elif not rule.form.fullmatch(value):
        yield f'"{where}" {rule.complaint.format(value=value)}'


def _check_list(value: object, where: str, check: Callable[[Any, str], Iterator[str]]) -> Iterator[str]:
    if not isinstance(value, list):
        yield f'"{where}" must be an array'
        return
    for index, item in enumerate(value):
        yield from check(item, f"{where}[{index}]")


def _check_object(value: object, where: str, required: tuple[str, ...], optional: tuple[str, ...]) -> Iterator[str]:
    """Complaints about an object whose fields of these names are strings."""
    if not isinstance(value, dict):
        yield f'"{where}" must be of type object'
        return
    for name in (*required, *optional):
        if name in value:
            yield from _check_text(value[name], f"{where}.{name}", ANY_TEXT)
        elif name in required:
            yield f'"{where}.{name}" is required'


def _check_model(value: object, where: str) -> Iterator[str]:
    yield from _check_object(value, where, ("name",), ())
    if isinstance(value, dict):
        yield from _check_list(value.get("results"), f"{where}.results", _check_result)


def _check_result(value: object, where: str) -> Iterator[str]:
    yield from _check_object(value, where, (), ())
    if not isinstance(value, dict):
        return
    for name, (required, optional) in RESULT_PARTS.items():
        if name in value:
            yield from _check_object(value[name], f"{where}.{name}", required, optional)
        elif name != "source":
            yield f'"{where}.{name}" is required'
    yield from _check_list(value.get("metrics"), f"{where}.metrics", _check_metric)


def _check_metric(value: object, where: str) -> Iterator[str]:
    yield from _check_object(value, where, ("type",), ("name", "config", "verifyToken"))
    if isinstance(value, dict):
        if value.get("value") is None:
            yield f'"{where}.value" is required'
        if not isinstance(value.get("verified", True), bool):
            yield f'"{where}.verified" must be a boolean'
