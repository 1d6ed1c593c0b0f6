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

from hfcart.clip.tensor_names import layer_and_matrix
from hfcart.errors import UsageError
from hfcart.formats.markdown import code, text, words
from hfcart.formats.shard_layout import WEIGHTS
from hfcart.methods.declaration import ARXIV
from hfcart.records import (
    Architecture,
    DatasetRecord,
    EvalRecord,
    FolderRecord,
    MergeRecord,
    MethodRecord,
    Selected,
    SelectionRecord,
    Similarity,
    SourceData,
    SourceRecord,
    TensorRecord,
)
from hfcart.records.check import is_commit
from hfcart.records.repo_id import is_place, is_repo_id
from hfcart.report.accuracy import belongs
from hfcart.report.adapters_section import adapters_section
from hfcart.report.directions_section import directions_section, ends
from hfcart.report.first_lines import chosen, first_lines
from hfcart.report.results_section import HUB, accuracy_section, model_index, on_the_hub
from hfcart.report.template import front_matter as as_yaml
from hfcart.report.template import percent, render, signed, some

TEMPLATE = "model_card.md.jinja"

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
        treatment=_treatment(record),
        fallbacks=[code(tensor.name) for tensor in record.tensors if tensor.fallback],
        energy=_energy_range(record.tensors),
        similarity=_similarity_range(record.similarity),
        licenses=_by_license(record),
        images=[_images(data) for data in record.data],
        selected=[_selected(each, record.selection) for each in record.selection.sources] if record.selection else [],
        accuracy=accuracy_section(results) if results else None,
        adapters=adapters_section(record),
        # Escapes for everything beyond ASCII: exact, and no invisible character can disguise a source.
        recipe=yaml.safe_dump(_short(record.recipe), sort_keys=False, width=math.inf),
        coefficients=_coefficient_range(record),
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
        **_license_fields(ingredients, repo),
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


def _coefficient_range(record: MergeRecord) -> dict[str, Any] | None:
    """How many tensors have coefficients, and the lowest and highest of them; None without."""
    found = record.recipe.get("coefficients")
    if not found:
        return None
    values = [value for row in found.values() for value in row]
    return {
        "tensors": len(found),
        "low": f"{min(values):.3g}",
        "high": f"{max(values):.3g}",
        "drawn": any(map(layer_and_matrix, found)),
    }


def _method_link(method: MethodRecord) -> str:
    """The paper's name for the method, linked."""
    return (
        f"[{text(method.title)}](https://arxiv.org/abs/{method.arxiv})"
        if ARXIV.fullmatch(method.arxiv)
        else (text(method.title))
    )


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


def _license_of(source: SourceRecord) -> str | None:
    """What a source states: an identifier, the name of a licence of its own, or None (`unknown` states nothing)."""
    stated = source.facts.license
    if stated == "other":
        return source.facts.license_name or stated
    return None if stated in (None, "", "unknown") else stated


def _by_license(record: MergeRecord) -> list[tuple[str | None, list[str]]]:
    """(licence, labels of the towers that state it), sorted, and the towers that state none at the end."""
    stated: dict[str | None, list[str]] = {}
    for source in _ingredients(record):
        stated.setdefault(_license_of(source), []).append(source.label)
    return sorted(stated.items(), key=lambda item: (item[0] is None, item[0] or ""))


def _license_fields(sources: list[SourceRecord], repo: str | None) -> dict[str, str | None]:
    names = [_license_of(source) for source in sources]
    if None in names:
        return {}
    stated = sorted({name for name in names if name})
    if len(stated) == 1 and stated[0] in HUB_LICENSES - {"other"}:
        return {"license": stated[0]}
    links = {_license_link(source) for source in sources}
    # Different licences, or one that every source links elsewhere: this card's own section names them all.
    own = f"{HUB}/{repo}#licence" if repo else None
    link = links.pop() if len(stated) == len(links) == 1 else None
    slug = re.sub(r"[^a-z0-9.-]+", "-", "-and-".join(stated).lower()).strip("-.")
    return {"license": "other", "license_name": slug[:120] or "other", "license_link": link or own}


def _license_link(source: SourceRecord) -> str | None:
    link = source.facts.license_link or ""
    if LINK.fullmatch(link):
        return link
    if _FILE.fullmatch(link) and _page(source):
        return f"{_page(source)}/blob/{source.commit}/{link}"
    return None


def _page(source: SourceRecord) -> str | None:
    """The source's page on the Hub; None for a local folder, or where repo or commit are not what they should be."""
    if source.repo and is_repo_id(source.repo) and is_commit(source.commit):
        return f"{HUB}/{source.repo}"
    return None


def _tower(source: SourceRecord, record: MergeRecord, index: int | None) -> dict[str, str]:
    """One row of the table of sources, each cell as Markdown."""
    name, pin = _pinned(source)
    if source.adapter_of is not None:
        base, at = _pinned(source.adapter_of)
        name, pin = f"{name}, a LoRA adapter of {base}", f"{pin}, its base {at}"
    return {
        "number": "base" if index is None else str(index + 1),
        "name": name,
        "pin": pin,
        "license": code(_license_of(source), 60) if _license_of(source) else "not stated",
        "datasets": some([_dataset(name) for name in source.facts.datasets]) or "not stated",
        "distance": f"{record.similarity.distance[index]:#.3g}" if record.similarity and index is not None else "",
    }


