"""How long the help takes: hfcart against a bare Typer app and bare Python, medians of whole processes in turns.

python tests/bench/startup.py [--rounds 15]
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from measuring import Cost, in_turns, measure, median_ratio, options, say_ratio, say_table

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
BARE_HELP, OWN_HELP = "a bare Typer app --help", "hfcart --help"
COMMANDS: dict[str, list[str]] = {
    "python -c pass": ["-c", "pass"],
    BARE_HELP: ["-c", BARE, "--help"],
    "its command one --help": ["-c", BARE, "one", "--help"],
    "hfcart --version": ["-m", "hfcart", "--version"],
    OWN_HELP: ["-m", "hfcart", "--help"],
    "hfcart merge --help": ["-m", "hfcart", "merge", "--help"],
    "hfcart methods": ["-m", "hfcart", "methods"],
}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    costs = in_turns({name: lambda a=a: measure(a) for name, a in COMMANDS.items()}, parser.parse_args().rounds)
    bare = costs[BARE_HELP]

    def to_bare(own: Sequence[Cost], field: str) -> float:
        return median_ratio([getattr(c, field) for c in own], [getattr(c, field) for c in bare])

    say_ratio(to_bare(costs[OWN_HELP], "wall"), f"wall time: `{OWN_HELP}` / {BARE_HELP}")
    say_ratio(to_bare(costs["hfcart merge --help"], "wall"), f"wall time: `hfcart merge --help` / {BARE_HELP}")
    rows = []
    for name, own in costs.items():
        wall, cpu = (1e3 * statistics.median(getattr(cost, field) for cost in own) for field in ("wall", "cpu"))
        ratios = (f"{to_bare(own, field):.2f}×" for field in ("wall", "cpu"))
        rows.append([f"`{name}`" if name[0] in "hp" else name, f"{wall:.0f} ms", f"{cpu:.0f} ms", *ratios])
    say_table(("", "wall", "CPU", "wall / a bare app", "CPU / a bare app"), rows)


if __name__ == "__main__":
    main()
