"""What a true hfcart.json of a merge cannot say: everything in one that types alone do not rule out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from hfcart.clip.architecture import expected_shapes, read_architecture
from hfcart.clip.tensor_names import COPIED, is_copied
from hfcart.errors import NotATowerError
from hfcart.formats.card_facts import are_facts
from hfcart.methods import METHODS, Method
from hfcart.methods.adaptation import OBJECTIVES
from hfcart.methods.shared.directions import from_hex
from hfcart.quoting import plural
from hfcart.recipes.merge_recipe import Recipe
from hfcart.records import (
    RECORD_FORMAT,
    AdaptationRecord,
    Architecture,
    MergeRecord,
    SelectionRecord,
    Similarity,
    SourceData,
    SourceRecord,
    Swept,
    TensorRecord,
)
from hfcart.records.adapters import CONFIG, WEIGHTS, adapter_file, is_adapter_file, is_adapter_name
from hfcart.records.check import (
    DTYPES,
    MOST,
    PARTS,
    PRECISIONS,
    faults_of_environment,
    faults_of_files,
    faults_of_source,
    faults_of_task,
    faults_of_tensors,
    is_label,
    is_sha256,
    is_task_id,
    within,
)

SMALL_FILES = 20  # config, preprocessor, recipe, index and the tokenizer's; any other file holds a tensor at least
_MAX_SOURCES = 10_000


def faults(record: MergeRecord, recipe: Recipe) -> Iterator[str]:
    """What cannot be in a true record beside this recipe, one phrase each; nothing for a good one."""
    method, count = METHODS[recipe.method], len(record.sources)
    if record.format != RECORD_FORMAT:
        yield f"it has format {record.format}"
    if record.method.name != method.name:
        yield "its method is not that of its recipe"
    if record.method.package.partition(" ")[0] != method.package.partition(" ")[0]:
        yield "its method is brought by another package"
    if not 1 <= count <= _MAX_SOURCES or [*map(name_of, record.sources)] != record.recipe["sources"]:
        yield "its sources are not those of its recipe"
    if (name_of(record.base) if record.base else None) != record.recipe.get("base"):
        yield "its base is not that of its recipe"
    if record.base is None and (method.needs_base or recipe.full_clip):
        yield "it has no base"
    named = [(f"sources.{i}", source) for i, source in enumerate(record.sources)]
    for name, source in (*named, *([("base", record.base)] if record.base else [])):
        yield from within(name, faults_of_source(source))
        if not are_facts(source.facts):
            yield f"{name}.facts: what a card says has not the form that it must have"
    yield from _faults_of_weights(record, recipe, method)
    yield from _faults_of_similarity(record.similarity, count, against_base=record.base is not None)
    yield from within("environment", faults_of_environment(record.environment))
    yield from within("files", faults_of_files(record.files, len(record.tensors) + 2 * count + SMALL_FILES))
    yield from within("adapters", _faults_of_adapters(record, recipe))
    labels = [source.label for source in record.sources]
    if record.adaptation is not None:
        yield from within("adaptation", _faults_of_adaptation(record.adaptation, recipe, labels))
    if record.selection is not None:
        yield from within("selection", _faults_of_selection(record.selection, method, labels))
    if record.swept is not None:
        yield from within("swept", _faults_of_sweep(record.swept))
    if len(record.data) != (count if method.statistics else 0):
        yield f"data: it has images of {len(record.data)} of {plural(count, 'source')}"
    for i, (data, source) in enumerate(zip(record.data, record.sources, strict=False)):
        yield from within(f"data.{i}", _faults_of_data(data, source, method))


def _faults_of_data(data: SourceData, source: SourceRecord, method: Method) -> Iterator[str]:
    yield from faults_of_task(data)
    if data.source != source.label or data.part != "train" or data.statistics != method.statistics:
        yield "images of a source are not what its method looks at"
    if not is_sha256(data.sha256):
        yield "the sha256 of what was gathered is none"


def _faults_of_weights(record: MergeRecord, recipe: Recipe, method: Method) -> Iterator[str]:
    plain = "CLIPVisionModelWithProjection" if recipe.with_projection else "CLIPVisionModel"
    if record.model_class != ("CLIPModel" if recipe.full_clip else plain):
        yield "its model_class is not that of its recipe: with_projection and full_clip decide it"
    if record.dtype not in DTYPES or record.dtype != recipe.dtype:
        yield "its dtype is not that of its recipe"
        return
    yield from faults_of_architecture(record.architecture)
    expected = expected_shapes(record.architecture, projection=recipe.with_projection)
    tower = [tensor for tensor in record.tensors if tensor.name in expected]
    beside = [tensor for tensor in record.tensors if tensor.name not in expected]
    rules = {method.rule_name(matrix=True), method.rule_name(matrix=False)}
    if recipe.full_clip != bool(beside) or not all(map(_is_beside, beside)):
        yield "its tensors are not those of its model_class"
    if len({tensor.name for tensor in beside}) < len(beside) or not all(is_sha256(t.sha256) for t in beside):
        yield "a copied tensor is there twice, or its sha256 is none"
    yield from within("tensors", faults_of_tensors(tower, expected))
    if not all(tensor.rule in rules for tensor in tower):
        yield f"a tensor has a rule that {method.name} has not"
    if any(tensor.dtype != DTYPES[record.dtype] for tensor in record.tensors):
        yield "a tensor has another dtype than the whole"
    if record.parameters != sum(math.prod(tensor.shape) for tensor in record.tensors):
        yield "its tensors do not make its number of parameters"
    if not set(recipe.coefficients or ()) <= {tensor.name for tensor in tower}:
        yield "it has coefficients of no tensor"
    if recipe.directions is not None:
        yield from within("recipe.directions with its adapt_ranks", _faults_of_directions(record, recipe.directions))


def _faults_of_directions(record: MergeRecord, directions: dict[str, list[str]]) -> Iterator[str]:
    from hfcart.maths.low_rank import rank_of  # scipy and torch: not for a record without directions

    full = {tensor.name: tensor.full_rank for tensor in record.tensors}
    start = record.adaptation.rank if record.adaptation else None
    for name, chosen in directions.items():
        count = full.get(name)
        if count is None:
            yield "it has directions of no matrix"
            return
        try:
            for text in chosen:
                from_hex(text, rank_of(record.recipe["adapt_ranks"], count, count))
            if start is not None:
                rank_of(start, count, count)
        except ValueError as error:
            yield str(error)
            return


def _is_beside(tensor: TensorRecord) -> bool:
    """Whether a whole CLIPModel may have this beside its tower."""
    sizes = len(tensor.shape) <= 2 and all(0 < size <= 10_000_000 for size in tensor.shape)
    computed = (tensor.rank, tensor.full_rank, tensor.energy) != (None, None, None)
    return is_copied(tensor.name) and tensor.rule == COPIED and sizes and not computed


def faults_of_architecture(architecture: Architecture) -> Iterator[str]:
    """What cannot be true of a tower's numbers."""
    try:
        known = read_architecture({"model_type": "clip_vision_model", **vars(architecture)}, "")
    except NotATowerError:
        known = None
    if known != architecture:
        yield "its architecture is none that a CLIP tower can have"


