"""Commands run as a user runs them: what every test of a command needs to know."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from hints import command_of, commands_in, faults

ROOT = Path(__file__).parents[2]
HELPERS = Path(__file__).parent
COMPAT = ROOT / ".compat"  # the last release of transformers 4, where `make test` has put it
Run = Callable[..., subprocess.CompletedProcess[str]]
Commands = Callable[..., list[subprocess.CompletedProcess[str]]]
TOKEN = "hf_user_secret"


def works_when_typed(args: Sequence[str], done: subprocess.CompletedProcess[str]) -> None:
    """Every command that a run printed, and every option in its hints, is one that there is."""
    if {"--json", "--help", "-h"} & set(args):
        return
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    for line in [line for line in lines if not line.startswith(("Usage: ", "Try '"))]:
        hint = line.startswith("→ ")
        wrong = faults(line, command_of(args)) if hint else [w for c in commands_in(line) for w in faults(c)]
        assert not wrong, wrong


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
