"""Whether a process is alive that nobody can wait for: it holds a lock on a file until it ends."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from pathlib import Path

from running import LIMIT


def holding(path: Path) -> str:
    """Python code that says that it is there, in the file, and holds the lock on it for ten minutes."""
    return f"""
import fcntl, time
file = open({str(path)!r}, "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("there", file=file, flush=True)
time.sleep(600)
"""


def is_held(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def wait_until(there: Callable[[], bool]) -> None:
    """Look until it is so; fails where it never is."""
    end = time.monotonic() + LIMIT
    while not there():
        assert time.monotonic() < end
        time.sleep(0.05)
