"""Run a merge again and again, killing it at seeded lengths of its journal; print what happened as JSON.

A process of its own, with one thread and everything imported: each attempt is a fork that starts to merge at
once, so that kills hit the merge and not the imports.

Usage: python killer.py OUT SEED KILLS FIELDS SOURCE...; FIELDS are the recipe's, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

import hfcart.engine.merging
import hfcart.report.plots  # noqa: F401
from hfcart import merge


def lines(journal: Path) -> list[str]:
    return journal.read_text().split("\n")[:-1] if journal.exists() else []


def attempt(sources: list[str], out: Path, fields: dict, target: int | None) -> int:
    """One forked merge, killed once the journal has `target` lines. Returns its wait status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            merge(sources, out=str(out), workers=1, **fields)
            code = 0
        finally:
            os._exit(code)
    journal = out.with_name(out.name + ".partial") / "journal.jsonl"
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if target is not None and len(lines(journal)) >= target:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]


def main() -> None:
    out, seed, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    fields, sources = json.loads(sys.argv[4]), sys.argv[5:]
    journal = out.with_name(out.name + ".partial") / "journal.jsonl"
    rng, seen = random.Random(seed), []
    for _ in range(kills):
        before = lines(journal)
        status = attempt(sources, out, fields, len(before) + rng.randint(1, 3))
        after = lines(journal)
        seen.append(
            {
                "killed": os.WIFSIGNALED(status),
                "kept": after[: len(before)] == before,
                "twice": len(after) - len({json.loads(line).get("group") for line in after}),
                "lines": len(after),
                "finished": out.exists(),
            }
        )
    last = attempt(sources, out, fields, None)
    print(json.dumps({"seen": seen, "last": os.waitstatus_to_exitcode(last)}))


main()
