"""Run fine-tunings one after another, killing those that are to be killed; print what happened as JSON.

A process of its own, with everything imported once: each training is a fork that begins at once. Kills come when
a given checkpoint is there, wherever the training is by then.

Usage: python finetuner.py JOBS, a JSON file with a list of {"fields": {...}, "kill": null or a number of steps}
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import hfcart.clip.models
import hfcart.learning.batches
import hfcart.zero_shot.scoring
from hfcart.commands.finetune import run_finetune
from hfcart.errors import HfcartError
from hfcart.learning.finetune.recipe import make
from hfcart.progress import Progress

SEEN: dict[str, set[str]] = {"learned": set(), "validated": set()}  # digests of the images that were decoded


def watch(module: Any, name: str) -> None:
    """Note the digest of every image that a module decodes."""
    decode = module.decode

    def noting(data: bytes) -> Any:
        SEEN[name].add(hashlib.sha256(data).hexdigest())
        return decode(data)

    module.decode = noting


class Told(Progress):
    """Keeps every line."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append("Warning: " + text)


def train(fields: dict[str, Any], report: Path) -> None:
    told = Told()
    watch(hfcart.learning.batches, "learned")
    watch(hfcart.zero_shot.scoring, "validated")
    try:
        run_finetune(make(fields), told)
        error = None
    except HfcartError as failure:
        error = [type(failure).__name__, failure.message, failure.hint]
    report.write_text(json.dumps({"error": error, "lines": told.lines, **{k: sorted(v) for k, v in SEEN.items()}}))


def attempt(fields: dict[str, Any], kill: int | None, report: Path) -> dict[str, Any]:
    """One forked training, killed once the checkpoint of step `kill` or a later one is there."""
    report.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(fields, report)
            code = 0
        finally:
            os._exit(code)
    out = Path(fields["out"])
    folder = out.with_name(out.name + ".partial") / "checkpoints"
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if kill is not None and any(int(path.stem.removeprefix("step-")) >= kill for path in folder.glob("*.json")):
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.001)
    kept = sorted(path.name for path in folder.glob("*"))
    found = json.loads(report.read_text()) if report.exists() else {"error": None, "lines": []}
    return {**found, "killed": os.WIFSIGNALED(status), "status": status, "kept": kept, "finished": out.exists()}


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    report = Path(sys.argv[1]).with_suffix(".report")
    print(json.dumps([attempt(job["fields"], job.get("kill"), report) for job in jobs]))


main()
