"""A merge by TIES of which one process fails at its first group, once the other one has merged a group and waits.

Usage: python felled.py PLACE HOW COMMAND...; PLACE is the process's, from 0. HOW is a signal's name, `all` for SIGKILL
to every process of the launch and to the launcher, or `full` for a disk that is full.
"""

from __future__ import annotations

import errno
import os
import pickle
import signal
import sys
import time
from typing import Any

import hfcart.system.tensor_files
from hfcart.cli import main
from hfcart.engine.sharing import SharedWorkers
from hfcart.system.processes import Team

place, how = int(sys.argv[1]), sys.argv[2]
sys.argv = ["hfcart", *sys.argv[3:]]
take, each = Team.take, SharedWorkers.each
merging: list[bool] = []
done: list[int] = []
NOTHING = 1 << 50  # no piece of work has that number


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def felled(self: Team, stage: str) -> int:
    if not merging:  # TIES measures first
        return take(self, stage)
    if self.place != place:
        if not done:
            done.append(take(self, stage))
            return done[0]
        self._post("pid", os.getpid())
        while not self._has("felled"):
            time.sleep(0.05)
        return NOTHING
    while not self._has("pid"):
        time.sleep(0.05)
    found = take(self, stage)
    if how == "all":
        for pid in (os.getppid(), pickle.loads(self._received("pid")), os.getpid()):  # noqa: S301
            os.kill(pid, signal.SIGKILL)
    self._post("felled", True)
    if how == "full":
        hfcart.system.tensor_files.write_all = full
        return found
    os.kill(os.getpid(), getattr(signal, how))
    return NOTHING


def noted(*args: Any) -> None:
    merging.append(True)
    each(*args)


Team.take, SharedWorkers.each = felled, noted  # type: ignore[method-assign]
main()
