"""What a true results.json cannot say: everything in one that types alone do not rule out."""

from __future__ import annotations

from collections.abc import Iterator

from hfcart.quoting import plural
from hfcart.records import RECORD_FORMAT, EarlierResults, EvalRecord, Reference, TaskResult
from hfcart.records.check import (
    MAX_SAMPLE_SEED,
    MOST,
    PARTS,
    PRECISIONS,
    faults_of_dataset,
    faults_of_environment,
    is_commit,
    is_line,
    is_sha256,
    is_task_id,
    within,
)
from hfcart.tasks.dataset_ref import MAX_CLASSES

MAX_TASKS = 200


def faults(record: EvalRecord) -> Iterator[str]:
    """What cannot be in a true evaluation, one phrase each; nothing for a good record."""
    if record.format != RECORD_FORMAT:
        yield f"it has format {record.format}"
    if not is_sha256(record.weights_sha256):
        yield "weights_sha256 is no sha256"
    if not 0 < len(record.tower) <= 300:
        yield "the name of its tower is empty or too long"
    yield from _faults_of_setting(record)
    for i, setting in enumerate(record.earlier):
        yield from within(f"earlier.{i}", _faults_of_setting(setting))
    others = [task for setting in record.earlier for task in setting.tasks]
    if not {result.task for result in record.results}.issuperset(others) or len(set(others)) < len(others):
        yield "what its earlier results are of is not clear"
    if not 1 <= len(record.results) <= MAX_TASKS:
        yield f"it has {plural(len(record.results), 'result')}, expected 1 to {MAX_TASKS}"
    if len({result.task for result in record.results}) < len(record.results):
        yield "two of its results are of one task"
    for i, result in enumerate(record.results):
        yield from within(f"results.{i}", _faults_of(result))


def _faults_of_setting(setting: EvalRecord | EarlierResults) -> Iterator[str]:
    if setting.base_commit is not None and not is_commit(setting.base_commit):
        yield "base_commit is no commit"
    if setting.precision not in PRECISIONS:
        yield "its precision is neither float32 nor bfloat16"
    if not 0 < len(setting.base) <= 300:
        yield "the name of its base is empty or too long"
    yield from within("environment", faults_of_environment(setting.environment))


def _faults_of(result: TaskResult) -> Iterator[str]:
    if not is_task_id(result.task):
        yield "its task has no proper name"
    if not is_line(result.title) or not all(is_line(score.name) for score in result.classes):
        yield "a title or a class name is not one line of text"
    if not 1 <= len(result.classes) <= MAX_CLASSES:
        yield f"it has {plural(len(result.classes), 'class', 'classes')}"
    if not is_sha256(result.card_sha256):
        yield "card_sha256 is no sha256"
    yield from faults_of_dataset(result.dataset)
    if result.part not in PARTS:
        yield "its part is none of test, validation and train"
    counts = [result.rows, result.undecodable, *(n for score in result.classes for n in (score.n, score.correct))]
    if not all(0 <= count <= MOST for count in counts) or not 0 <= result.seed < MAX_SAMPLE_SEED:
        yield "a count is out of range"
    if any(score.correct > score.n for score in result.classes):
        yield "more images of a class were recognised than there were"
    if result.limit is not None and result.limit < 1:
        yield "its limit is below 1"
    asked = result.rows if result.limit is None else min(result.limit, result.rows)
    if result.n + result.undecodable != asked:
        yield f"{plural(result.n, 'image')} scored and {result.undecodable} undecodable do not make {asked}"
    if result.n == 0:
        yield "not one of its images was scored"
    for reference in (result.pretrained, result.individual, result.average, result.adapter):
        if reference is not None and not _is_possible(reference):
            yield "a reference is no accuracy of a named tower"


def _is_possible(reference: Reference) -> bool:
    return 0 <= reference.accuracy <= 1 and 0 < len(reference.tower) <= 300
