"""A process that another one started ends with it, however that ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from locks import holding, is_held, wait_until
from running import LIMIT

PARENT = """
import subprocess, sys
from hfcart.system.children import python_child
with python_child(sys.argv[1]) as (command, pipe):
    subprocess.Popen(command, pass_fds=(pipe,)).wait()
"""


def test_a_child_ends_with_its_parent(tmp_path: Path, clean_env: dict[str, str]) -> None:
    """Even if that is killed: there is nothing it could do about it."""
    lock = tmp_path / "lock"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, holding(lock)], env=clean_env)
    try:
        wait_until(lambda: lock.is_file() and lock.read_text() == "there\n")
        assert is_held(lock)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait(LIMIT)
    wait_until(lambda: not is_held(lock))