def _faults_of_similarity(similarity: Similarity | None, count: int, *, against_base: bool) -> Iterator[str]:
    if similarity is None:
        return
    if similarity.centred_on != ("base" if against_base else "mean"):
        yield "its similarity is centred on something else"
    if len(similarity.distance) != count or [*map(len, similarity.cosine)] != [count] * count:
        yield f"its similarity is not that of {plural(count, 'source')}"
    if not all(-1 <= cosine <= 1 for row in similarity.cosine for cosine in row) or min(similarity.distance) < 0:
        yield "a cosine or a distance is out of range"


def _faults_of_adapters(record: MergeRecord, recipe: Recipe) -> Iterator[str]:
    """Their files are listed: what is called so without a record of it is none."""
    adapters = record.adapters
    if [each.source for each in adapters] != ([s.label for s in record.sources] if recipe.adapters else []):
        yield "its adapters are not those of its sources"
    if len({each.name for each in adapters}) < len(adapters) or not all(is_adapter_name(a.name) for a in adapters):
        yield "two adapters have one name, or the name of one is none"
    files = {adapter_file(each.name, file) for each in adapters for file in (CONFIG, WEIGHTS)}
    names = {tensor.name for tensor in record.tensors}
    if files != {name for name in record.files if is_adapter_file(name)}:
        yield "the files of its adapters are not those that it lists"
    for each in adapters:
        if record.files.get(adapter_file(each.name, WEIGHTS)) != each.sha256:
            yield "the sha256 of an adapter is not that of its file"
        if not all(1 <= number <= MOST for number in (each.rank, each.parameters, each.size)):
            yield "a number of an adapter is out of range"
        if not 0 <= each.energy <= 1:
            yield "the energy of an adapter is not in [0, 1]"
        if sorted(names.intersection(each.fallbacks)) != sorted(each.fallbacks):
            yield "the fallbacks of an adapter are in no tensor of its tower"


