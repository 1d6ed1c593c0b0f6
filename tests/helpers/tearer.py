"""Run a piece of work again and again, each time killed in the middle of writing a line of one of its journals.

A process of its own, with everything imported once: each attempt is a fork. Prints, as JSON, the wait status of each
and the whole lines that it left.

Usage: python tearer.py JOBS, a JSON file with a list of {"kind", "fields", "journal", "tear"}: `tear` is which write to
that journal is torn (from 1), and after how many of its bytes; null to let it end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import hfcart.clip.models
import hfcart.commands.compare
import hfcart.commands.sweep
import hfcart.learning.thresholds
import hfcart.report.plots
import hfcart.system.journal
from hfcart.commands.merge import merge_folder
from hfcart.commands.separate_process import Apart
from hfcart.progress import Progress
from hfcart.recipes.merge_recipe import make
from hfcart.tasks.task_cards import read_tasks
from hfcart.zero_shot.measurement import Measurement


def merge(fields: dict[str, Any]) -> None:
    merge_folder(make(fields), Progress())


def apart(fields: dict[str, Any], look: object) -> Apart:
    """In this process, which has everything imported; the time and the memory it took are no matter here."""
    merge(fields)
    return Apart(1.0, 1, None, None, ())


def measure(run: Any) -> Any:
    def work(fields: dict[str, Any]) -> None:
        tasks, base, out = (fields[name] for name in ("tasks", "base", "out"))
        rest = {name: value for name, value in fields.items() if name not in ("tasks", "base", "out")}
        how = Measurement(read_tasks([tasks]), base=base, references="none", workers=1, precision="float32")
        run(measurement=how, out=Path(out), **rest, progress=Progress())

    return work


def torn(name: str, left: int, size: int) -> None:
    """From now on, the write number `left` to that journal stops after `size` bytes, and this process with it."""
    whole = hfcart.system.journal.write_all

    def write_all(descriptor: int, data: bytes, start: int) -> None:
        nonlocal left
        left -= Path(f"/proc/self/fd/{descriptor}").readlink().name == name
        if left == 0:
            os.pwrite(descriptor, data[:size], start)
            os.kill(os.getpid(), signal.SIGKILL)
        whole(descriptor, data, start)

    hfcart.system.journal.write_all = write_all


KINDS = {
    "merge": merge,
    "sweep": measure(hfcart.commands.sweep.run_sweep),
    "compare": measure(hfcart.commands.compare.run_compare),
}
# As with towers so large that only one is in memory at a time: a line for each.
hfcart.commands.sweep.towers_at_once = hfcart.commands.compare.towers_at_once = lambda parameters: 1
hfcart.commands.separate_process.merge_apart = apart


def attempt(job: dict[str, Any]) -> tuple[int, list[str]]:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if job["tear"]:
                torn(job["journal"], *job["tear"])
            KINDS[job["kind"]](job["fields"])
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    left = list(Path(job["fields"]["out"] + ".partial").rglob(job["journal"]))
    return status, left[0].read_text().split("\n")[:-1] if left else []


print(json.dumps([attempt(job) for job in json.loads(Path(sys.argv[1]).read_text())]))
