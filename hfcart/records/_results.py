"""What an evaluation found: the EvalRecord that becomes results.json."""

from __future__ import annotations

from dataclasses import dataclass

from hfcart.records._format import RECORD_FORMAT, canonical_json
from hfcart.records._sources import Environment, ImagesRecord


@dataclass(frozen=True)
class ClassScore:
    """One class of a task: how many images of it were scored, how many of them were recognised."""

    name: str
    n: int
    correct: int


@dataclass(frozen=True)
class Reference:
    """Accuracy of another tower on the same task, to compare with.

    Attributes:
        tower: its label, `user/name` or a folder's base name.
        accuracy: in [0, 1].
        measured: True if this run measured it on the very same images, False if it is a published figure.
    """

    tower: str
    accuracy: float
    measured: bool


@dataclass(frozen=True)
class TaskResult:
    """Zero-shot accuracy of a tower on one task.

    Attributes:
        task: id of the task card.
        title: its title.
        dataset: what was read.
        part: `test`, `validation` (the seeded part of the train split) or `train`.
        rows: examples that this part holds.
        limit: how many of them were asked for (a seeded sample), None for all.
        seed: of the sample.
        undecodable: images that could not be decoded; they are not among `classes`.
        card_sha256: digest of the task card: prompts, class names, split.
        classes: one score a class, in label order; n and correct of the task are their sums.
        pretrained: accuracy of the base model, None where unknown.
        individual: accuracy of the tower fine-tuned on this task alone, None where unknown.
        average: accuracy of the plain average of the towers that were merged, None where unknown.
        adapter: accuracy of this tower with the task's own adapter, None where it has none.
    """

    task: str
    title: str
    dataset: ImagesRecord
    part: str
    rows: int
    limit: int | None
    seed: int
    undecodable: int
    card_sha256: str
    classes: tuple[ClassScore, ...]
    pretrained: Reference | None = None
    individual: Reference | None = None
    average: Reference | None = None
    adapter: Reference | None = None

    @property
    def n(self) -> int:
        """Images scored."""
        return sum(score.n for score in self.classes)

    @property
    def correct(self) -> int:
        """Images recognised."""
        return sum(score.correct for score in self.classes)

    @property
    def partial(self) -> bool:
        """Whether only a sample was scored."""
        return self.limit is not None and self.limit < self.rows


@dataclass(frozen=True)
class EarlierResults:
    """What results were measured with that an earlier run brought, where this is not what the last run used.

    Attributes:
        tasks: ids of the tasks.
        base: label of the CLIP model that gave the text tower and both projections.
        base_commit: its commit, None for a local folder.
        precision: `float32` or `bfloat16` (autocast).
        environment: versions and device.
    """

    tasks: tuple[str, ...]
    base: str
    base_commit: str | None
    precision: str
    environment: Environment


@dataclass(frozen=True)
class EvalRecord:
    """An evaluation; written as results.json.

    Attributes:
        tower: label of the tower evaluated.
        weights_sha256: digest of its weight files' digests in name order (as SourceRecord.sha256).
        base: label of the CLIP model that gave the text tower and both projections.
        base_commit: its commit, None for a local folder.
        precision: `float32` or `bfloat16` (autocast).
        results: one a task, in the order asked for.
        environment: versions and device.
        earlier: which results were measured with something else than the three fields above it say, and with what.
    """

    tower: str
    weights_sha256: str
    base: str
    base_commit: str | None
    precision: str
    results: tuple[TaskResult, ...]
    environment: Environment
    earlier: tuple[EarlierResults, ...] = ()
    format: int = RECORD_FORMAT

    def to_json(self) -> str:
        """Canonical JSON: same record, same bytes. Where nothing is of an earlier run, that field is left out."""
        return canonical_json(self, leave=() if self.earlier else ("earlier",))
