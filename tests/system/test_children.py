"""A process that another one started ends with it, however that ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from locks import is_held, wait_until
from running import LIMIT

CHILD = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("there", file=file, flush=True)
time.sleep(600)
"""
PARENT = f"""
import subprocess, sys
from hfcart.system.children import python_child
with python_child({CHILD!r}, sys.argv[1]) as (command, pipe):
    subprocess.Popen(command, pass_fds=(pipe,)).wait()
"""


def test_a_child_ends_with_its_parent(tmp_path: Path, clean_env: dict[str, str]) -> None:
    """Even if that is killed: there is nothing it could do about it."""
    lock = tmp_path / "lock"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(lock)], env=clean_env)
    try:
        wait_until(lambda: lock.is_file() and lock.read_text() == "there\n")
        assert is_held(lock)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait(LIMIT)
    wait_until(lambda: not is_held(lock))
