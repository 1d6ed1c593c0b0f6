"""Processes of one launch: real ones, and threads of this process that know each other by a real store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from running import ended
from torch.distributed import TCPStore

from hfcart.system.processes import Team

Result = TypeVar("Result")
_ACCELERATE = [
    *("-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"),
    *("--dynamo_backend", "no", "--main_process_port", "0"),
]


@contextmanager
def teams(number: int, patience: float = 60.0) -> Iterator[list[Team]]:
    """So many teams, of which each is to be entered by a thread of its own."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield [Team(store.clone(), place, number, patience) for place in range(number)]


def in_team(number: int, lead: Callable[[Team], Result]) -> list[Result]:
    """What the first makes of its team; in every place, as the others get it."""

    def part(team: Team) -> Any:
        with team:
            if not team.first:
                return team.follow()
            team.result = lead(team)
            return team.result

    with teams(number) as all_of_them, ThreadPoolExecutor(number) as pool:
        return [job.result() for job in [pool.submit(part, team) for team in all_of_them]]


def launched(
    number: int, args: Sequence[str], cwd: Path, env: Mapping[str, str], *, plain: bool = False
) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` (or torchrun, if `plain`, which starts faster) of so many processes on the CPU, with gloo."""
    command = [*_ACCELERATE, "--num_processes", str(number), *["--multi_gpu"] * (number > 1)]
    if plain:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number)]
    return ended([sys.executable, *command, *args], cwd=cwd, env={**env, "ACCELERATE_USE_CPU": "true"})
