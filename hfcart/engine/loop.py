"""The loop over groups: worker threads, each with one BLAS thread, in output order wherever order can be seen.

All arithmetic runs in worker threads, with one worker too: a matrix decomposed with two BLAS threads differs in its
last bits from one decomposed with one, and two threads fighting over two cores are slower than one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import torch

from hfcart.clip.tensor_names import Group
from hfcart.progress import Progress
from hfcart.system.allocator import freed_blocks_go_back
from hfcart.system.device import one_blas_thread


class Workers:
    """A pool of worker threads for the groups of one piece of work; `workers` makes it."""

    def __init__(self, pool: ThreadPoolExecutor, number: int, progress: Progress) -> None:
        """Take the pool.

        Args:
            pool: of one-thread workers.
            number: of them.
            progress: told the bytes of sources done.
        """
        self._pool = pool
        self._ahead = 2 * number
        self._progress = progress

    def each(
        self, label: str, groups: Sequence[Group], done: Sequence[Group], work: Callable[[Group], None],
        size: Callable[[Group], int],
    ) -> None:  # fmt: skip
        """Do every group once.

        Args:
            label: name of the stage.
            groups: what is to do.
            done: what an earlier run did already, for the progress.
            work: called in the workers. The first failure starts nothing more.
            size: bytes that a group reads.
        """

        def one(group: Group) -> None:
            work(group)
            self._progress.advance(size(group))

        self._progress.start(label, sum(map(size, [*groups, *done])), "bytes")
        self._progress.advance(sum(map(size, done)))
        _finish_all([self._pool.submit(one, group) for group in groups], self._pool)

    def total(
        self, groups: Sequence[Group], measure: Callable[[Group], torch.Tensor], size: Callable[[Group], int]
    ) -> torch.Tensor:
        """The sum of a measure over groups, added in their order, so that it has the same bits for any workers."""
        self._progress.start("Measuring", sum(map(size, groups)), "bytes")
        waiting: deque[tuple[Group, Future[torch.Tensor]]] = deque()
        parts: list[torch.Tensor] = []

        def take() -> None:
            group, job = waiting.popleft()
            parts[:] = [sum(parts, job.result())]
            self._progress.advance(size(group))

        for group in groups:
            waiting.append((group, self._pool.submit(measure, group)))
            if len(waiting) > self._ahead:  # results wait for their turn: few of them, they may be histograms
                take()
        while waiting:
            take()
        self._progress.finish()
        return parts[0]


@contextmanager
def workers(number: int, progress: Progress) -> Iterator[Workers]:
    """Worker threads for as long as this lasts; on leaving, what has begun is finished and the rest is dropped."""
    pool = ThreadPoolExecutor(number, "merge", initializer=torch.set_num_threads, initargs=(1,))
    try:
        with freed_blocks_go_back(), one_blas_thread():
            yield Workers(pool, number, progress)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        progress.finish()


def _finish_all(jobs: list[Future[None]], pool: ThreadPoolExecutor) -> None:
    wait(jobs, return_when=FIRST_EXCEPTION)
    if any(job.done() and not job.cancelled() and job.exception() for job in jobs):
        pool.shutdown(wait=True, cancel_futures=True)
    for job in jobs:  # in output order: the same input fails with the same message, whoever was faster
        if not job.cancelled():
            job.result()
