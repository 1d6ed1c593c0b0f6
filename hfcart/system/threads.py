"""Threads: how many by default, and waiting for many answers at once, the Hub's or a disk's."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    work: Callable[[Item], Result], items: Sequence[Item], stop: threading.Event | None = None
) -> list[Result]:
    """Results of `work` on each item, in order, eight at a time. The first failure, or Ctrl-C, starts nothing more.

    Args:
        work: called in worker threads.
        items: what to call it on.
        stop: set at the first failure, for work that looks at it.
    """
    pool = ThreadPoolExecutor(8)
    jobs = [pool.submit(work, item) for item in items]
    try:
        wait(jobs, return_when=FIRST_EXCEPTION)
        for job in jobs:  # the first in order among those that failed so far
            if job.done() and (error := job.exception()) is not None:
                raise error
        return [job.result() for job in jobs]
    except BaseException:
        if stop is not None:
            stop.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def default_workers() -> int:
    """One worker for each core this process may use, at most eight."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)
