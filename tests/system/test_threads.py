"""Many answers at once."""

from __future__ import annotations

import queue
import signal
import threading
from concurrent.futures import CancelledError

import pytest

from hfcart.system.threads import in_parallel


def test_of_several_failures_the_first_in_order_is_told() -> None:
    other = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert other.wait(60)
        if item == 1:
            other.set()
        if item < 2:
            raise ValueError(item)
        return item

    with pytest.raises(ValueError, match="0"):
        in_parallel(work, range(99))
    assert in_parallel(work, range(3, 30)) == list(range(3, 30))


def test_who_only_gave_up_because_another_failed_is_not_told() -> None:
    stop = threading.Event()

    def work(item: int) -> int:
        if item == 0 and stop.wait(60):
            raise CancelledError
        raise ValueError(item)

    with pytest.raises(ValueError, match="1"):
        in_parallel(work, range(2), stop)


def test_ctrl_c_that_wakes_nobody_is_heeded() -> None:
    """As one is that comes while the main thread falls asleep: here another thread gets it."""
    stop, heard = threading.Event(), queue.Queue()

    def work(item: int) -> None:
        if item == 0:
            signal.raise_signal(signal.SIGINT)
        heard.put(stop.wait(60))

    with pytest.raises(KeyboardInterrupt):
        in_parallel(work, range(2), stop)
    assert heard.get(timeout=60)
