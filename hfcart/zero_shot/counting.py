"""How many images of a task each of several towers recognises, and which: in one process, or shared among several.

Whole numbers and single bits are put together, so that several processes have what one has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float

from hfcart.errors import NonFiniteError
from hfcart.progress import Progress
from hfcart.system.device import Machine
from hfcart.system.processes import Team, packed
from hfcart.system.shared_progress import SharedProgress
from hfcart.tasks.data import Split
from hfcart.zero_shot.outcomes import Outcomes, put_together
from hfcart.zero_shot.scoring import Scorer, nothing_decoded, score


@dataclass(frozen=True)
class Counted:
    """What several towers make of the images of one task.

    Attributes:
        correct: how many images each tower recognises.
        right: which, as `Outcomes` packs them.
        images: how many were scored.
        undecodable: how many could not be decoded.
    """

    correct: list[int]
    right: list[str]
    images: int
    undecodable: int


def count(
    split: Split,
    scorers: Sequence[Scorer],
    head: Float[torch.Tensor, "classes dim"],
    machine: Machine,
    progress: Progress,
    team: Team | None = None,
) -> Counted:
    """Score all images of a split with several towers at once. Each is decoded one time, in one of the processes.

    Args:
        split: opened.
        scorers: the towers; at least one.
        head: zero-shot head of the split's task, unit rows.
        machine: whose batch size and worker threads are used; every process has the same batch size.
        progress: told the images done, of all processes together; the caller starts and finishes the stage.
        team: the processes that share the images: each of them calls this, with the same towers, and gets the same.

    Raises:
        NonFiniteError: a tower gives NaN or Inf, in whichever process; raised in all.
        SourceError: not one image can be decoded, or reading the split failed.
        HubError: reading it failed.
    """
    if team is None:
        counted, _ = _share(split, scorers, head, machine, progress, None)
    else:
        counted = _shared(split, scorers, head, machine, progress, team)
    if not counted.images:
        raise nothing_decoded(split, counted.undecodable)
    return counted


def _share(
    split: Split, scorers: Sequence[Scorer], head: torch.Tensor, machine: Machine, told: Progress, team: Team | None
) -> tuple[Counted, set[int]]:
    """What this process's share of the images gives, and the places of those that could not be decoded."""
    outcomes = Outcomes(len(split), len(scorers))
    found, undecodable = score(
        split,
        scorers,
        head,
        machine,
        shard=team.place if team else 0,
        shards=team.number if team else 1,
        outcomes=outcomes,
        look=told.look if isinstance(told, SharedProgress) else lambda: None,
        progress=told,
    )
    correct = [int(confusion.diagonal().sum()) for confusion in found]
    return Counted(correct, outcomes.packed(), int(found[0].sum()), undecodable), split.broken


def _shared(
    split: Split, scorers: Sequence[Scorer], head: torch.Tensor, machine: Machine, progress: Progress, team: Team
) -> Counted:
    stage = team.stage()
    told = SharedProgress(progress, team, stage)
    mine: tuple[Counted, set[int]] | BaseException
    try:
        mine = _share(split, scorers, head, machine, told, team)
    except NonFiniteError as error:  # the caller may go on without that tower
        mine = packed(error)
    every = team.exchange(f"{stage}/counts", mine, lambda: told.advance(0))
    told.advance(0)
    parts = []
    for theirs in every:
        if isinstance(theirs, BaseException):
            raise theirs
        parts.append(theirs[0])
        split.broken |= theirs[1]
    return Counted(
        correct=[sum(numbers) for numbers in zip(*(part.correct for part in parts), strict=True)],
        right=put_together([part.right for part in parts]),
        images=sum(part.images for part in parts),
        undecodable=sum(part.undecodable for part in parts),
    )
