"""What a fine-tuning did: the FinetuneRecord that becomes its hfcart.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hfcart.records._format import RECORD_FORMAT, canonical_json
from hfcart.records._merge import TensorRecord
from hfcart.records._sources import Architecture, Environment, ImagesRecord, SourceRecord


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
    dataset: ImagesRecord
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
class Look:
    """One look at the validation images.

    Attributes:
        step: after how many steps; 0 is the base's own tower.
        correct: images that were put into their class, one number a task.
    """

    step: int
    correct: tuple[int, ...]


@dataclass(frozen=True)
class Validation:
    """How a tower in training did on images that it does not learn from.

    Attributes:
        images: how many of them could be decoded, one number a task.
        looks: by step; the first is before the training.
    """

    images: tuple[int, ...]
    looks: tuple[Look, ...]

    def accuracy(self, look: Look) -> float:
        """Mean over the tasks of the accuracy in [0, 1], each task counting once."""
        return sum(c / n for c, n in zip(look.correct, self.images, strict=True)) / len(self.images)

    @property
    def best(self) -> Look | None:
        """The look with the highest mean accuracy after a step of training, the first of equals; None without one."""
        return max((look for look in self.looks if look.step), key=self.accuracy, default=None)

    def at(self, step: int) -> Look | None:
        """The look after so many steps, if there was one."""
        return next((look for look in self.looks if look.step == step), None)


@dataclass(frozen=True)
class TrainingCurve:
    """How a training went: what its figure is drawn from.

    Attributes:
        steps: the last step of each stretch that a loss is the mean of, ascending; the last is that of the training.
        losses: mean training loss of each stretch, rounded to 6 decimals.
        kept: the step whose weights were written.
        validation: what was seen on the validation images; None if nobody looked.
    """

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    kept: int
    validation: Validation | None


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
        tensors: one record per tensor, in output order; their rule is `fine-tuned` or `frozen`.
        environment: versions and device.
        files: sha256 of every file of the folder but hfcart.json itself, README.md, figures and results.
        curve: loss and validation accuracy over the steps; None in records of before there was one.
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
    curve: TrainingCurve | None = None
    kind: str = "finetune"
    format: int = RECORD_FORMAT

    def to_json(self) -> str:
        """Canonical JSON: same record, same bytes."""
        return canonical_json(self, leave=() if self.curve else ("curve",))
