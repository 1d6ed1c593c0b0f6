"""Commands run as a user runs them: what every test of a command needs to know."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hints import command_of, commands_in, faults

ROOT = Path(__file__).parents[2]
HELPERS = Path(__file__).parent
COMPAT = ROOT / ".compat"  # the last release of transformers 4, where `make test` has put it
Run = Callable[..., subprocess.CompletedProcess[str]]
Commands = Callable[..., list[subprocess.CompletedProcess[str]]]
TOKEN = "hf_user_secret"
_RUNNER = """
import json, sys
from typer.testing import CliRunner
from hfcart.cli import app
results = [CliRunner().invoke(app, args) for args in json.load(sys.stdin)]
print(json.dumps([(r.exit_code, r.stdout, r.stderr) for r in results]))
"""


def run_commands(
    lines: Sequence[Sequence[str]], cwd: Path, env: Mapping[str, str]
) -> list[subprocess.CompletedProcess[str]]:
    """Several commands one after another in one process."""
    done = subprocess.run(
        [sys.executable, "-c", _RUNNER], input=json.dumps(lines), cwd=cwd, env=env, capture_output=True, text=True,
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    all_done = [subprocess.CompletedProcess(line, *each) for line, each in zip(lines, found, strict=True)]
    for line, each in zip(lines, all_done, strict=True):
        works_when_typed(line, each)
    return all_done


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
