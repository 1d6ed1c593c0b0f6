"""The frozen records that travel between the floors, and the MergeRecord that is written as hfcart.json.

Nothing here computes, reads or talks to anything: plain data, plain types, no dates, no paths of the
machine that made it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

RECORD_FORMAT = 1


@dataclass(frozen=True)
class CardFacts:
    """What a repo's model card says of itself: untrusted text, never more than these fields.

    `licenses` keeps the Hub's identifiers in lower case; None or () where the card is silent.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    datasets: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileRecord:
    """One weight file of a source: its name inside the source, bytes, and sha256 (64 hex digits)."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class SourceRecord:
    """One source, pinned: a Hub repo at a commit, or a local folder known by its base name and content.

    Attributes:
        label: `user/name` for a Hub repo, the folder's base name for a local one. Used in every message.
        repo: the Hub id, None for a local folder.
        revision: what the user asked for (branch, tag, sha, refs/pr/N), None if nothing was asked.
        commit: 40 hex digits, None for a local folder.
        sha256: digest of the weight files' digests in name order; sets the canonical order of sources.
        files: the weight files read.
        facts: what its card says.
    """

    label: str
    repo: str | None
    revision: str | None
    commit: str | None
    sha256: str
    files: tuple[FileRecord, ...]
    facts: CardFacts = CardFacts()


@dataclass(frozen=True)
class Architecture:
    """Everything that decides the function a CLIP vision tower computes, shapes included."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_channels: int
    image_size: int
    patch_size: int
    hidden_act: str
    layer_norm_eps: float
    projection_dim: int


@dataclass(frozen=True)
class TensorRecord:
    """What happened to one output tensor.

    Attributes:
        name: `vision_model.`-prefixed name (or `visual_projection.weight`).
        shape: its shape.
        dtype: safetensors dtype written: F32, F16 or BF16.
        rule: what was applied: the method's name for the matrices it applies to, else the rule for the rest.
        rank: the k kept, None where no low-rank approximation was made.
        full_rank: min(m, n) of the matrix (or fused matrix) decomposed, None where none was.
        energy: share of the squared Frobenius norm kept, mean over tasks, in [0, 1]; None where no SVD.
        fallback: True if the solver did not converge and float64 LAPACK took over.
        sha256: digest of the tensor's bytes as written.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    rule: str
    rank: int | None
    full_rank: int | None
    energy: float | None
    fallback: bool
    sha256: str


@dataclass(frozen=True)
class MethodRecord:
    """The method as used: enough for a card to state it without importing it.

    Attributes:
        name: registry name, e.g. `cart`.
        title: the paper's name for it, e.g. `CART (Centered Arithmetic with Rank-reduced Task vectors)`.
        formula: LaTeX of the rule for matrices.
        matrices: one sentence: what matrices get.
        others: one sentence: what every other tensor gets.
        parameters: every parameter and its value, e.g. {"rank": 0.08, "scale": 1.0}.
        arxiv: arXiv id, e.g. `2412.12153`.
        citation: BibTeX.
        uses_base: whether the base model enters the result.
    """

    name: str
    title: str
    formula: str
    matrices: str
    others: str
    parameters: dict[str, Any]
    arxiv: str
    citation: str
    uses_base: bool


@dataclass(frozen=True)
class Similarity:
    """Cosine similarity of the towers' task vectors over all merged tensors.

    Attributes:
        centred_on: "base" (τ_t = θ_t − θ_0) or "mean" (τ̄_t = θ_t − θ̄).
        cosine: T × T, in the order of MergeRecord.sources, rounded to 6 decimals.
        distance: T, ‖θ_t − ref‖ / ‖ref‖ of each tower from that centre, rounded to 6 significant digits.
    """

    centred_on: str
    cosine: tuple[tuple[float, ...], ...]
    distance: tuple[float, ...]


@dataclass(frozen=True)
class Environment:
    """Where the bytes were computed, as far as it can change them. No host names, no paths, no dates."""

    hfcart: str
    torch: str
    python: str
    platform: str
    device: str
    processor: str
    solver: str


@dataclass(frozen=True)
class DatasetRecord:
    """One split of a Hub dataset, pinned.

    Attributes:
        repo: `user/name`.
        config: the configuration, None for the dataset's only one.
        split: the Hub's name of the split that was read.
        commit: 40 hex digits.
    """

    repo: str
    config: str | None
    split: str
    commit: str


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
    """

    task: str
    title: str
    dataset: DatasetRecord
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
    """

    tower: str
    weights_sha256: str
    base: str
    base_commit: str | None
    precision: str
    results: tuple[TaskResult, ...]
    environment: Environment
    format: int = RECORD_FORMAT

    def to_json(self) -> str:
        """Canonical JSON: same record, same bytes."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True)
