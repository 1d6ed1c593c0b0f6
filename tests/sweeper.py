"""Runs a sweep and kills its own process at a chosen report of progress: sweeper.py OUT AT SOURCE... TASK BASE."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from hfcart.progress import Progress
from hfcart.sweep import run_sweep
from hfcart.tasks import read_tasks


class Fatal(Progress):
    def __init__(self, at: int) -> None:
        self.left = at

    def advance(self, amount: int) -> None:
        self.left -= amount > 0
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


out, at, *sources, task, base = sys.argv[1:]
run_sweep(
    sources,
    read_tasks([task]),
    ranks=[1, 0.5, 1.0],
    scales=[0.5, 2.0],
    base=base,
    out=Path(out),
    workers=1,
    precision="float32",
    progress=Fatal(int(at)),
)