def _pinned(source: SourceRecord) -> tuple[str, str]:
    """What a source is called, with a link if it has a page, and what it is pinned by."""
    page = _page(source)
    asked = source.revision
    if page:
        name = f"[{text(source.repo)}]({page})"
        pin = f"[`{source.commit[:7]}`]({page}/tree/{source.commit})" if source.commit else ""
        if source.path and is_place(source.path):
            kind = "blob" if source.path.endswith(WEIGHTS) else "tree"
            name += f" [{code(source.path, 120)}]({page}/{kind}/{source.commit}/{url_quote(source.path)})"
        if asked and asked != "main" and not (source.commit or "").startswith(asked):
            pin += f" ({code(asked, 40)})"
    else:
        name = code(source.label) + ("" if source.repo else " (local)")
        pin = f"sha256 {code(source.sha256[:12])}"
    return name, pin


def _dataset(name: str) -> str:
    return f"[{text(name)}]({HUB}/datasets/{name})" if is_repo_id(name) else code(name, 60)


def _images(data: SourceData) -> dict[str, str]:
    """One row of the table of images that the method looked at, each cell as Markdown."""
    return {**_seen(data), "sha256": code(data.sha256[:12])}


def _seen(data: SourceData | Selected) -> dict[str, str]:
    """What was looked at for a tower, each cell as Markdown."""
    dataset = data.dataset
    pin = code(dataset.sha256[:12]) if isinstance(dataset, FolderRecord) else code(dataset.commit, 40)
    if isinstance(dataset, DatasetRecord) and on_the_hub(dataset):
        pin = f"[`{dataset.commit[:7]}`]({HUB}/datasets/{dataset.repo}/tree/{dataset.commit})"
    return {
        "tower": code(data.source, 60),
        "task": words(data.title),
        "dataset": f"a folder {code(dataset.folder)}" if isinstance(dataset, FolderRecord) else _dataset(dataset.repo),
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


def _treatment(record: MergeRecord) -> list[dict[str, Any]]:
    """Rows of "what happened to which tensors": tensors of one kind that got the same, in output order."""
    fused, various = record.recipe.get("qkv") == "fused", record.recipe.get("directions") is not None
    rows: dict[tuple[object, ...], list[TensorRecord]] = {}
    for tensor in record.tensors:
        matrix = layer_and_matrix(tensor.name)
        low = tensor.rank is not None
        stacked = bool(matrix and fused and low and matrix[1] in ("q_proj", "k_proj", "v_proj"))
        key = (stacked, tensor.shape) if matrix else (_kind(tensor.name),)
        # Where directions were chosen, each has a rank of its own: a row has the fewest and the most.
        rows.setdefault((*key, tensor.rule, low if various else tensor.rank, tensor.full_rank), []).append(tensor)
    # Matrices first: they are what the method is about.
    return [
        _treated(tensors, fused=key[0] is True)
        for key, tensors in sorted(rows.items(), key=lambda row: not isinstance(row[0][0], bool))
    ]


def _treated(tensors: list[TensorRecord], *, fused: bool) -> dict[str, Any]:
    first = tensors[0]
    matrices = _unique(matrix[1] for tensor in tensors if (matrix := layer_and_matrix(tensor.name)))
    energies = [tensor.energy for tensor in tensors if tensor.energy is not None]
    ranks = [tensor.rank for tensor in tensors if tensor.rank is not None]
    shape = _shape(first.shape) if matrices or ranks else ""
    return {
        "what": ", ".join(map(code, matrices)) if matrices else _kind(first.name),
        "shape": f"{shape}, fused to {_shape((3 * first.shape[0], first.shape[1]))}" if fused else shape,
        "tensors": len(tensors),
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "rule": first.rule,
        "rank": f"{ends(ranks)}\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}{first.full_rank}" if ranks else "",
        "energy": f"{percent(min(energies))}–{percent(max(energies))}%" if energies else "",
    }


def _shape(shape: tuple[int, ...]) -> str:
    return "\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}".join(map(str, shape))


def _kind(name: str) -> str:
    if name.startswith("text_model."):
        return "text tower"
    for mark, kind in (
        ("norm", "layer norms"),
        ("embedding", "embeddings"),
        ("_projection", "projection"),
        ("logit_scale", "logit scale"),
    ):
        if mark in name:
            return kind
    return "biases" if name.endswith(".bias") else "others"


def _energy_range(tensors: tuple[TensorRecord, ...]) -> dict[str, Any] | None:
    """Where the energy figure is lowest and highest; None where there is nothing to draw."""
    cells = [(t.energy, matrix) for t in tensors if t.energy is not None and (matrix := layer_and_matrix(t.name))]
    if not cells:
        return None
    low, high = min(cells, key=lambda cell: cell[0]), max(cells, key=lambda cell: cell[0])
    return {
        "low": low[0],
        "low_at": f"{low[1][1]} of layer {low[1][0]}",
        "high": high[0],
        "high_at": f"{high[1][1]} of layer {high[1][0]}",
    }


def _similarity_range(similarity: Similarity | None) -> dict[str, Any] | None:
    """Lowest and highest cosine of two different towers, which two, and what unrelated towers would show.

    None where there is nothing to see: one tower, or two seen from their mean, which are opposite always.
    """
    count = len(similarity.cosine) if similarity else 0
    if similarity is None or count < 2 or (count == 2 and similarity.centred_on == "mean"):
        return None
    pairs = [
        (cosine, (i + 1, j + 1))
        for i, row in enumerate(similarity.cosine)
        for j, cosine in enumerate(row)
        if i < j and math.isfinite(cosine)
    ]
    return {
        "drawn": count > 2,  # of two, it is one number
        "centred": similarity.centred_on == "mean",
        "unrelated": signed(-1 / (count - 1)),
        "low": min(pairs, default=None),
        "high": max(pairs, default=None),
    }
