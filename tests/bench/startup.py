"""How long the help takes: hfcart against a bare Typer app and bare Python, medians of whole processes.

python tests/bench/startup.py [--runs 15]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

BARE = """
import typer
app = typer.Typer(pretty_exceptions_enable=False)
@app.command()
def one(sources: list[str], rank: str | None = None, quiet: bool = False) -> None:
    "Say hello."
@app.command()
def two() -> None:
    "Say goodbye."
import sys
app(sys.argv[1:], prog_name="bare")
"""
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "a bare Typer app --help": ["-c", BARE, "--help"],
    "its command one --help": ["-c", BARE, "one", "--help"],
    "hfcart --version": ["-m", "hfcart", "--version"],
    "hfcart --help": ["-m", "hfcart", "--help"],
    "hfcart merge --help": ["-m", "hfcart", "merge", "--help"],
    "hfcart methods": ["-m", "hfcart", "methods"],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    took: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs + 1):  # in turn, so that a slow moment hits all of them; the first round warms up
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            took[name].append(time.perf_counter() - start)
    bare = statistics.median(took["a bare Typer app --help"][1:])
    for name, times in took.items():
        median = statistics.median(times[1:])
        print(f"{name:<28}{1000 * median:>7.0f} ms{median / bare:>7.2f}x")


if __name__ == "__main__":
    main()
