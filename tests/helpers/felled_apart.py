"""A comparison of which one process is killed while it merges: python felled_apart.py PLACE LOCK COMMAND...

Its merge is one of ten minutes, which keeps a lock on the file LOCK for as long as it lives. It is killed once another
process has noted a merge, after which that one takes no more.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from locks import holding, wait_until

from hfcart.cli import main
from hfcart.commands import separate_process
from hfcart.system.processes import Team

place, lock = int(sys.argv[1]), Path(sys.argv[2])
sys.argv = ["hfcart", *sys.argv[3:]]
take, said = Team.take, separate_process._said
turns: list[int] = []


def noted() -> bool:
    return any('"merged"' in path.read_text() for path in Path().glob("*.partial/*.jsonl"))


def killed(merging: subprocess.Popen[str], look: Callable[[], object]) -> str:
    wait_until(lambda: lock.is_file() and lock.read_text() == "there\n" and noted())
    os.kill(os.getpid(), signal.SIGKILL)
    return said(merging, look)


def taken(self: Team, stage: str) -> int:
    turns.append(1)
    if self.place != place and len(turns) > 1:
        wait_until(lambda: bool(self.check()))  # it hears that the other is gone
    return take(self, stage)


if int(os.environ["RANK"]) == place:
    separate_process._MAIN, separate_process._said = holding(lock), killed
Team.take = taken  # type: ignore[method-assign]
main()
