"""The options of each function, for type checkers. Made from the commands' declarations by `make docs`.

What a package's method takes in addition is no part of them; when it is called, it is known.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, TypedDict

StrPath = str | os.PathLike[str]
Names = StrPath | Sequence[StrPath]  # a text may hold several, with commas


class MergeOptions(TypedDict, total=False):
    """Of `hfcart.merge`."""

    method: str | None
    rank: float | str | None
    scale: float | None
    base: StrPath | None
    out: StrPath | None
    push_to: str | None
    sweep: StrPath | None
    recipe: StrPath | None
    lines: float | None
    svc: float | None
    qkv: Literal["split", "fused"] | None
    with_projection: bool
    allow_distant: bool
    matrices: Literal["blocks", "all-2d"] | None
    full_clip: bool
    activation: str | None
    tasks: Names | None
    adapt: Names | None
    adapt_split: Literal["train", "validation", "test"] | None
    objective: Literal["auto", "entropy", "infomax", "distill"] | None
    adapt_ranks: float | str | None
    adapt_tensors: Literal["auto", "matrices", "all"] | None
    adapt_per: Literal["tensor", "task"] | None
    batch_size: int | None
    precision: Literal["auto", "float32", "bfloat16"] | None
    adapters: float | str | None
    adapters_carry: Literal["all", "matrices"] | None
    dtype: Literal["float32", "float16", "bfloat16"] | None
    max_shard_size: str | None
    format: str | None
    overwrite: bool
    eval: Names | None
    private: bool
    create_pr: bool
    commit_message: str | None
    device: str | None
    workers: int | None
    stream: bool
    steps: int | None
    lr: float | None
    seed: int | None
    weights: Sequence[float] | None
    density: float | None
    beta: float | None
    gamma: float | None
    threshold: float | Sequence[float] | None
    agree: int | None
    epsilon: float | None
    trim: Literal["global", "tensor"] | None
    combine: Literal["mean", "sum"] | None
    kept: float | None
    common: float | None
    examples: int | None
    floor: float | None
    off_diagonal: float | None


class EvaluateOptions(TypedDict, total=False):
    """Of `hfcart.evaluate`."""

    base: StrPath | None
    out: StrPath | None
    push: bool
    overwrite: bool
    create_pr: bool
    commit_message: str | None
    part: Literal["test", "validation", "train"] | None
    limit: int | None
    seed: int | None
    streaming: bool
    references: Literal["none", "published", "measured"] | None
    adapters: bool
    device: str | None
    precision: Literal["auto", "float32", "bfloat16"] | None
    batch_size: int | None
    workers: int | None


class SweepOptions(TypedDict, total=False):
    """Of `hfcart.sweep`."""

    method: str | None
    rank: str | Sequence[float] | None
    scale: str | Sequence[float] | None
    base: StrPath | None
    out: StrPath | None
    reverse: bool
    adapters: bool
    adapters_carry: Literal["all", "matrices"] | None
    qkv: Literal["split", "fused"] | None
    overwrite: bool
    part: Literal["validation", "test", "train"] | None
    limit: int | None
    streaming: bool
    device: str | None
    precision: Literal["auto", "float32", "bfloat16"] | None
    workers: int | None
    threshold: float | Sequence[float] | None
    agree: int | None


class CompareOptions(TypedDict, total=False):
    """Of `hfcart.compare`."""

    methods: Names | None
    base: StrPath | None
    out: StrPath | None
    overwrite: bool
    references: Literal["measured", "none"] | None
    part: Literal["validation", "test", "train"] | None
    limit: int | None
    streaming: bool
    device: str | None
    precision: Literal["auto", "float32", "bfloat16"] | None
    workers: int | None


class FinetuneOptions(TypedDict, total=False):
    """Of `hfcart.finetune`."""

    out: StrPath | None
    push_to: str | None
    lr: float | None
    weight_decay: float | None
    warmup: int | None
    steps: int | None
    batch_size: int | None
    seed: int | None
    precision: Literal["auto", "float32", "bfloat16"] | None
    max_grad_norm: float | None
    freeze: str | None
    validate_every: int | None
    keep: Literal["last", "best"] | None
    overwrite: bool
    save_every: int | None
    track: Literal["trackio", "tensorboard", "wandb"] | None
    private: bool
    create_pr: bool
    commit_message: str | None
    device: str | None
    workers: int | None


class PushOptions(TypedDict, total=False):
    """Of `hfcart.push`."""

    overwrite: bool
    private: bool
    create_pr: bool
    commit_message: str | None


class VerifyOptions(TypedDict, total=False):
    """Of `hfcart.verify`."""

    device: str | None
    stream: bool
