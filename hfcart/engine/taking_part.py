"""What another process of a launch does for a merge when the first calls for it: see hfcart.system.processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfcart.engine.merging import merge_groups
from hfcart.engine.plan import Plan
from hfcart.engine.writing import GroupWriter
from hfcart.progress import Progress
from hfcart.records import Environment
from hfcart.system.device import choose_device
from hfcart.system.environment import refuse_another_kind
from hfcart.system.journal import Line
from hfcart.system.processes import Team
from hfcart.system.tensor_files import TensorFiles
from hfcart.system.threads import default_workers
from hfcart.system.work_folder import SharedJournal


def merge_part(
    team: Team, plan: Plan, path: Path, decides: str, mark: str, environment: Environment,
    done: Mapping[str, Line], facts: dict[str, Any] | None,
) -> None:  # fmt: skip
    """Merge what groups the other processes leave, into the files that the first has made.

    Args:
        team: of this process.
        plan: the first's.
        path: its work folder.
        decides: the work's fingerprint.
        mark: of the folder.
        environment: of the first.
        done: what earlier runs have done.
        facts: what they have measured of the whole towers.

    Raises:
        UsageError: another kind of machine.
        OutputError: another folder.
        HfcartError: as `merge_groups`.
    """
    try:
        device = choose_device(plan.recipe.device)
        refuse_another_kind(team, device, environment)
        journal = SharedJournal(path, team.place, decides, mark)
        with TensorFiles(path, plan.layout, made=True) as tensors:
            writer = GroupWriter(plan, journal, tensors)
            writer.done, writer.facts = dict(done), facts
            merge_groups(plan, writer, device, plan.recipe.workers or default_workers(), Progress(), team)
        hear_of_all(team, writer)  # once the files are closed: a shared disk has them then
    finally:
        plan.close()


def hear_of_all(team: Team, writer: GroupWriter) -> None:
    """Have every process know what all have written."""
    for lines in team.exchange(team.stage(), writer.own):
        writer.done |= lines