def _faults_of_adaptation(adaptation: AdaptationRecord, recipe: Recipe, labels: list[str]) -> Iterator[str]:
    if recipe.adaptive is None or recipe.coefficients is None or adaptation.name != recipe.adaptive.name:
        yield "it is not that of its method, or there are no coefficients"
    if (adaptation.rank is None) != (recipe.directions is None):
        yield "the rank that its adaptation began with is none"
    if adaptation.per not in ("tensor", "task") or adaptation.part not in PARTS:
        yield "its adaptation is of no known kind"
    if adaptation.objective not in (None, *OBJECTIVES):
        yield "its adaptation had no known objective"
    if not is_label(adaptation.base, adaptation.base_commit) or adaptation.precision not in PRECISIONS:
        yield "the base or the precision of its adaptation is none"
    counts = (adaptation.steps, adaptation.batch_size, adaptation.rounds, adaptation.processes)
    if not all(1 <= number <= MOST for number in counts) or adaptation.seed < 0 or not 0 < adaptation.lr <= MOST:
        yield "a number of its adaptation is out of range"
    if not adaptation.tasks:
        yield "its adaptation has no task"
    for task in adaptation.tasks:
        yield from faults_of_task(task)
        if not (0 <= task.first_entropy <= 100 and 0 <= task.last_entropy <= 100):
            yield "an entropy is out of range"
        if task.own is not None and task.own not in labels:
            yield "the own tower of a task is none of its sources"
        shares = (task.first_share, task.last_share, task.first_agreement, task.last_agreement)
        if not all(share is None or 0 <= share <= 1 for share in shares):
            yield "a share of an adaptation is not in [0, 1]"


def _faults_of_selection(selection: SelectionRecord, method: Method, labels: list[str]) -> Iterator[str]:
    if method.chosen is None or selection.parameter != method.chosen.parameter:
        yield "it chose no parameter of its method"
    if selection.part != "validation" or selection.precision not in PRECISIONS:
        yield "its choice was made on no known images"
    if not is_label(selection.base, selection.base_commit):
        yield "the base of its choice is none"
    candidates = selection.candidates
    if not 1 <= len(candidates) <= 100 or sorted(set(candidates)) != list(candidates):
        yield "its candidates are no ascending numbers"
    if [chosen.source for chosen in selection.sources] != labels:
        yield f"it did not choose for its {plural(len(labels), 'source')}"
    for chosen in selection.sources:
        yield from faults_of_task(chosen)
        if chosen.value not in candidates or len(chosen.correct) != len(candidates):
            yield "what was chosen is no candidate, or not all were tried"
        if not all(0 <= correct <= chosen.images for correct in chosen.correct):
            yield "more images were recognised than there were"


def _faults_of_sweep(swept: Swept) -> Iterator[str]:
    if swept.part not in PARTS or not swept.tasks or not all(map(is_task_id, swept.tasks)):
        yield "its sweep was made on no known images"
    if not 1 <= swept.images <= MOST or not 1 <= swept.points <= MOST or not is_sha256(swept.sha256):
        yield "a number of its sweep is out of range"
    if not (0 <= swept.accuracy <= 1 and 0 <= swept.anchor <= 1):
        yield "an accuracy of its sweep is none"


def name_of(source: SourceRecord) -> str | dict[str, Any]:
    """A source as a recorded recipe names it."""
    own = source.ref or {"path": source.label, "sha256": source.sha256}
    return own if source.adapter_of is None else {"adapter": own, "base": name_of(source.adapter_of)}
