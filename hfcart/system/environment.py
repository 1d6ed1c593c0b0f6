"""What can change a last bit of a result besides the recipe: versions, device, processor; and a digest of it all."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import torch

from hfcart import __version__
from hfcart.maths.low_rank import default_solver
from hfcart.maths.low_rank_batch import NAME, is_batched
from hfcart.records import Environment


def current_environment(device: torch.device) -> Environment:
    """Versions, device and processor: all that can change a last bit besides the recipe."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return Environment(
        hfcart=__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        device=device.type,
        processor=name,
        solver=NAME if is_batched(device) else default_solver(device),
    )


def fingerprint(environment: Environment, *decides: Any) -> str:  # noqa: ANN401 (whatever JSON holds)
    """Digest of all that decides a result: work with another is not resumed. Python's version decides no bit of it."""
    where = {key: value for key, value in dataclasses.asdict(environment).items() if key != "python"}
    return hashlib.sha256(json.dumps([*decides, where], sort_keys=True).encode()).hexdigest()


def _processor() -> str:
    """The CPU's model, and the vector instructions torch uses on it: both can change the last bits."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model} ({torch.backends.cpu.get_cpu_capability()})"
