"""Run commands one after another with the pretended device chosen for all of them; print how each ended as JSON.

What they are told is mps: a name that the options know, and that accelerate does not choose by itself.

Usage: python pretender.py < LINES, as the fixture `commands` gives them.
"""

from __future__ import annotations

import json
import sys
import traceback

import torch
from pretended import PRETENDED, pretending
from typer.testing import CliRunner, Result

import hfcart.learning.adapt.loop
import hfcart.learning.adapt.work
import hfcart.learning.finetune.loop
import hfcart.system.device
from hfcart.cli import app

THERE = (hfcart.system.device, hfcart.learning.adapt.work, hfcart.learning.finetune.loop)


def told(done: Result) -> str:
    unexpected = done.exception is not None and not isinstance(done.exception, SystemExit)
    return done.stderr + ("".join(traceback.format_exception(done.exception)) if unexpected else "")


def main() -> None:
    for module in THERE:
        module.choose_device = lambda _: PRETENDED
    found = []
    for line in json.load(sys.stdin):
        with pretending() as waits:
            done = CliRunner().invoke(app, [*line, "--debug", "--device", "mps"])
        found.append((done.exit_code, done.stdout, told(done), dict(waits)))
    print(json.dumps(found))


torch.set_num_threads(1)
main()
