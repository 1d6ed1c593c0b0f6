"""Run commands one after another with the pretended device chosen for all of them; print how each ended as JSON.

What they are told is mps: a name that the options know, and that accelerate does not choose by itself. The merges of
a comparison are made in this process: the pretended device is nowhere else.

Usage: python pretender.py < LINES, as the fixture `commands` gives them.
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import Any

import torch
from pretended import PRETENDED, pretending
from typer.testing import CliRunner, Result

import hfcart.learning.adapt.loop
import hfcart.learning.adapt.work
import hfcart.learning.finetune.loop
import hfcart.system.device
from hfcart.cli import app
from hfcart.commands import separate_process
from hfcart.commands.merge import merge_folder
from hfcart.progress import Progress
from hfcart.recipes.merge_recipe import make
from hfcart.report.accuracy import weights_sha256

THERE = (hfcart.system.device, hfcart.learning.adapt.work, hfcart.learning.finetune.loop)


def told(done: Result) -> str:
    unexpected = done.exception is not None and not isinstance(done.exception, SystemExit)
    return done.stderr + ("".join(traceback.format_exception(done.exception)) if unexpected else "")


def merged_here(fields: dict[str, Any], look: object = None) -> separate_process.Apart:
    record = merge_folder(make(fields | {"device": "mps"}), Progress())
    digest = weights_sha256([record.files["model.safetensors"]])
    return separate_process.Apart(1.0, 1, digest, None, ())


def main() -> None:
    for module in THERE:
        module.choose_device = lambda _: PRETENDED
    separate_process.merge_apart = merged_here
    # As on a device with room: all parts stay there, and all batches go through the tower together.
    hfcart.learning.adapt.loop.budget_of = hfcart.learning.adapt.loop.room_for_images = lambda *_: 1 << 40
    found = []
    for line in json.load(sys.stdin):
        with pretending() as waits:
            done = CliRunner().invoke(app, [*line, "--debug", "--device", "mps"])
        found.append((done.exit_code, done.stdout, told(done), dict(waits)))
    print(json.dumps(found))


torch.set_num_threads(1)
main()
