"""The model card: a MergeRecord rendered through `cards/model_card.md.jinja`. Pure: no network, no clock.

Most of what a card shows was written by strangers: names of repos and folders, licences, data sets. Such text
reaches the card in one of three ways only: as a Hub id that has the exact form of one, as words of letters and
digits (`words`), or inside a code span without any character that could end it (`code`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote as url_quote

import yaml

from hfcart.errors import UsageError
from hfcart.formats.markdown import code, text, words
from hfcart.formats.shard_layout import WEIGHTS
from hfcart.methods.declaration import ARXIV
from hfcart.records import (
    Architecture,
    EvalRecord,
    FolderRecord,
    MergeRecord,
    MethodRecord,
    Selected,
    SelectionRecord,
    SourceData,
    SourceRecord,
)
from hfcart.records.repo_id import is_place, is_repo_id
from hfcart.report.accuracy import belongs
from hfcart.report.adapters_section import adapters_section
from hfcart.report.first_lines import chosen, first_lines
from hfcart.report.licences import by_license, joint_license_fields, license_of
from hfcart.report.links import at, dataset_link, page_of
from hfcart.report.results_section import accuracy_section, model_index
from hfcart.report.template import front_matter as as_yaml
from hfcart.report.template import render, some
from hfcart.report.weights_section import (
    coefficient_range,
    directions_section,
    energy_range,
    similarity_range,
    treatment,
)

TEMPLATE = "model_card.md.jinja"
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
_CLASSES = ("CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel")
_SIZES = {(384, 12): "S", (768, 12): "B", (1024, 24): "L", (1280, 32): "H"}


def render_card(record: MergeRecord, *, repo: str | None = None, results: EvalRecord | None = None) -> str:
    """The README.md of a merge: same record, same text.

    Args:
        record: everything the card says.
        repo: the Hub repo it is published to, "user/name"; without it the card speaks of its own folder.
        results: an evaluation; those of other weights are not shown.

    Raises:
        UsageError: `repo` is not a Hub repo, or the template (which users may edit) does not render.
    """
    results = results if results and belongs(results, record) else None
    metadata = front_matter(record, repo=repo, results=results)
    return render(
        TEMPLATE,
        metadata=as_yaml(metadata),
        record=record,
        repo=repo,
        model_class=record.model_class if record.model_class in _CLASSES else _CLASSES[0],
        method_link=_method_link(record.method),
        size=_size(record.architecture),
        parameters=_parameters(record.parameters),
        towers=[_tower(source, record, i) for i, source in enumerate(record.sources)],
        base=_tower(record.base, record, None) if record.base else None,
        local=[each.label for each in (*record.sources, record.base) if each and each.repo is None],
        first=first_lines(record, results),
        stated_bases=any(source.facts.base_models for source in record.sources),
        chosen=chosen(record),
        swept=record.swept,
        treatment=treatment(record),
        fallbacks=[code(tensor.name) for tensor in record.tensors if tensor.fallback],
        energy=energy_range(record.tensors),
        similarity=similarity_range(record.similarity),
        licenses=by_license(_ingredients(record)),
        images=[_images(data) for data in record.data],
        selected=[_selected(each, record.selection) for each in record.selection.sources] if record.selection else [],
        accuracy=accuracy_section(results) if results else None,
        adapters=adapters_section(record),
        # Escapes for everything beyond ASCII: exact, and no invisible character can disguise a source.
        recipe=yaml.safe_dump(_short(record.recipe), sort_keys=False, width=math.inf),
        coefficients=coefficient_range(record),
        directions=directions_section(record),
        checksums="\n".join(f"{digest}  {name}" for name, digest in sorted(record.files.items())),
    )


def front_matter(record: MergeRecord, *, repo: str | None = None, results: EvalRecord | None = None) -> dict[str, Any]:
    """The card's metadata, with the Hub's field names.

    The licence is given only when every tower that went in states one: theirs if they agree, else `other`.

    Args:
        record: the merge.
        repo: the Hub repo it is published to, "user/name".
        results: an evaluation of it; whole test splits become the model-index.

    Raises:
        UsageError: `repo` is not a Hub repo.
    """
    if repo is not None and not is_repo_id(repo, namespace=True):
        raise UsageError(f"{repo!r} is not a Hub repo.", hint="Give it as user/name.")
    ingredients = _ingredients(record)
    facts = [source.facts for source in record.sources]
    repos = _unique(source.repo for source in ingredients if source.repo)
    base_model = [name for name in repos if is_repo_id(name)]
    datasets = [name for name in _union(fact.datasets for fact in facts) if is_repo_id(name)]
    languages = _union([language.partition("-")[0] for language in fact.languages] for fact in facts)
    metadata: dict[str, Any] = {
        **joint_license_fields(ingredients, repo),
        "language": [language for language in languages if _LANGUAGE.fullmatch(language)],
        "library_name": record.recipe.get("format", "transformers"),
        "pipeline_tag": "zero-shot-image-classification" if _whole(record) else "image-feature-extraction",
        "base_model": base_model,
        "base_model_relation": "merge" if base_model else None,
        "datasets": datasets,
        "tags": _unique(["hfcart", "merge", "clip", record.method.name, *(["peft"] if record.adapters else [])]),
    }
    if results is not None and belongs(results, record):
        name = repo.partition("/")[2] if repo else f"{record.method.name}-merge"
        metadata["model-index"] = model_index(results, name, repo)
    return {key: value for key, value in metadata.items() if value}


def _short(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe without its coefficients and directions, of which there are hundreds: recipe.yaml has them."""
    return {key: value for key, value in recipe.items() if key not in ("coefficients", "directions")}


