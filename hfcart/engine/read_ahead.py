"""Groups read before a worker asks for them, in order, as far as one piece of memory goes.

Over a network a request must be under way while the workers compute, and a device's only worker would have to read
while the device waits. Files of this machine are else read by the workers themselves: there are several of them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch

from hfcart.clip.tensor_names import Group

if TYPE_CHECKING:
    from hfcart.engine.plan import Plan

READERS = 8
"""Threads that read: requests at once, as many as files are downloaded at once."""
AHEAD = 2
"""Groups of the largest size that are there beyond those at work: one for the next free worker, one coming in."""
_LINE = 16  # float32 numbers: what is given out begins at whole lines of the processor's cache, as torch's own memory


def groups_ahead(plan: Plan, workers: int, device: torch.device) -> int:
    """How many groups of the largest size there is memory for beyond those at work; 0 where workers read themselves.

    Args:
        plan: that is read.
        workers: threads that ask for groups.
        device: where the algebra is done.
    """
    if is_streamed(plan):
        return AHEAD
    return int(device.type != "cpu" and workers == 1)


def bytes_ahead(plan: Plan, workers: int, device: torch.device) -> int:
    """Bytes of this machine's memory that reading ahead takes beyond what the workers have, at the most."""
    largest = 4 * max(plan.group_elements(group) for group in plan.groups if not group.copied)
    each = 1 + 3 * any(tower.base for tower in plan.read)  # as stored; of an adapter the base's, and their sum
    readers = READERS * each if is_streamed(plan) else 0
    return largest * (groups_ahead(plan, workers, device) * len(plan.towers_and_base) + readers)


def is_streamed(plan: Plan) -> bool:
    """Whether anything is read by ranged requests."""
    return plan.recipe.stream and any(tower.in_ranges(name) for tower in plan.read for name in tower.weights)


def ending(plan: Plan) -> Callable[[threading.Event], None] | None:
    """What a thread calls that reads over a network, so that its requests end too."""
    if not is_streamed(plan):
        return None
    from hfcart.hub import end_with  # it imports the Hub's client

    return end_with


def whole_lines(count: int) -> int:
    """So many numbers, rounded up to whole lines of the cache."""
    return -(-count // _LINE) * _LINE


class Ring:
    """Places in one piece of memory, given out one behind the other.

    A place can be given out again once it, and all that was given out before it, has been given back.
    """

    def __init__(self, size: int) -> None:
        """All of it is free."""
        self._size = size
        self._places: deque[slice] = deque()
        self._given_back: list[slice] = []

    def take(self, count: int) -> slice | None:
        """A free place of that size, > 0; None as long as there is none."""
        start, end = 0, self._size
        if self._places:
            first, last = self._places[0].start, self._places[-1].stop
            if last <= first:  # the last given out is in front of the first
                start, end = last, first
            elif last + count <= self._size:
                start = last
            else:
                end = first
        if start + count > end:
            return None
        self._places.append(slice(start, start + count))
        return self._places[-1]

    def give_back(self, place: slice) -> None:
        """It is free from now on."""
        self._given_back.append(place)
        while self._places and self._places[0] in self._given_back:
            self._given_back.remove(self._places.popleft())


class ReadAhead:
    """Reads groups in their order, each as soon as there is a place for it. Use as a context manager.

    On leaving, what is being read ends at its next piece, and who waits for a group gets a CancelledError.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        count: Callable[[Group], int],
        parts: Callable[[Group, torch.Tensor], Sequence[Iterator[None]]],
        memory: torch.Tensor,
        until: Callable[[threading.Event], None] | None,
    ) -> None:
        """Read nothing yet.

        Args:
            groups: in the order in which they are going to be asked for, or nearly.
            count: of float32 numbers in a group.
            parts: what fills the memory of a group, a piece at a step; parts may run at the same time.
            memory: float32, flat; it holds the largest group and as many more as workers ask at once.
            until: called in each reading thread, if need be, with what is set when reading is to end.
        """
        self._left, self._count, self._parts, self._memory = deque(groups), count, parts, memory
        self._ring = Ring(len(memory))
        self._begun: dict[Group, tuple[slice, list[Future[None]]]] = {}
        self._changed = threading.Condition()
        self._stop = threading.Event()

        def first() -> None:
            torch.set_num_threads(1)
            if until is not None:
                until(self._stop)

        self._pool = ThreadPoolExecutor(READERS, "read", initializer=first)

    def __enter__(self) -> Self:
        """Begin."""
        with self._changed:
            self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End, whatever is left."""
        with self._changed:
            self._stop.set()
            self._changed.notify_all()
        self._pool.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def group(self, group: Group) -> Iterator[torch.Tensor]:
        """A group's memory, filled; it is another group's once this ends.

        Raises:
            concurrent.futures.CancelledError: reading has ended before.
            Whatever the first of its parts, in order, raises.
        """
        with self._changed:
            self._changed.wait_for(lambda: group in self._begun or self._stop.is_set())
            if self._stop.is_set():
                raise CancelledError
            place, jobs = self._begun.pop(group)
        try:
            errors = [_error(job) for job in jobs]  # of all: none writes there any more
            for error in errors:
                if error is not None:
                    raise error
            yield self._memory[place][: self._count(group)]
        finally:
            with self._changed:
                self._ring.give_back(place)
                self._begin()
                self._changed.notify_all()

    def _begin(self) -> None:
        """Begin to read the next groups, as far as there is room. The groups begun are the first of all, always."""
        while self._left and not self._stop.is_set():
            place = self._ring.take(whole_lines(self._count(self._left[0])))
            if place is None:
                return
            group = self._left.popleft()
            parts = self._parts(group, self._memory[place][: self._count(group)])
            self._begun[group] = place, [self._pool.submit(self._fill, part) for part in parts]

    def _fill(self, part: Iterator[None]) -> None:
        for _ in part:
            if self._stop.is_set():
                raise CancelledError


def _error(job: Future[None]) -> BaseException | None:
    """What a job has raised, once it has ended or will never begin."""
    try:
        return job.exception()
    except CancelledError as error:
        return error
