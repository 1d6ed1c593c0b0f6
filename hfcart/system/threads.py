"""Threads: how many by default, and waiting for many answers at once, the Hub's or a disk's."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from typing import TypeVar

from hfcart.system.processes import on_this_machine

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
        if not wait(jobs, return_when=FIRST_EXCEPTION).not_done:
            return [job.result() for job in jobs]
    finally:
        if stop is not None and not all(job.done() for job in jobs):
            stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
    # Those that were at work have ended: the first in order, whoever was faster, but for those that only gave up.
    errors = [job.exception() for job in jobs if not job.cancelled()]
    raise next(error for error in errors if error is not None and not isinstance(error, CancelledError))


def default_workers() -> int:
    """One worker for each core this process may use, at most eight; processes launched together share the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    _, processes = on_this_machine()
    return max(1, min(8, cores // processes))