class SweepPoint:
    """One setting and what it reaches.

    Attributes:
        rank: as in the recipe; None for a method without one, and for the anchor alone.
        scale: λ; 0 for the anchor alone.
        correct: images recognised, one number a task.
    """

    rank: int | float | None
    scale: float
    correct: tuple[int, ...]


@dataclass(frozen=True)
class SweepRecord:
    """A sweep; written as sweep.json.

    Attributes:
        method: its registry name.
        anchor: what scale 0 gives: `average` or `base`.
        reverse: whether the lowest singular directions were kept.
        qkv: split or fused.
        sources: label and commit (None for a folder) of each tower.
        base: label of the CLIP model behind the heads.
        part: which images the points were measured on.
        tasks: their ids.
        images: how many of each could be decoded and scored.
        limit: how many of each were asked for (a seeded sample), None for all.
        ranks: as in the recipe, () for a method without one.
        scales: values of λ.
        points: the anchor alone, then rank by rank, scale by scale.
        best: index of the point with the highest mean accuracy; the first of equal ones.
        environment: versions and device.
    """

    method: str
    anchor: str
    reverse: bool
    qkv: str
    sources: tuple[tuple[str, str | None], ...]
    base: str
    part: str
    tasks: tuple[str, ...]
    images: tuple[int, ...]
    limit: int | None
    ranks: tuple[int | float, ...]
    scales: tuple[float, ...]
    points: tuple[SweepPoint, ...]
    best: int
    environment: Environment
    format: int = 1

    def rows(self) -> list[tuple[SweepPoint, ...]]:
        """The grid: a row for each rank (one row for a method without), a point for each scale.

        By place, never by value: k = 1 and full rank, 1 and 1.0, are equal numbers.
        """
        wide = len(self.scales)
        return [self.points[start : start + wide] for start in range(1, len(self.points), wide)]

    def accuracy(self, point: SweepPoint) -> float:
        """Mean over tasks, in [0, 1]."""
        return sum(right / n for right, n in zip(point.correct, self.images, strict=True)) / len(self.images)

    def to_json(self) -> str:
        """Canonical JSON: same record, same bytes."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True)
class CompareRow:
    """One line of a comparison.

    Attributes:
        name: a method's registry name, or `pretrained` or `individual` (each task by the tower fine-tuned on it).
        needs: what the method needs; "" for the other two.
        parameters: every parameter that has a value, and the value.
        correct: images recognised, one number a task; None for a task it was not measured on.
        seconds: wall time of the merge in a process of its own; None for what is no merge.
        peak: bytes of memory that this process took at its peak.
        sha256: digest of the merged weights, as SourceRecord.sha256.
        error: why there is no result; None if there is one.
    """

    name: str
    needs: str
    parameters: dict[str, Any]
    correct: tuple[int | None, ...]
    seconds: float | None = None
    peak: int | None = None
    sha256: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class CompareRecord:
    """A comparison of methods; written as compare.json.

    Attributes:
        sources: label and commit (None for a folder) of each tower.
        base: label of the CLIP model behind the heads, which is also the base of the methods that need one.
        base_commit: its commit, None for a local folder.
        part: which images it was measured on.
        limit: how many images of each task were asked for, None for all.
        tasks: id and title of each.
        images: how many of each could be decoded and scored.
        precision: `float32` or `bfloat16` (autocast).
        rows: what was measured beside the merges first, then the methods in the order asked for.
        environment: versions and device.
    """

    sources: tuple[tuple[str, str | None], ...]
    base: str
    base_commit: str | None
    part: str
    limit: int | None
    tasks: tuple[tuple[str, str], ...]
    images: tuple[int, ...]
    precision: str
    rows: tuple[CompareRow, ...]
    environment: Environment
    format: int = 1

    def accuracies(self, row: CompareRow) -> tuple[float | None, ...]:
        """In [0, 1], one a task; None where nothing was measured."""
        pairs = zip(row.correct, self.images, strict=True)
        return tuple(right / n if right is not None and n else None for right, n in pairs)

    def average(self, row: CompareRow) -> float | None:
        """Mean over the tasks, in [0, 1]; None unless every task was measured: another mean would be no comparison."""
        known = [value for value in self.accuracies(row) if value is not None]
        return sum(known) / len(known) if len(known) == len(self.tasks) else None

    def normalised(self, row: CompareRow) -> float | None:
        """Mean over tasks of accuracy by the individual tower's; None where one of either is not known."""
        individual = next((self.accuracies(other) for other in self.rows if other.name == "individual"), ())
        ratios = [a / b for a, b in zip(self.accuracies(row), individual, strict=False) if a is not None and b]
        return sum(ratios) / len(ratios) if len(ratios) == len(self.tasks) else None

    @property
    def best(self) -> CompareRow | None:
        """The merge with the highest average; the first of equal ones."""
        merges = [row for row in self.rows if row.seconds is not None and self.average(row) is not None]
        return max(merges, key=lambda row: self.average(row) or 0.0, default=None)

    def to_json(self) -> str:
        """Canonical JSON: same record, same bytes."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True)
class MergeRecord:
    """Everything a stranger needs to trust and repeat a merge; written as hfcart.json.

    Attributes:
        recipe: the recipe as it can be run again: pinned sources, method, parameters, dtype, shards
            (exactly what recipe.yaml holds).
        method: the method as used.
        sources: in canonical order (by content).
        base: the base model if the method needs one or one was given (method.uses_base tells whether it
            enters the weights), else None.
        architecture: shared by all sources.
        model_class: class that loads the output: CLIPVisionModel or CLIPVisionModelWithProjection.
        parameters: number of parameters written.
        dtype: torch name of the output dtype: float32, float16 or bfloat16.
        tensors: one record per output tensor, in output order.
        similarity: of the task vectors; None for one source.
        environment: versions and device.
        files: sha256 of every file of the folder but hfcart.json itself, README.md, figures and results.
    """

    recipe: dict[str, Any]
    method: MethodRecord
    sources: tuple[SourceRecord, ...]
    base: SourceRecord | None
    architecture: Architecture
    model_class: str
    parameters: int
    dtype: str
    tensors: tuple[TensorRecord, ...]
    similarity: Similarity | None
    environment: Environment
    files: dict[str, str]
    format: int = RECORD_FORMAT

    def to_json(self) -> str:
        """Canonical JSON: same record, same bytes."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True)
