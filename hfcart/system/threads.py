"""Threads: how many by default, and waiting for many answers at once, the Hub's or a disk's."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, ThreadPoolExecutor, wait
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
    jobs: list[Future[Result]] = []
    try:
        for item in items:
            jobs.append(pool.submit(work, item))
        if all_done(jobs):
            return [job.result() for job in jobs]
    finally:
        if stop is not None and not (len(jobs) == len(items) and all(job.done() for job in jobs)):
            stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
    # Those that were at work have ended: the first in order, whoever was faster, but for those that only gave up.
    errors = [job.exception() for job in jobs if not job.cancelled()]
    raise next(error for error in errors if error is not None and not isinstance(error, CancelledError))


def all_done(jobs: Collection[Future[Result]]) -> bool:
    """Wait until all of these are done, or one has failed. Returns whether all are done.

    It looks up every second: a signal that comes while a thread falls asleep is heeded only when it wakes.
    """
    while True:
        done, left = wait(jobs, timeout=1.0, return_when=FIRST_EXCEPTION)
        if not left or any(not job.cancelled() and job.exception() for job in done):
            return not left


def default_workers() -> int:
    """One worker for each core this process may use, at most eight; processes launched together share the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    _, processes = on_this_machine()
    return max(1, min(8, cores // processes))
