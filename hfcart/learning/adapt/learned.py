"""What an adaptation learned, and how it is told: on the way, at the end, and on the record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hfcart.learning.adapt.masks import Masks
from hfcart.learning.adapt.objective import MeanPredictions
from hfcart.learning.adapt.parts import Adapted
from hfcart.learning.adapt.state import Coefficients
from hfcart.learning.adapt.work import Work
from hfcart.progress import Progress
from hfcart.quoting import quoted
from hfcart.records import AdaptationRecord, AdaptedTask
from hfcart.tasks.copies import copies

_LINES = 20  # lines of entropy that a whole adaptation prints


@dataclass(frozen=True)
class Learned:
    """What an adaptation learned.

    Attributes:
        coefficients: group's key -> one for each tower, in the plan's order.
        directions: matrix's key -> which of each tower's stay, likewise; None if they were not chosen.
        record: how they were learned.
        history: a row for each step: every task's entropy, then every tower's mean coefficient; then, if directions
            were chosen, every tower's share of them; then, if the tower was to be like the tasks' own ones, the share
            of each task's images of which both say the same.
        cards: copies of the tasks' cards, by their file.
    """

    coefficients: dict[str, tuple[float, ...]]
    directions: dict[str, tuple[str, ...]] | None
    record: AdaptationRecord
    history: list[list[float]]
    cards: dict[str, bytes]


def learned(
    work: Work,
    adapted: Sequence[Adapted],
    state: Coefficients,
    masks: Masks | None,
    predictions: MeanPredictions,
    processes: int,
) -> Learned:
    """The coefficients of these groups as they are now, and how they came about."""
    record = AdaptationRecord(
        name=work.adaptive.name,
        objective=work.objective,
        rank=work.rank,
        per=work.recipe.adapt_per,
        part=work.recipe.adapt_split,
        tasks=tuple(_task(number, work, state, predictions) for number in range(len(work.splits))),
        base=work.base.label,
        base_commit=work.base.source.commit,
        start=work.start,
        clamped=work.adaptive.clamped,
        steps=state.step,
        lr=work.setting("lr"),
        batch_size=work.recipe.batch_size,
        rounds=work.adaptive.rounds,
        seed=work.setting("seed"),
        precision=work.precision,
        processes=processes,
    )
    coefficients = dict(zip((each.group.key for each in adapted), map(tuple, state.final().T.tolist()), strict=True))
    chosen = [each.group.key for each in adapted if each.chosen]
    directions = dict(zip(chosen, masks.final(), strict=True)) if masks else None
    cards = copies((split.task, split.dataset) for split in work.splits)
    return Learned(coefficients, directions, record, state.history, cards)


def _task(number: int, work: Work, state: Coefficients, predictions: MeanPredictions) -> AdaptedTask:
    split, alike = work.splits[number], work.objective == "distill"

    def ends(column: int) -> tuple[float, float]:
        """Means of a column of the history, over its first steps and its last."""
        values, count = [row[column] for row in state.history], predictions.first
        return round(sum(values[:count]) / count, 6), round(sum(values[-count:]) / count, 6)

    first_share, last_share, _ = predictions.shares(number)
    first_entropy, last_entropy = ends(number)
    same = ends(number - len(work.splits)) if alike else (None, None)
    return AdaptedTask(
        task=split.task.id,
        title=split.task.title,
        dataset=split.dataset,
        images=len(split),
        undecodable=sum(task == number for task, _ in state.broken),
        card_sha256=split.task.sha256,
        first_entropy=first_entropy,
        last_entropy=last_entropy,
        first_share=round(first_share, 6),
        last_share=round(last_share, 6),
        own=work.own(number).label if alike else None,
        first_agreement=same[0],
        last_agreement=same[1],
    )


def report(work: Work, state: Coefficients, masks: Masks | None, progress: Progress) -> None:
    """Tell of the latest steps, now and then."""
    step, steps, tasks = state.step, work.setting("steps"), len(work.splits)
    every = math.ceil(steps / _LINES)
    if step % every == 0 or step == steps:
        rows = state.history[-every:]
        entropy = sum(sum(row[:tasks]) for row in rows) / (len(rows) * tasks)
        low, high = (float(f(state.values())) for f in (torch.min, torch.max))
        shares = masks.shares() if masks else []
        chosen = f", {min(shares):.0%} to {max(shares):.0%} of a tower's directions" if shares else ""
        progress.note(
            f"Step {step} of {steps}: entropy {entropy:.4f} nats, coefficients {low:.3f} to {high:.3f}{chosen}"
        )


def warn_of_collapse(work: Work, predictions: MeanPredictions, progress: Progress) -> None:
    """Say of each task whose images fall into far fewer classes than at the start."""
    for number, task in enumerate(split.task for split in work.splits):
        if predictions.collapsed(number):
            first, now, into = predictions.shares(number)
            other = "" if work.objective == "distill" else ", or --objective distill"
            progress.warn(
                f"{task.title}: the predictions collapse. {quoted(task.classnames[into], 80)} has {now:.0%} "
                f"of them, where the commonest had {first:.0%} before. Try a lower --lr or fewer --steps{other}."
            )
