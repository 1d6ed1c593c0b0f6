"""What a fine-tuning did: the FinetuneRecord that becomes its hfcart.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hfcart.records._format import RECORD_FORMAT, canonical_json
from hfcart.records._merge import TensorRecord
from hfcart.records._sources import Architecture, DatasetRecord, Environment, SourceRecord


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
        return canonical_json(self)
