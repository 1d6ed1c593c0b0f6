"""Commands run as a user runs them: what every test of a command needs to know."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hints import command_of, commands_in, faults
from warm import Warm, suits

ROOT = Path(__file__).parents[2]
HELPERS = Path(__file__).parent
COMPAT = ROOT / ".compat"  # the last release of transformers 4, where `make test` has put it
Run = Callable[..., subprocess.CompletedProcess[str]]
Commands = Callable[..., list[subprocess.CompletedProcess[str]]]
TOKEN = "hf_user_secret"
LIMIT = 600.0  # seconds after which a process of a test hangs, however busy the machine
_RUNNER = """
import json, sys
from typer.testing import CliRunner
from hfcart.cli import app
results = [CliRunner().invoke(app, args) for args in json.load(sys.stdin)]
print(json.dumps([(r.exit_code, r.stdout, r.stderr) for r in results]))
"""


def ended(
    command: Sequence[str | Path], *, input: str = "", warm: bool = False, **settings: Any
) -> subprocess.CompletedProcess[str]:
    """A command that has ended, and what it printed: into files, so that nothing it leaves behind is waited for.

    Args:
        command: killed with its group of processes if it does not end.
        input: what it reads.
        warm: whether it may be a fork of a Python that has imported what takes long to import; see `warm`.
        settings: for subprocess.Popen; of a warm one, `cwd` and `env` alone.
    """
    with ExitStack() as files:
        given, *printed = [files.enter_context(tempfile.NamedTemporaryFile("w+")) for _ in range(3)]
        given.write(input)
        given.seek(0)
        process: Warm | subprocess.Popen[bytes]
        if warm and suits(command, settings.get("env")):
            process = Warm(command, [file.name for file in (given, *printed)], **settings)
        else:
            process = subprocess.Popen(
                command, stdin=given, stdout=printed[0], stderr=printed[1], start_new_session=True, **settings
            )
        try:
            process.wait(LIMIT)
        finally:
            hangs = process.poll() is None
            if hangs:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(LIMIT)
            for file in printed:
                file.seek(0)
            done = subprocess.CompletedProcess(command, process.returncode, *(file.read() for file in printed))
            assert not hangs, f"It did not end in {LIMIT:g} s: {done}"
        return done


def run_commands(
    lines: Sequence[Sequence[str]],
    cwd: Path,
    env: Mapping[str, str],
    *,
    apart: bool = True,
    python: str | Path = sys.executable,
) -> list[subprocess.CompletedProcess[str]]:
    """Several commands one after another in one process; a comparison's merges too, unless they are to be `apart`."""
    first = "" if apart else f"import sys; sys.path.append({str(HELPERS)!r}); import apart_here\n"
    done = ended([python, "-c", first + _RUNNER], input=json.dumps(lines), warm=True, cwd=cwd, env=env)
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
