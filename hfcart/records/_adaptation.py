"""How coefficients were learned on unlabelled images."""

from __future__ import annotations

from dataclasses import dataclass

from hfcart.records._sources import ImagesRecord


@dataclass(frozen=True)
class AdaptedTask:
    """One task whose images coefficients were learned on.

    Attributes:
        task: id of its card.
        title: its name for people.
        dataset: what was read, pinned.
        images: how many the part has that they were drawn from.
        undecodable: of those that were drawn, how many could not be decoded.
        card_sha256: digest of the task card.
        first_entropy: mean entropy of the predictions in nats, over the first tenth of the steps (50 at most).
        last_entropy: the same over the last.
        first_share: mean prediction, over those first steps, of the class that has most of it, in (0, 1]; None in
            records of earlier versions.
        last_share: the same over the latest twenty steps or so.
        own: label of the task's own tower, if the merged one was to be like it; else None.
        first_agreement: share of the images, over those first steps, of which the task's own tower says the same; None
            where it was not asked.
        last_agreement: the same over the last.
    """

    task: str
    title: str
    dataset: ImagesRecord
    images: int
    undecodable: int
    card_sha256: str
    first_entropy: float
    last_entropy: float
    first_share: float | None = None
    last_share: float | None = None
    own: str | None = None
    first_agreement: float | None = None
    last_agreement: float | None = None


@dataclass(frozen=True)
class AdaptationRecord:
    """How the coefficients of a merge were learned; no label had a part in it.

    Attributes:
        name: `cart++`, `adamerging`, `adamerging++`, `adarank` or `adarank_ta`.
        per: "tensor" for a coefficient for each tower and tensor, "task" for one for each tower.
        part: which images: train, validation or test.
        tasks: the tasks.
        base: label of the CLIP model behind the heads.
        base_commit: its commit, None for a local one.
        start: what every coefficient began at.
        clamped: whether they act within [0, 1] only.
        steps: of Adam.
        lr: its learning rate.
        batch_size: images in a batch.
        rounds: batches of each task a step.
        seed: of the order of the images.
        precision: of the forward pass.
        processes: how many shared the batches.
        objective: what was minimised: entropy, infomax or distill; None in records of earlier versions, entropy.
        rank: where singular directions were chosen too, how many of each matrix were on at the start, as a share or a
            number; else None.
    """

    name: str
    per: str
    part: str
    tasks: tuple[AdaptedTask, ...]
    base: str
    base_commit: str | None
    start: float
    clamped: bool
    steps: int
    lr: float
    batch_size: int
    rounds: int
    seed: int
    precision: str
    processes: int
    objective: str | None = None
    rank: int | float | None = None
