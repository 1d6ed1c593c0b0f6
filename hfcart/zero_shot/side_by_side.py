"""Towers loaded and measured side by side on several tasks: images are decoded once for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from typing import Any

import torch

from hfcart.errors import NonFiniteError
from hfcart.progress import Progress
from hfcart.records import Environment
from hfcart.sources.towers import Ref
from hfcart.system.device import Machine
from hfcart.system.environment import machine_here
from hfcart.system.processes import Team
from hfcart.tasks.data import Split
from hfcart.zero_shot.counting import Counted, count
from hfcart.zero_shot.loaded_tower import load_tower
from hfcart.zero_shot.scoring import Scorer


@dataclass(frozen=True)
class SideBySide:
    """What is measured, on what and how; the same in every process that takes part.

    Attributes:
        towers: what opens each tower that is measured on every task, by its name.
        own: for each task, what opens those that are measured on it alone, by name.
        splits: of the tasks, opened.
        heads: of the tasks.
        projection: the base's visual projection.
        preprocessor: of a tower that states none.
        machine: where and how it is computed; another process has its own device.
    """

    towers: Mapping[str, Ref]
    own: Sequence[Mapping[str, Ref]]
    splits: Sequence[Split]
    heads: Sequence[torch.Tensor]
    projection: torch.Tensor
    preprocessor: dict[str, Any]
    machine: Machine

    def measured(self, progress: Progress, team: Team | None = None) -> Iterator[tuple[list[str], Counted | None]]:
        """For each task in turn: the names of its towers, and what they make of its images; None if it has no tower.

        Args:
            progress: told the images done; the caller starts and finishes the stage.
            team: the processes that share the images, each of which calls this.

        Raises:
            NonFiniteError: one of the towers gives NaN or Inf.
            HfcartError: a tower or a dataset is not what it should be.
        """
        kept = {name: self._scorer(name, ref) for name, ref in self.towers.items()}
        for split, head, own in zip(self.splits, self.heads, self.own, strict=True):
            names = [*kept, *own]
            if not names:
                yield names, None
                continue
            # Nothing here holds a task's own tower: it is gone before the next one's is loaded.
            found = count(
                split, [*kept.values(), *starmap(self._scorer, own.items())], head, self.machine, progress, team
            )
            yield names, found

    def _scorer(self, name: str, ref: Ref) -> Scorer:
        tower = load_tower(ref, Progress())
        fields = tower.preprocessor or self.preprocessor
        return Scorer(tower.model, self.projection, fields, self.machine, label=f"The tower {name}")


def measure_beside(team: Team, work: SideBySide, device: str, environment: Environment) -> None:
    """Take part in what another process measures. Raises as it does, but for a tower's NaN: it decides what follows."""
    machine = machine_here(team, work.machine, device, environment)
    try:
        for _ in replace(work, machine=machine).measured(Progress(), team):
            pass
    except NonFiniteError:
        return