def _method_link(method: MethodRecord) -> str:
    """The paper's name for the method, linked."""
    title = text(method.title)
    return f"[{title}](https://arxiv.org/abs/{method.arxiv})" if ARXIV.fullmatch(method.arxiv) else title


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _union(many: Iterable[Iterable[str]]) -> list[str]:
    return sorted({value for values in many for value in values})


def _ingredients(record: MergeRecord) -> list[SourceRecord]:
    """Every model whose weights entered the result: the sources, and the base where it was used or copied from."""
    entered = record.base and (record.method.uses_base or _whole(record))
    beneath = [source.adapter_of for source in record.sources if source.adapter_of]
    found = [*record.sources, *beneath, *([record.base] if record.base and entered else [])]
    return list({(source.label, source.sha256): source for source in found}.values())


def _whole(record: MergeRecord) -> bool:
    """Whether the result is a whole CLIPModel, with the base's text tower and projections."""
    return record.model_class == "CLIPModel"


def _tower(source: SourceRecord, record: MergeRecord, index: int | None) -> dict[str, str]:
    """One row of the table of sources, each cell as Markdown."""
    name, pin = _pinned(source)
    if source.adapter_of is not None:
        base, base_pin = _pinned(source.adapter_of)
        name, pin = f"{name}, a LoRA adapter of {base}", f"{pin}, its base {base_pin}"
    return {
        "number": "base" if index is None else str(index + 1),
        "name": name,
        "pin": pin,
        "license": code(stated, 60) if (stated := license_of(source)) else "not stated",
        "datasets": some([dataset_link(name) for name in source.facts.datasets]) or "not stated",
        "distance": f"{record.similarity.distance[index]:#.3g}" if record.similarity and index is not None else "",
    }


def _pinned(source: SourceRecord) -> tuple[str, str]:
    """What a source is called, with a link if it has a page, and what it is pinned by."""
    page = page_of(source.repo, source.commit)
    asked = source.revision
    if page:
        name = f"[{text(source.repo)}]({page})"
        pin = at(page, source.commit)
        if source.path and is_place(source.path):
            kind = "blob" if source.path.endswith(WEIGHTS) else "tree"
            name += f" [{code(source.path, 120)}]({page}/{kind}/{source.commit}/{url_quote(source.path)})"
        if asked and asked != "main" and not (source.commit or "").startswith(asked):
            pin += f" ({code(asked, 40)})"
    else:
        name = code(source.label) + ("" if source.repo else " (local)")
        pin = f"sha256 {code(source.sha256[:12])}"
    return name, pin


def _images(data: SourceData) -> dict[str, str]:
    """One row of the table of images that the method looked at, each cell as Markdown."""
    return {**_seen(data), "sha256": code(data.sha256[:12])}


def _seen(data: SourceData | Selected) -> dict[str, str]:
    """What was looked at for a tower, each cell as Markdown."""
    dataset = data.dataset
    if isinstance(dataset, FolderRecord):
        where, pin = f"a folder {code(dataset.folder)}", code(dataset.sha256[:12])
    else:
        page = page_of(dataset.repo, dataset.commit, "datasets/")
        where, pin = dataset_link(dataset.repo), at(page, dataset.commit) if page else code(dataset.commit, 40)
    return {
        "tower": code(data.source, 60),
        "task": words(data.title),
        "dataset": where,
        "pin": pin,
        "split": code(dataset.split, 40),
        "images": f"{data.images:,}" + (f" ({data.undecodable:,} more are broken)" if data.undecodable else ""),
    }


def _selected(chosen: Selected, selection: SelectionRecord) -> dict[str, Any]:
    """One row of the table of candidates, each cell as Markdown: accuracy in per cent, the chosen one's in bold."""
    shares = [f"{100 * correct / max(1, chosen.images):.1f}" for correct in chosen.correct]
    cells = [
        f"**{share}**" if value == chosen.value else share
        for value, share in zip(selection.candidates, shares, strict=False)
    ]
    return {**_seen(chosen), "cells": cells}


def _size(architecture: Architecture) -> str:
    """The usual name of an architecture, such as ViT-B/32; its measures where it has none."""
    letter = _SIZES.get((architecture.hidden_size, architecture.num_hidden_layers))
    if letter:
        return f"ViT-{letter}/{architecture.patch_size}"
    return (
        f"ViT of width {architecture.hidden_size}, {architecture.num_hidden_layers} layers, "
        f"patch {architecture.patch_size}"
    )


def _parameters(count: int) -> str:
    return f"{count / 1e6:.1f} million" if count >= 1e6 else f"{count:,}"
