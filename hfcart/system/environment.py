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
from hfcart.errors import UsageError
from hfcart.maths.low_rank import default_solver
from hfcart.maths.low_rank_batch import NAME, is_batched
from hfcart.records import Environment
from hfcart.system.device import Machine, choose_device
from hfcart.system.processes import Team


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


def refuse_another_kind(team: Team, device: torch.device, first: Environment) -> None:
    """Raise UsageError where this process would compute other bits than the first: another device or version."""
    own = current_environment(device)
    if fingerprint(own) != fingerprint(first):
        names = [name for name in vars(own) if getattr(own, name) != getattr(first, name)]
        told = ", ".join(f"{name} {getattr(own, name)} (the first: {getattr(first, name)})" for name in names)
        raise UsageError(
            f"The processes would compute different bits: {team.who} has {told}.",
            hint="Launch them on machines of one kind, with the same versions.",
        )


def machine_here(team: Team, machine: Machine, asked: str, first: Environment) -> Machine:
    """The first process's machine as this one has it: on the device that is its own.

    Args:
        team: of this process.
        machine: of the first.
        asked: the device that was asked for, auto or by name.
        first: environment of the first.

    Raises:
        UsageError: there is no such device here, or this is a machine of another kind.
    """
    device = choose_device(asked)
    refuse_another_kind(team, device, first)
    return dataclasses.replace(machine, device=device)


def _processor() -> str:
    """The CPU's model, and the vector instructions torch uses on it: both can change the last bits."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model} ({torch.backends.cpu.get_cpu_capability()})"
