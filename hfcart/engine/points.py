"""What the points of a sweep reach: as many as fit side by side on every task, in one process or shared among several.

Several processes take the towers apart group by group, as they merge, and share the images of each task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hfcart.engine.grid import Grid, Setting, take_apart
from hfcart.engine.taking_part import shared_writer
from hfcart.progress import Progress, Within
from hfcart.records import Environment
from hfcart.system.device import Machine
from hfcart.system.environment import machine_here
from hfcart.system.journal import Line
from hfcart.system.processes import Team
from hfcart.system.tensor_files import TensorFiles
from hfcart.system.work_folder import SharedFolder
from hfcart.tasks.data import Split
from hfcart.zero_shot.counting import count
from hfcart.zero_shot.scoring import Scorer


@dataclass(frozen=True)
class Points:
    """What is measured, on what and how; the same in every process that takes part.

    Attributes:
        grid: whose points they are.
        todo: the points.
        at_once: how many towers are in memory side by side, at least 1.
        splits: of the tasks, opened.
        heads: of the tasks.
        projection: the base's visual projection.
        preprocessors: for each task, the image preprocessing of each point.
        machine: where and how it is computed; another process has its own device.
    """

    grid: Grid
    todo: Sequence[Setting]
    at_once: int
    splits: Sequence[Split]
    heads: Sequence[torch.Tensor]
    projection: torch.Tensor
    preprocessors: Sequence[Mapping[Setting, dict[str, Any]]]
    machine: Machine

    def measured(self, tensors: TensorFiles, progress: Progress, team: Team | None = None) -> Iterator[list[Line]]:
        """What the points reach, some at a time, a line each.

        A line has how many images of every task a point recognises (`correct`), which (`right`), and how many were
        scored (`images`).

        Args:
            tensors: the towers, taken apart.
            progress: told the images done, once for every tower; the caller starts and finishes the stage.
            team: the processes that share the images, each of which calls this.

        Raises:
            NonFiniteError: a tower gives NaN or Inf.
            HfcartError: a dataset is not what it should be.
        """
        for start in range(0, len(self.todo), self.at_once):
            yield self._measured(tensors, self.todo[start : start + self.at_once], progress, team)

    def _measured(
        self, tensors: TensorFiles, some: Sequence[Setting], progress: Progress, team: Team | None
    ) -> list[Line]:
        shared = self._scorers(tensors, some, 0) if self.grid.alike else []
        lines: list[Line] = [
            {"rank": index, "scale": scale, "correct": [], "images": [], "right": []} for index, scale in some
        ]
        told = _Times(progress, len(some))
        for task, (split, head) in enumerate(zip(self.splits, self.heads, strict=True)):
            # No name is kept of one task's towers: they are gone before the next one's are made.
            found = count(split, shared or self._scorers(tensors, some, task), head, self.machine, told, team)
            for line, correct, right in zip(lines, found.correct, found.right, strict=True):
                line["correct"].append(correct)
                line["images"].append(found.images)
                line["right"].append(right)
        return lines

    def _scorers(self, tensors: TensorFiles, some: Sequence[Setting], task: int) -> list[Scorer]:
        towers, fields = self.grid.towers(tensors, some, task, self.machine.device), self.preprocessors[task]
        return [
            Scorer(tower, self.projection, fields[point], self.machine, label=self.grid.name(point))
            for tower, point in zip(towers, some, strict=True)
        ]


class _Times(Within):
    """Counts an image once for every tower that it is scored with."""

    def __init__(self, outer: Progress, times: int) -> None:
        super().__init__(outer)
        self._times = times

    def advance(self, amount: int) -> None:
        super().advance(amount * self._times)


def take_apart_too(
    team: Team, grid: Grid, folder: SharedFolder, machine: Machine, device: str, environment: Environment,
    done: Mapping[str, Line], facts: dict[str, Any] | None,
) -> None:  # fmt: skip
    """Take apart what groups the other processes leave, into the files that the first has made.

    Args:
        team: of this process.
        grid: the first's.
        folder: its work folder.
        machine: of the first.
        device: what was asked for.
        environment: of the first.
        done: the groups that earlier runs have taken apart.
        facts: what they have measured of the whole towers.

    Raises:
        UsageError: another kind of machine.
        OutputError: another folder.
        HfcartError: as `take_apart`.
    """
    try:
        machine = machine_here(team, machine, device, environment)
        with shared_writer(team, grid.plan, folder, grid.layout(), done, facts) as writer:
            take_apart(grid, writer, machine, Progress(), team)
    finally:
        grid.plan.close()


def measure_too(team: Team, work: Points, path: Path, device: str, environment: Environment) -> None:
    """Take part in measuring the points that lie in the first process's work folder. Raises as `Points.measured`."""
    try:
        machine = machine_here(team, work.machine, device, environment)
        with TensorFiles(path, work.grid.layout(), made=True) as tensors:
            for _ in replace(work, machine=machine).measured(tensors, Progress(), team):
                pass
    finally:
        work.grid.plan.close()
