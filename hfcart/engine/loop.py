"""The loop over groups: worker threads, each with one BLAS thread, in output order wherever order can be seen.

All arithmetic runs in worker threads, with one worker too: a matrix decomposed with two BLAS threads differs in its
last bits from one decomposed with one, and two threads fighting over two cores are slower than one.

With another device than the CPU the workers read and write, and one more thread does all that is done on the device:
`driving`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Thread, current_thread
from typing import ParamSpec, Protocol, TypeVar

import torch

from hfcart.clip.tensor_names import Group
from hfcart.engine.reading import GroupReader
from hfcart.progress import Progress
from hfcart.system.allocator import freed_blocks_kept
from hfcart.system.device import full_float32, one_blas_thread
from hfcart.system.threads import all_done

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Drive(Protocol):
    """Has a piece of work done by the thread that drives the device, and waits for it."""

    def __call__(
        self, work: Callable[Arguments, Result], /, *args: Arguments.args, **keywords: Arguments.kwargs
    ) -> Result:
        """What the work returns, or raises."""


class Workers:
    """A pool of worker threads for the groups of one piece of work; `workers` makes it."""

    def __init__(
        self, pool: ThreadPoolExecutor, drive: Drive, number: int, reader: GroupReader, progress: Progress
    ) -> None:
        """Take the pool.

        Args:
            pool: of one-thread workers.
            drive: what they call for work on the device.
            number: of them.
            reader: of the groups that they ask for.
            progress: told the bytes of sources done.
        """
        self.drive = drive
        self._pool, self._number, self._reader = pool, number, reader
        self._progress = progress

    def each(self, label: str, groups: Sequence[Group], done: Sequence[Group], work: Callable[[Group], None]) -> None:
        """Do every group once.

        Args:
            label: name of the stage.
            groups: what is to do.
            done: what an earlier run did already, for the progress.
            work: called in the workers. The first failure starts nothing more.
        """
        size = self._reader.bytes_read

        def one(group: Group) -> None:
            work(group)
            self._progress.advance(size(group))

        self._progress.start(label, sum(map(size, [*groups, *done])), "bytes")
        self._progress.advance(sum(map(size, done)))
        with self._reader.ahead(groups, self._number):
            _finish_all([self._pool.submit(one, group) for group in groups], self._pool)

    def total(self, label: str, groups: Sequence[Group], measure: Callable[[Group], torch.Tensor]) -> torch.Tensor:
        """The sum of a measure over groups, added in their order, so that it has the same bits for any workers."""
        size = self._reader.bytes_read
        self._progress.start(label, sum(map(size, groups)), "bytes")
        waiting: deque[tuple[Group, Future[torch.Tensor]]] = deque()
        parts: list[torch.Tensor] = []

        def take() -> None:
            group, job = waiting.popleft()
            parts[:] = [sum(parts, job.result())]
            self._progress.advance(size(group))

        with self._reader.ahead(groups, self._number):
            for group in groups:
                waiting.append((group, self._pool.submit(measure, group)))
                if len(waiting) > 2 * self._number:  # results wait for their turn: few of them, they may be histograms
                    take()
            while waiting:
                take()
        self._progress.finish()
        return parts[0]


@contextmanager
def workers(number: int, device: torch.device, reader: GroupReader, progress: Progress) -> Iterator[Workers]:
    """Worker threads for as long as this lasts; on leaving, what has begun is finished and the rest is dropped.

    Args:
        number: of them.
        device: where the algebra is done.
        reader: of the groups; temporaries of the size of the largest are handed back when they are freed.
        progress: told the bytes of sources done.
    """
    started: list[Thread] = []

    def first() -> None:
        started.append(current_thread())
        torch.set_num_threads(1)

    pool = ThreadPoolExecutor(number, "merge", initializer=first)
    with freed_blocks_kept(reader.largest_bytes), one_blas_thread(), full_float32(), driving(device) as drive:
        try:
            yield Workers(pool, drive, number, reader, progress)
        finally:  # the workers first: they wait for what drives the device
            pool.shutdown(wait=True, cancel_futures=True)
            for thread in started:  # the pool does not know of one at whose start Ctrl-C came
                thread.join()
            progress.finish()


@contextmanager
def driving(device: torch.device) -> Iterator[Drive]:
    """For as long as this lasts, what runs work on a device: on the CPU whoever calls it, else one thread for all.

    Several threads that launch many small kernels hold each other up: a hundred products took eight of them fourteen
    times as long as one. And torch loads its library of decompositions at the first call, which must not be made by two
    threads at once ("lazy wrapper should be called at most once").
    """
    if device.type == "cpu":
        yield lambda work, /, *args, **keywords: work(*args, **keywords)
        return
    # The interpreter runs on while the thread waits for the device, and the workers read and write.
    with ThreadPoolExecutor(1, "device", initializer=torch.set_num_threads, initargs=(1,)) as one:
        yield lambda work, /, *args, **keywords: one.submit(work, *args, **keywords).result()


def _finish_all(jobs: list[Future[None]], pool: ThreadPoolExecutor) -> None:
    if not all_done(jobs):
        pool.shutdown(wait=True, cancel_futures=True)
    for job in jobs:  # in output order: the same input fails with the same message, whoever was faster
        if not job.cancelled():
            job.result()