class TrainedTask:
    """One task that a tower was fine-tuned on.

    Attributes:
        task: id of the task card.
        title: its title.
        dataset: what was read.
        images: training images of the task.
        undecodable: how many of those met could not be decoded; nothing was learned from them.
        card_sha256: digest of the task card: prompts, class names, split.
    """

    task: str
    title: str
    dataset: DatasetRecord
    images: int
    undecodable: int
    card_sha256: str


@dataclass(frozen=True)
class TrainingRecord:
    """How a tower was fine-tuned, beyond the numbers in the recipe.

    Attributes:
        name: `individual` for one task, `joint` for several.
        optimizer: `AdamW`.
        betas: its moments' decay rates.
        epsilon: added to the root of its second moment.
        schedule: `cosine`, after a linear warm-up.
        processes: how many shared each batch.
        first_loss: mean training loss of the first tenth of the steps (at most 50), rounded to 6 decimals.
        last_loss: of the last.
    """

    name: str
    optimizer: str
    betas: tuple[float, float]
    epsilon: float
    schedule: str
    processes: int
    first_loss: float
    last_loss: float


@dataclass(frozen=True)
class FinetuneRecord:
    """Everything a stranger needs to trust and repeat a fine-tuning; written as hfcart.json.

    Attributes:
        recipe: base (pinned), task ids and every number of the training, as `hfcart finetune` takes them.
        method: how it was trained.
        sources: the base model, alone.
        tasks: in the order given.
        architecture: of the tower.
        model_class: class that loads the output: CLIPVisionModel.
        parameters: number of parameters written.
        dtype: torch name of their dtype: float32.
        tensors: one record per tensor, in output order.
        environment: versions and device.
        files: sha256 of every file of the folder but hfcart.json itself, README.md, figures and results.
    """

    recipe: dict[str, Any]
    method: TrainingRecord
    sources: tuple[SourceRecord, ...]
    tasks: tuple[TrainedTask, ...]
    architecture: Architecture
    model_class: str
    parameters: int
    dtype: str
    tensors: tuple[TensorRecord, ...]
    environment: Environment
    files: dict[str, str]
    kind: str = "finetune"
    format: int = RECORD_FORMAT

    def to_json(self) -> str:
        """Canonical JSON: same record, same bytes."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
