"""What a merge did: the MergeRecord that becomes hfcart.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hfcart.records._adaptation import AdaptationRecord
from hfcart.records._format import RECORD_FORMAT, canonical_json
from hfcart.records._search import Swept
from hfcart.records._selection import SelectionRecord
from hfcart.records._sources import Architecture, Environment, ImagesRecord, SourceRecord
from hfcart.records.adapters import AdapterRecord


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
        sha256: digest of the tensor's bytes as written (in OpenCLIP's form projections are written transposed).
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
        package: who brought the method, name and version; empty if it is hfcart's own.
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
    package: str = ""


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
class SourceData:
    """The images that a method looked at for one source.

    Attributes:
        source: label of the source.
        task: id of the task card.
        title: its title.
        dataset: what was read.
        part: which part of it: `train`.
        images: how many images were looked at.
        undecodable: images of the sample that could not be decoded; not among `images`.
        card_sha256: digest of the task card: prompts, class names, split.
        statistics: what was gathered: `fisher` or `gram`.
        sha256: digest of every value gathered.
    """

    source: str
    task: str
    title: str
    dataset: ImagesRecord
    part: str
    images: int
    undecodable: int
    card_sha256: str
    statistics: str
    sha256: str


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
        model_class: class that loads the output: CLIPVisionModel, CLIPVisionModelWithProjection or CLIPModel; what the
            recipe's `format` open_clip holds is a CLIPModel in OpenCLIP's form.
        parameters: number of parameters written.
        dtype: torch name of the output dtype: float32, float16 or bfloat16.
        tensors: one record per output tensor, in output order.
        similarity: of the task vectors; None for one source.
        environment: versions and device.
        files: sha256 of every file of the folder but hfcart.json itself, README.md, figures and results.
        adaptation: how the recipe's coefficients were learned; None if it has none, or they were given.
        data: the images that the method looked at, one entry a source in their order; () if it needs none.
        selection: how one of the recipe's parameters was chosen; None if none was, or it was given.
        swept: the sweep that rank and scale are the best of; None if they were given, or are the defaults.
        adapters: beside the tower, one for each source in their order; () if none were asked for.
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
    adaptation: AdaptationRecord | None = None
    data: tuple[SourceData, ...] = ()
    selection: SelectionRecord | None = None
    swept: Swept | None = None
    adapters: tuple[AdapterRecord, ...] = ()
    format: int = RECORD_FORMAT

    def to_json(self) -> str:
        """Canonical JSON: same record, same bytes."""
        return canonical_json(self)
