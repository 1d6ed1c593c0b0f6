"""A finished fine-tuning read back: hfcart.json of a folder or a repo, taken for what it is, a stranger's file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from hfcart import __version__
from hfcart.clip.architecture import expected_shapes
from hfcart.clip.tensor_groups import named_tensors
from hfcart.errors import VerifyError
from hfcart.formats.card_facts import are_facts
from hfcart.formats.markdown import one_line
from hfcart.formats.record_json import as_record, record_json
from hfcart.formats.safetensors_file import strict_json
from hfcart.quoting import plural
from hfcart.recipes.finished_merge import read_record
from hfcart.recipes.merge_check import SMALL_FILES, faults_of_architecture, name_of
from hfcart.records import RECORD_FORMAT, FinetuneRecord, MergeRecord, SourceRecord, TrainingCurve, TrainingRecord
from hfcart.records.check import (
    MOST,
    PRECISIONS,
    faults_of_curve,
    faults_of_environment,
    faults_of_files,
    faults_of_source,
    faults_of_task,
    faults_of_tensors,
    within,
)

MODEL_CLASS = "CLIPVisionModel"
RULE, FROZEN = "fine-tuned", "frozen"  # what became of a tensor
OPTIMIZER = "AdamW"
MAX_TRAINING_SEED = 1 << 63
_MOST_TASKS = 200
# The numbers that a fine-tuning's recipe records.
_NUMBERS: dict[str, type] = {
    **dict.fromkeys(("lr", "weight_decay", "max_grad_norm"), float),
    **dict.fromkeys(("steps", "batch_size", "seed", "warmup"), int),
}


def is_finetune_record(data: bytes) -> bool:
    """Whether an hfcart.json says that it is a fine-tuning's (a merge's has no kind). Proves nothing else."""
    try:
        found = strict_json(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("kind") == "finetune"


def read_finetune_record(data: bytes, where: str) -> FinetuneRecord:
    """Parse and check an hfcart.json of a fine-tuning, value by value.

    Args:
        data: the file's bytes.
        where: its name in messages.

    Raises:
        VerifyError: it is not a fine-tuning's record of a format this release reads.
    """
    refusal = f"{where} is not a record of a fine-tuning by hfcart, of format {RECORD_FORMAT}"
    hint = "Only folders and repos that hfcart made have one; a newer format needs pip install -U hfcart."
    try:
        record_json(data)
        record = as_record(data, FinetuneRecord)
    except ValueError as error:
        raise VerifyError(f"{refusal}: {error}.", hint=hint) from None
    if wrong := next(_faults(record), None):
        raise VerifyError(f"{refusal}: {wrong}.", hint=hint)
    return record


def _faults(record: FinetuneRecord) -> Iterator[str]:
    """What cannot be in a true record, one phrase each; nothing for a good one."""
    if record.kind != "finetune" or record.format != RECORD_FORMAT:
        yield f"it has format {record.format}"
    if len(record.sources) != 1 or not 1 <= len(record.tasks) <= _MOST_TASKS:
        yield f"it has {plural(len(record.sources), 'source')} and {plural(len(record.tasks), 'task')}"
        return
    (base,) = record.sources
    yield from within("sources.0", faults_of_source(base))
    if not base.label.isprintable() or not are_facts(base.facts):
        yield "sources.0: what its base is called or states has not the form that it must have"
    for i, task in enumerate(record.tasks):
        yield from within(f"tasks.{i}", faults_of_task(task))
    yield from within("recipe", _faults_of_recipe(record, base))
    yield from within("method", _faults_of_training(record.method, len(record.tasks)))
    if record.curve is not None:
        yield from within("curve", faults_of_curve(record.curve, record.recipe["steps"], len(record.tasks)))
        yield from within("recipe and curve", _faults_of_keeping(record.recipe, record.curve))
    yield from faults_of_architecture(record.architecture)
    expected = expected_shapes(record.architecture, projection=False)
    yield from within("tensors", faults_of_tensors(record.tensors, expected))
    if record.model_class != MODEL_CLASS or record.dtype != "float32":
        yield f"its model_class and dtype are not {MODEL_CLASS} and float32"
    if any(tensor.dtype != "F32" for tensor in record.tensors):
        yield "a tensor is not fine-tuned in float32"
    yield from within("recipe", _faults_of_freezing(record))
    if record.parameters != sum(math.prod(tensor.shape) for tensor in record.tensors):
        yield "its tensors do not make its number of parameters"
    yield from within("environment", faults_of_environment(record.environment))
    yield from within("files", faults_of_files(record.files, len(record.tensors) + SMALL_FILES))


def _faults_of_recipe(record: FinetuneRecord, base: SourceRecord) -> Iterator[str]:
    """The card's command is made of the recipe."""
    recipe = record.recipe
    numbers = _NUMBERS if record.curve is None else {**_NUMBERS, "validate_every": int}
    if set(recipe) - {"keep", "freeze"} != {"base", "tasks", "precision", *numbers}:
        yield f"its fields are not those of a fine-tuning with{'' if record.curve else 'out'} a curve"
        return
    if recipe["base"] != name_of(base) or recipe["tasks"] != [task.task for task in record.tasks]:
        yield "its recipe has another base or other tasks"
    if recipe["precision"] not in PRECISIONS:
        yield "its precision is neither float32 nor bfloat16"
    for name, kind in numbers.items():
        value = recipe[name]
        most = MAX_TRAINING_SEED if name == "seed" else MOST
        if type(value) not in (int, kind) or not 0 <= value < most:
            yield f"its {name} is no number in range"


