"""How a parameter was chosen on labelled validation images."""

from __future__ import annotations

from dataclasses import dataclass

from hfcart.records._sources import ImagesRecord


@dataclass(frozen=True)
class Selected:
    """What was chosen for one source.

    Attributes:
        source: label of the source.
        task: id of the card of the task that it was fine-tuned on.
        title: its name for people.
        dataset: what was read, pinned.
        images: how many images were scored.
        undecodable: images of the part that could not be decoded; not among `images`.
        card_sha256: digest of the task card.
        correct: how many of the images were recognised with each candidate.
        value: the candidate that won.
    """

    source: str
    task: str
    title: str
    dataset: ImagesRecord
    images: int
    undecodable: int
    card_sha256: str
    correct: tuple[int, ...]
    value: float


@dataclass(frozen=True)
class SelectionRecord:
    """How a parameter of a merge was chosen; labels decided.

    Attributes:
        parameter: its name.
        candidates: the values tried, ascending.
        formula: LaTeX of what was scored.
        part: which images: `validation`.
        base: label of the CLIP model behind the heads.
        base_commit: its commit, None for a local one.
        precision: of the forward pass.
        sources: one for each source, in their order.
    """

    parameter: str
    candidates: tuple[float, ...]
    formula: str
    part: str
    base: str
    base_commit: str | None
    precision: str
    sources: tuple[Selected, ...]
