"""Many answers at once."""

from __future__ import annotations

import threading
import time

import pytest

from hfcart.system.threads import in_parallel


@pytest.mark.parametrize("stop", [None, threading.Event()])
def test_of_several_failures_the_first_in_order_is_told(stop: threading.Event | None) -> None:
    both = threading.Barrier(2)

    def work(item: int) -> int:
        if item < 2:
            both.wait()
        if item == 0:
            time.sleep(0.05)  # the other is done by then
        if item < 3:
            raise ValueError(item)
        return item

    with pytest.raises(ValueError, match="0"):
        in_parallel(work, range(99), stop)
    assert stop is None or stop.is_set()
    assert in_parallel(work, range(3, 30)) == list(range(3, 30))