def _faults_of_freezing(record: FinetuneRecord) -> Iterator[str]:
    """The card says what was frozen; what was not, was trained."""
    names = record.recipe.get("freeze", [])
    if "freeze" in record.recipe and not (isinstance(names, list) and names and all(type(n) is str for n in names)):
        yield "what it froze is no list of names"
        return
    try:
        told, tensors = named_tensors(names, [tensor.name for tensor in record.tensors])
    except ValueError:
        yield "it froze what a tower has not"
        return
    frozen = set(tensors)
    if list(told) != names or len(frozen) == len(record.tensors):
        yield "what it froze is not written as it should be"
    if any(tensor.rule != (FROZEN if tensor.name in frozen else RULE) for tensor in record.tensors):
        yield "a tensor was neither trained nor frozen as its recipe says"


def _faults_of_keeping(recipe: dict[str, Any], curve: TrainingCurve) -> Iterator[str]:
    """The card says which step was kept, and why."""
    best = curve.validation and curve.validation.best
    if bool(recipe["validate_every"]) != bool(best) or recipe.get("keep") not in ("last", "best"):
        yield "it says neither when it was validated nor what it kept"
    elif curve.kept != (best.step if best and recipe["keep"] == "best" else recipe["steps"]):
        yield "it did not keep the step that it says"


def _faults_of_training(method: TrainingRecord, tasks: int) -> Iterator[str]:
    if (method.name, method.optimizer, method.schedule) != (
        "joint" if tasks > 1 else "individual",
        OPTIMIZER,
        "cosine",
    ):
        yield "it was trained in no known way"
    numbers = (*method.betas, method.epsilon)
    if not all(0 <= number <= 1 for number in numbers) or not 1 <= method.processes <= 1_000_000:
        yield "a number of its training is out of range"
    if not all(0 <= loss <= MOST for loss in (method.first_loss, method.last_loss)):
        yield "a loss is out of range"


def read_any(data: bytes, where: str) -> MergeRecord | FinetuneRecord:
    """The record of whatever hfcart made: a merge or a fine-tuning. Raises VerifyError if it is neither."""
    return read_finetune_record(data, where) if is_finetune_record(data) else read_record(data, where)


def commit_message(record: MergeRecord | FinetuneRecord) -> str:
    """The default message of a publishing commit."""
    if isinstance(record, MergeRecord):
        return f"Merge {len(record.sources)} CLIP vision towers with {record.method.name} (hfcart {__version__})"
    names = ", ".join(task.task for task in record.tasks[:3]) + (", …" if len(record.tasks) > 3 else "")
    return f"Fine-tune {one_line(record.sources[0].label, 120)} on {names} (hfcart {__version__})"
