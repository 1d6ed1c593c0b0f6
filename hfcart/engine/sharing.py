"""The loop over groups, shared among the processes of one launch: whoever is free takes the next group.

Which process does a group changes no bit of it, and what is added up is added in the groups' order. Nothing is read
ahead: nobody knows which group it will have next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from contextlib import suppress
from typing import TypeVar

import torch

from hfcart.clip.tensor_names import Group
from hfcart.engine.loop import Workers
from hfcart.errors import HfcartError
from hfcart.system.processes import Team, packed
from hfcart.system.shared_progress import SharedProgress, shared_label

Value = TypeVar("Value")
_ALL = -1  # the place of what was added up over many groups


class SharedWorkers(Workers):
    """The workers of this process, beside those of the others. Each process makes the same calls in the same order."""

    def __init__(self, own: Workers, team: Team) -> None:
        """Take the workers of this process."""
        super().__init__(own._pool, own.drive, own._number, own._reader, own._progress)
        self._team = team
        self._lock = threading.Lock()

    def each(self, label: str, groups: Sequence[Group], done: Sequence[Group], work: Callable[[Group], None]) -> None:
        """As `Workers` does. The first failure in the groups' order, whoever met it, is raised in every process."""
        size = self._reader.bytes_read
        self._progress.start(shared_label(label, self._team), sum(map(size, [*groups, *done])), "bytes")
        self._progress.advance(sum(map(size, done)))
        self._shared(groups, lambda _, group: work(group), None)
        self._progress.finish()

    def total(self, label: str, groups: Sequence[Group], measure: Callable[[Group], torch.Tensor]) -> torch.Tensor:
        """As `Workers` does, with the same bits; every process has the sum."""
        parts: dict[int, torch.Tensor] = {}

        def add(place: int, group: Group) -> None:
            part = measure(group)
            with self._lock:  # whole numbers have one sum in any order, and may be long histograms
                where = place if part.is_floating_point() else _ALL
                parts[where] = parts[where] + part if where in parts else part

        self._progress.start(shared_label(label, self._team), sum(map(self._reader.bytes_read, groups)), "bytes")
        every = self._shared(groups, add, parts)
        self._progress.finish()
        ordered = sorted(((place, part) for one in every for place, part in one.items()), key=lambda each: each[0])
        found = ordered[0][1]
        for _, part in ordered[1:]:
            found = found + part
        return found

    def _shared(self, groups: Sequence[Group], work: Callable[[int, Group], None], value: Value) -> list[Value]:
        """Do, together with the others, every group once. Returns the value of each process, as it is in the end."""
        team, stage = self._team, self._team.stage()
        failed: list[tuple[int, BaseException, OSError | None]] = []
        told = SharedProgress(self._progress, team, stage)

        def take() -> None:
            while (place := team.take(stage)) < len(groups):
                try:
                    work(place, groups[place])
                except Exception as error:
                    cause = error.__cause__  # which is not sent with it
                    failed.append((place, packed(error, team.who), cause if isinstance(cause, OSError) else None))
                    with suppress(HfcartError):  # the failure is what counts
                        team.stop(stage)
                else:
                    told.advance(self._reader.bytes_read(groups[place]))

        try:
            jobs = [self._pool.submit(take) for _ in range(self._number)]
            while wait(jobs, timeout=1.0).not_done:
                told.look()
            for job in jobs:
                job.result()
        except BaseException:
            with suppress(HfcartError):
                team.stop(stage)
            raise
        every = team.exchange(f"{stage}/values", (failed, value), lambda: told.advance(0))
        told.advance(0)
        if failures := [each for theirs, _ in every for each in theirs]:
            _, failure, cause = min(failures, key=lambda each: each[0])
            raise failure from cause
        return [each for _, each in every]
