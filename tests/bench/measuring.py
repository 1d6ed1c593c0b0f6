"""What the benches share: what processes cost, ways that take turns, and what they print.

A bench prints Markdown: a line for each ratio, which `make bench` puts before everything else, and tables.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "helpers"), str(TESTS.parent)]

Found = TypeVar("Found")
RATIO = "- **"  # what the line of a ratio begins with


@dataclass(frozen=True)
class Cost:
    """Of a whole process: seconds of wall time, of CPU, of it in the system; page faults; bytes of memory at most."""

    wall: float
    cpu: float
    system: float
    faults: float
    memory: float

    def cells(self) -> list[str]:
        """Of a table whose columns are COLUMNS."""
        seconds = [f"{x:.1f} s" for x in (self.wall, self.cpu, self.system)]
        return [*seconds, f"{self.faults:,.0f}", f"{self.memory / 1e9:.2f} GB"]


COLUMNS = ("wall", "CPU", "of it system", "page faults", "peak memory")
# A process's peak of memory begins with its parent's, so the parent is one that has taken hardly any.
_PARENT = """
import json, os, sys, time
begun = time.perf_counter()
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(child, 0)
taken = used.ru_utime + used.ru_stime, used.ru_stime, used.ru_minflt, 1024 * used.ru_maxrss
print("\\n" + json.dumps([time.perf_counter() - begun, *taken]))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def measure(arguments: Sequence[object], **env: str) -> Cost:
    """What Python takes for these arguments, offline, with torch's own number of threads unless `env` says another.

    Raises:
        SystemExit: it failed; with what it said.
    """
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    own = {**clean, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(TESTS.parent), **env}
    command = [sys.executable, "-I", "-S", "-c", _PARENT, sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=own, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(command[5:9])} …\n{done.stderr[-2000:]}")
    return Cost(*json.loads(done.stdout.splitlines()[-1]))


def median_cost(costs: Sequence[Cost]) -> Cost:
    """Each field's median."""
    return Cost(*(statistics.median(getattr(cost, field.name) for cost in costs) for field in fields(Cost)))


def in_turns(ways: Mapping[str, Callable[[], Found]], rounds: int, *, warm: bool = True) -> dict[str, list[Found]]:
    """What each way returns, round by round, so that whatever else the machine does meets all of them.

    Args:
        ways: name -> what is measured.
        rounds: that count.
        warm: whether a round that does not count goes before them.
    """
    found: dict[str, list[Found]] = {name: [] for name in ways}
    for turn in range(-1 if warm else 0, rounds):
        for name, way in ways.items():
            one = way()
            if turn >= 0:
                found[name].append(one)
    return found


def median_ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(x / y for x, y in zip(of, to, strict=True))


def say_ratio(value: float, what: str) -> None:
    """A line for the top of the results: "- **4.4×** wall time, …"."""
    print(f"{RATIO}{value:.2g}×** {what}" if value < 10 else f"{RATIO}{value:.0f}×** {what}", flush=True)


def say_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; the first column is text, the others are numbers."""
    print("\n| " + " | ".join(columns) + " |\n|---" + "|--:" * (len(columns) - 1) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def options(doc: str | None, *, towers: bool = False) -> argparse.ArgumentParser:
    """Of a bench, whose docstring says what it is; --folder if it has towers, which may be kept."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if towers:
        parser.add_argument("--folder", type=Path, help="where towers go, and are found again; else nothing is kept")
    return parser


@contextlib.contextmanager
def folder_for(asked: Path | None) -> Iterator[Path]:
    """The folder asked for, or one for as long as this lasts."""
    if asked is not None:
        asked.mkdir(parents=True, exist_ok=True)
        yield asked
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)
