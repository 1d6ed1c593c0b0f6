"""Devices for tests: the pretended one always, a real one where HFCART_TEST_DEVICE names it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from plans import fetched_plan
from pretended import PRETENDED, pretending
from safetensors.torch import load_file

from hfcart.engine.merging import merge_groups
from hfcart.engine.writing import GroupWriter
from hfcart.progress import Progress
from hfcart.system.tensor_files import TensorFiles
from hfcart.system.work_folder import WorkFolder

ASKED = os.environ.get("HFCART_TEST_DEVICE", "")
REAL = [torch.device(ASKED)] if ASKED else []
DEVICES = [PRETENDED, *REAL]


@contextmanager
def working(device: torch.device) -> Iterator[Counter[str]]:
    """The device works for as long as this lasts; yields what the host waited for, if the device is pretended."""
    if device == PRETENDED:
        with pretending() as waits:
            yield waits
    else:
        yield Counter()


def merged_on(
    device: torch.device, sources: list[Path], out: Path, *, workers: int = 3, **fields: object
) -> tuple[dict[str, torch.Tensor], Counter[str], list[dict]]:
    """The tensors of a merge whose algebra is done on a device, what the host waited for, and the journal's lines."""
    plan = fetched_plan(sources, **fields)
    try:
        with WorkFolder(out, (), overwrite=False) as folder:
            folder.begin("any")
            with TensorFiles(folder.path, plan.layout) as tensors:
                writer = GroupWriter(plan, folder, tensors)
                with working(device) as waits:
                    merge_groups(plan, writer, device, workers, Progress())
            found = load_file(folder.path / "model.safetensors")
            return found, waits, [writer.done[group.key] for group in plan.groups]
    finally:
        plan.close()
