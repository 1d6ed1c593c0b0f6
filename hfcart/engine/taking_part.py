"""What another process of a launch does for a merge when the first calls for it: see hfcart.system.processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hfcart.engine.merging import merge_groups
from hfcart.engine.plan import Plan
from hfcart.engine.writing import GroupWriter
from hfcart.formats.shard_layout import Layout
from hfcart.progress import Progress
from hfcart.records import Environment
from hfcart.system.device import choose_device
from hfcart.system.environment import refuse_another_kind
from hfcart.system.journal import Line
from hfcart.system.processes import Team
from hfcart.system.tensor_files import TensorFiles
from hfcart.system.threads import default_workers
from hfcart.system.work_folder import SharedFolder, SharedJournal


def merge_part(
    team: Team, plan: Plan, folder: SharedFolder, environment: Environment,
    done: Mapping[str, Line], facts: dict[str, Any] | None,
) -> None:  # fmt: skip
    """Merge what groups the other processes leave, into the files that the first has made.

    Args:
        team: of this process.
        plan: the first's.
        folder: its work folder.
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
        with shared_writer(team, plan, folder, plan.layout, done, facts) as writer:
            merge_groups(plan, writer, device, plan.recipe.workers or default_workers(), Progress(), team)
    finally:
        plan.close()


@contextmanager
def shared_writer(
    team: Team, plan: Plan, folder: SharedFolder, layout: Layout, done: Mapping[str, Line],
    facts: dict[str, Any] | None,
) -> Iterator[GroupWriter]:  # fmt: skip
    """A writer into the files that the first process has made, which tells all of them in the end what it has written.

    Args:
        team: of this process.
        plan: whose groups are written.
        folder: the first's work folder.
        layout: of the files.
        done: what earlier runs have done.
        facts: what they have measured of the whole towers: as the first, no process measures it again.

    Raises:
        OutputError: another folder.
    """
    journal = SharedJournal(folder, team.place)
    with TensorFiles(folder.path, layout, made=True) as tensors:
        writer = GroupWriter(plan, journal, tensors)
        writer.done, writer.facts = dict(done), facts
        yield writer
    hear_of_all(team, writer)  # once the files are closed: a shared disk has them then


def hear_of_all(team: Team, writer: GroupWriter) -> None:
    """Have every process know what all have written."""
    for lines in team.exchange(team.stage(), writer.own):
        writer.done |= lines
