"""Every bench, one after the other, and what they printed as a page of its own: ratios first.

    python tests/bench [--only merge,sweep] [--short] [--out PAGE]

Each is a script that can be run alone (`python tests/bench/merge.py --help`), and is stopped when its budget is over:
all of them together take less than 20 minutes on two cores. `--short` proves that they run, with small settings, whose
numbers mean nothing.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from measuring import RATIO

HERE = Path(__file__).parent
LIBRARIES = ("torch", "transformers", "numpy", "scipy", "safetensors")
NO_GPU = "device: unmeasured, there is no GPU here"


@dataclass(frozen=True)
class Bench:
    """A script here.

    Attributes:
        name: of the file, without .py.
        title: of its section.
        budget: seconds after which it is stopped.
        arguments: what `make bench` gives it.
        short: what --short gives it instead.
        towers: whether it takes --folder, which those that do share.
    """

    name: str
    title: str
    budget: int
    arguments: tuple[str, ...] = ()
    short: tuple[str, ...] = ()
    towers: bool = False


SMALL = ("--towers", "3", "--layers", "1")
BENCHES = (
    Bench("merge", "A merge against the plain way", 460, short=SMALL, towers=True),
    Bench("phases", "Where the seconds of a merge go", 50, short=SMALL, towers=True),
    Bench("solvers", "Low-rank solvers", 70, ("--rounds", "3"), ("--rounds", "1", "--size", "192")),
    Bench(
        "evaluate",
        "Evaluation against the plain loop",
        120,
        ("--rounds", "1", "--images", "96"),
        ("--rounds", "1", "--images", "8"),
    ),
    Bench("sweep", "A sweep over ranks", 70, ("--rounds", "2", "--towers", "4"), ("--rounds", "1", "--towers", "3")),
    Bench("adapt", "A step of adaptation against the plain way", 260, short=("--layers", "1", "--towers", "2")),
    Bench("startup", "Start-up", 30, ("--rounds", "9"), ("--rounds", "1")),
    Bench("scale", "Scale", 130, short=("--towers", "3,4"), towers=True),
)
DEVICE = Bench("device", "On a GPU", 300)
ON_GPU = (
    Bench(
        "adapt", "Adaptation on a GPU", 180, ("--towers", "8", "--device", "cuda", "--precision", "float32,bfloat16")
    ),
)


def run(bench: Bench, arguments: Sequence[str], folder: Path) -> tuple[str, bool]:
    """What a bench prints, shown as it comes, and whether it came to its end within its budget."""
    own = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(folder), "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, str(HERE / f"{bench.name}.py"), *arguments]
    begun, lines = time.monotonic(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=own, start_new_session=True) as process:
        stop = threading.Timer(bench.budget, os.killpg, (process.pid, signal.SIGKILL))
        stop.start()
        try:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                lines.append(line)
        finally:
            stop.cancel()
    took = time.monotonic() - begun
    if process.returncode:
        why = f"stopped after its {bench.budget} s" if took > bench.budget else f"it ended with {process.returncode}"
        lines.append(f"\n{bench.name}: unmeasured, {why}\n")
        print(lines[-1], flush=True)
    print(f"({bench.name}: {took:.0f} of {bench.budget} s)\n", flush=True)
    return "".join(lines), not process.returncode


def machine() -> str:
    """What was measured on what, in words that name nothing of the machine's own."""
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    with_what = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in ("hfcart", *LIBRARIES))
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {len(os.sched_getaffinity(0))} cores ({platform.machine()}), "
        f"{gigabytes:.0f} GB of memory, {gpu() or 'no GPU'}. Python {platform.python_version()}, {with_what}."
    )


def gpu() -> str:
    """The name of this machine's GPU; "" where torch finds none."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def page(machine: str, found: Sequence[tuple[str, str]]) -> str:
    """The results as Markdown: every ratio first, then the tables.

    Args:
        machine: what they were measured on.
        found: title and output of each bench.
    """
    ratios, tables = [], []
    for title, text in found:
        lines = text.splitlines()
        own = [line for line in lines if line.startswith(RATIO)]
        ratios += [f"\n{title}:\n", *own] if own else []
        rest = "\n".join(line for line in lines if not line.startswith(RATIO))
        tables.append(f"## {title}\n\n" + re.sub(r"\n{3,}", "\n\n", rest).strip())
    head = f"# Results\n\nWritten by `make bench`: {machine}\nMedians of one run; a ratio is of the same run.\n"
    return head + "\n## Ratios\n" + "\n".join(ratios) + "\n\n" + "\n\n".join(tables) + "\n"


def main() -> int:
    """Run them. Returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of benches, with commas")
    parser.add_argument("--short", action="store_true", help="small settings that prove that they run")
    parser.add_argument("--out", type=Path, help="the page; RESULTS.md here, if all are run in full, else none")
    asked = parser.parse_args()
    out = asked.out or (None if asked.only or asked.short else HERE / "RESULTS.md")
    every = [*BENCHES, DEVICE, *(ON_GPU if gpu() else ())]
    chosen = asked.only.split(",") if asked.only else [bench.name for bench in every]
    if unknown := set(chosen) - {bench.name for bench in every}:
        parser.error(f"no bench {min(unknown)}; there are {', '.join(bench.name for bench in every)}")
    found, good = [], True
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for bench in (bench for bench in every if bench.name in chosen):
            print(f"## {bench.title}\n", flush=True)
            if bench is DEVICE and not gpu():
                print(NO_GPU, flush=True)
                found.append((bench.title, NO_GPU))
                continue
            arguments = (*(bench.short if asked.short else bench.arguments),)
            text, well = run(bench, (*arguments, *(("--folder", temporary) if bench.towers else ())), folder)
            found.append((bench.title, text))
            good = good and well
    text = page(machine(), found)
    print(text[: text.index("## ", text.index("## Ratios") + 3)])
    if out:
        out.write_text(text, encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
