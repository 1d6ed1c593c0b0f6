"""What a fine-tuning is asked to do, validated before anything is touched: the fields of `hfcart finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hfcart.errors import UsageError
from hfcart.names import dtype
from hfcart.quoting import plural
from hfcart.recipes.fields import Device, HubRepo, OutFolder, explain
from hfcart.records.check import MOST_LOOKS

# Ilharco et al. 2022 (arXiv 2212.04089) and their released code, which the papers' towers come from.
WARMUP = 500


class FinetuneRecipe(BaseModel):
    """What to fine-tune, on what and how. Field names are the long options of `hfcart finetune`.

    Attributes:
        base: the CLIP model, `user/name[@revision]` or a folder; all but its vision tower stays frozen.
        tasks: task ids, groups and paths of task cards; several train one tower jointly.
        lr: peak learning rate of AdamW.
        weight_decay: of every parameter, as published (biases and layer norms are not left out).
        warmup: steps of linear warm-up before the cosine; None for min(500, steps / 4).
        steps: optimiser steps.
        batch_size: images a step, over all processes.
        seed: of the order of the images.
        precision: of the forward pass; weights, gradients and optimiser are float32 always. `auto` is bfloat16
            where the device computes with it, else float32.
        max_grad_norm: gradients of a larger L2 norm are scaled down to it; 0 for no limit.
        save_every: steps between two checkpoints.
        validate_every: steps between two looks at the validation images; 0 for none; None for a fifth of the steps.
        freeze: parts of the tower that stay the base's: names of `hfcart.clip.tensor_groups.GROUPS`, or dotted names
            of modules.
        keep: the weights of the last step, or of the best validated one: highest mean accuracy, the first of equals.
        track: what the training is logged to, by accelerate's trackers; nothing by default.
        workers: threads that decode images; None for one a core, at most 8.

    Raises:
        pydantic.ValidationError: on construction; `make` turns it into a UsageError.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    base: str = Field(min_length=1)
    tasks: tuple[str, ...] = Field(min_length=1, strict=False)
    lr: float = Field(default=1e-5, gt=0, strict=False, allow_inf_nan=False)
    weight_decay: float = Field(default=0.1, ge=0, strict=False, allow_inf_nan=False)
    warmup: int | None = Field(default=None, ge=0)
    steps: int = Field(default=2000, ge=1, le=100_000_000)
    batch_size: int = Field(default=128, ge=1, le=1_000_000)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    max_grad_norm: float = Field(default=1.0, ge=0, strict=False, allow_inf_nan=False)
    save_every: int = Field(default=100, ge=1)
    validate_every: int | None = Field(default=None, ge=0)
    freeze: tuple[str, ...] = Field(default=(), strict=False)
    keep: Literal["last", "best"] = "last"
    track: tuple[Literal["trackio", "tensorboard", "wandb"], ...] = Field(default=(), strict=False)
    workers: int | None = Field(default=None, ge=1, le=256)
    device: Device = "auto"
    out: OutFolder | None = None
    overwrite: bool = False
    push_to: HubRepo | None = None
    private: bool = False
    create_pr: bool = False
    commit_message: str | None = None

    @field_validator("freeze", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        texts = (value,) if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            return value
        return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())

    @field_validator("precision", mode="before")
    @classmethod
    def _in_full(cls, value: object) -> object:
        return dtype(value)

    @model_validator(mode="after")
    def _fields_fit(self) -> FinetuneRecipe:
        if self.warmup is not None and self.warmup >= self.steps:
            raise ValueError(f"warmup {self.warmup} leaves nothing of {plural(self.steps, 'step')}: expected less")
        if self.keep == "best" and not self.validation_steps:
            raise ValueError("keep best needs validation: validate_every is 0, expected at least 1")
        if self.validation_steps and self.steps // self.validation_steps > MOST_LOOKS:
            raise ValueError(
                f"validate_every {self.validation_steps} would look {self.steps // self.validation_steps:,} times, "
                f"expected at most {MOST_LOOKS:,}"
            )
        if self.create_pr and self.push_to is None:
            raise ValueError("create_pr needs push_to")
        return self

    @property
    def warmup_steps(self) -> int:
        """`warmup`, or its default: 500 as published, and never more than a quarter of a short training."""
        return min(WARMUP, self.steps // 4) if self.warmup is None else self.warmup

    @property
    def validation_steps(self) -> int:
        """`validate_every`, or its default: five times in a training. 0 for never."""
        return -(-self.steps // 5) if self.validate_every is None else self.validate_every

    @property
    def folder(self) -> Path:
        """Where the output goes: `out`, else the name of the repo it is pushed to, else ./finetuned."""
        return Path(self.out or (self.push_to.split("/")[1] if self.push_to else "finetuned"))


def make(fields: dict[str, Any], where: str = "the command line") -> FinetuneRecipe:
    """Validate the fields of a fine-tuning. Raises UsageError that names every wrong one."""
    try:
        return FinetuneRecipe(**fields)
    except (ValidationError, TypeError) as error:
        raise UsageError(
            explain(error, where, FinetuneRecipe.model_fields), hint="`hfcart finetune --help` lists every field."
        ) from None
