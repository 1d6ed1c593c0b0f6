"""Which task each tower was fine-tuned on: as a task's card, the tower's card or its record says, or as one is told."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hfcart.errors import UsageError
from hfcart.progress import Progress
from hfcart.quoting import plural, some
from hfcart.records import CardFacts, FinetuneRecord, FolderRecord, TrainedTask
from hfcart.sources.lineage import read_record_of
from hfcart.sources.towers import Ref, Tower
from hfcart.tasks.task_cards import TaskCard, name_of, parts, read_tasks

Key = TypeVar("Key")


@dataclass(frozen=True)
class Known:
    """What a tower is known by.

    Attributes:
        repo: on the Hub, None for a folder.
        facts: what its card says.
        trained: the one task that its own record of a fine-tuning names; None if there is none, or it was not read.
    """

    repo: str | None
    facts: CardFacts
    trained: TrainedTask | None = None


def fits(known: Known, task: TaskCard) -> int:
    """How surely a tower was fine-tuned on a task.

    Returns:
        2 if the task's card names the tower; 1 if the tower's card names the task's dataset, and no other, or of a
        folder of images its record names the task, with the same prompts, classes and, if known, files; else 0.
    """
    if known.repo is not None and known.repo in task.fine_tuned.values():
        return 2
    if task.dataset.folder is None:
        return int(known.facts.datasets == (task.dataset.repo,))
    own = known.trained
    if (
        own is None
        or (own.task, own.card_sha256) != (task.id, task.sha256)
        or not isinstance(own.dataset, FolderRecord)
    ):
        return 0
    return int(task.dataset.sha256 in (None, own.dataset.sha256))


def own_task(known: Known, tasks: Iterable[TaskCard]) -> TaskCard | None:
    """The task that a tower was fine-tuned on, the surest, and the first of equally sure ones; None if none fits."""
    found = max(tasks, key=lambda task: fits(known, task), default=None)
    return found if found is not None and fits(known, found) else None


def own_tower(task: TaskCard, towers: Iterable[tuple[Key, Known]]) -> Key | None:
    """The tower that was fine-tuned on a task, by the key it is given with, chosen as in `own_task`."""
    found = max(towers, key=lambda tower: fits(tower[1], task), default=None)
    return found[0] if found is not None and fits(found[1], task) else None


def known(tower: Tower, tasks: Iterable[TaskCard]) -> Known:
    """What a pinned source is known by: its record is read if one of the tasks is a folder, which no card names."""
    record = None
    if any(task.dataset.folder is not None for task in tasks):
        record = read_record_of(tower.store, Progress())
    trained = record.tasks[0] if isinstance(record, FinetuneRecord) and len(record.tasks) == 1 else None
    return Known(tower.store.repo, tower.facts, trained)


def match(towers: Sequence[Tower], typed: Sequence[Ref], entries: Sequence[str]) -> tuple[TaskCard, ...]:
    """The one task of every source.

    Args:
        towers: the sources, pinned.
        typed: how the user named each of them.
        entries: as `--tasks` takes them: task names, groups, cards, folders of cards, and SOURCE=TASK; each may hold
            several, with commas. Tasks that fit no source are allowed: groups hold many.

    Raises:
        UsageError: a source without a task or with several, an entry about no source, or an unknown task.
    """
    names = [_names(tower, text) for tower, text in zip(towers, typed, strict=True)]
    told, every = _split(entries, set().union(*names))
    tasks = read_tasks(every)  # all at once: two cards of one id are refused
    found: list[TaskCard | None] = [None] * len(towers)
    for source, task in told:
        one = _only(source, task)
        for place in [i for i, each in enumerate(names) if source in each]:
            if found[place] not in (None, one):
                raise UsageError(f"{source} is given two tasks, {getattr(found[place], 'id', '')} and {one.id}.")
            found[place] = one
    several: dict[str, list[TaskCard]] = {}
    for place, tower in enumerate(towers):
        if found[place] is None:
            by = known(tower, tasks)
            best = max(fits(by, task) for task in tasks)
            own = [task for task in tasks if best and fits(by, task) == best]
            found[place] = own[0] if len(own) == 1 else None
            several |= {tower.label: own} if len(own) > 1 else {}
    if None in found:
        lost = [(tower.label, _typed(text)) for tower, text, task in zip(towers, typed, found, strict=True) if not task]
        raise _open(lost, several, tasks[0], entries)
    return tuple(task for task in found if task is not None)


def own_towers(
    towers: Sequence[Tower], typed: Sequence[Ref], entries: Sequence[str]
) -> tuple[tuple[TaskCard, ...], tuple[int | None, ...]]:
    """Tasks, and for each the tower that was fine-tuned on it.

    Args:
        towers: the sources, pinned.
        typed: how the user named each of them.
        entries: as for `match`.

    Returns:
        The tasks in the order given, and for each the place of its own tower in `towers`; None if no card tells.

    Raises:
        UsageError: an entry about no source, one task of two sources, or an unknown task.
    """
    names = [_names(tower, text) for tower, text in zip(towers, typed, strict=True)]
    told, every = _split(entries, set().union(*names), "--adapt")
    places: dict[str, int] = {}
    for source, task in told:
        place, one = next(i for i, each in enumerate(names) if source in each), _only(source, task)
        if places.setdefault(one.id, place) != place:
            raise UsageError(f"{one.id} is given two sources, {towers[places[one.id]].label} and {source}.")
        if other := next((id_ for id_, where in places.items() if where == place and id_ != one.id), None):
            raise UsageError(f"{source} is given two tasks, {other} and {one.id}.")
    tasks = tuple(read_tasks(every))
    said = places_of(tasks, towers)
    return tasks, tuple(places.get(task.id, place) for task, place in zip(tasks, said, strict=True))


def places_of(tasks: Sequence[TaskCard], towers: Sequence[Tower]) -> tuple[int | None, ...]:
    """Of each task the place of the tower that was fine-tuned on it, as cards and records say; None if none does."""
    by = [(place, known(tower, tasks)) for place, tower in enumerate(towers)]
    return tuple(own_tower(task, by) for task in tasks)


def _names(tower: Tower, typed: Ref) -> set[str]:
    text = _typed(typed)
    return {text, text.rstrip("/"), tower.label, *([tower.store.repo] if tower.store.repo else [])}


def _typed(source: Ref) -> str:
    return source if isinstance(source, str) else source.path


def _split(
    entries: Sequence[str], sources: set[str], option: str = "--tasks"
) -> tuple[list[tuple[str, str]], list[str]]:
    """The entries as (source, task) where they say which source, and the tasks of all of them as they are given."""
    told: list[tuple[str, str]] = []
    every: list[str] = []
    for entry in [part for text in entries for part in parts(text)]:
        if "=" not in entry or Path(entry).exists():
            every.append(entry)
            continue
        # Either side may be a path with an = in it: the source decides where the text is cut.
        cuts = [(entry[:i], entry[i + 1 :]) for i, sign in enumerate(entry) if sign == "="]
        cut = next((cut for cut in cuts if cut[0] in sources), None)
        if cut is None:
            raise UsageError(
                f"{entry[:200]}: {cuts[0][0][:120]} is none of the sources, which are {some(sorted(sources))}.",
                hint=f"Write {option} SOURCE=TASK with the source as it is merged.",
            )
        told.append(cut)
        every.append(cut[1])
    return told, every


def _only(source: str, task: str) -> TaskCard:
    found = read_tasks([task])
    if len(found) != 1:
        raise UsageError(f"{source}={task} names {plural(len(found), 'task')}: a source has one.")
    return found[0]


def _open(
    lost: Sequence[tuple[str, str]],
    several: Mapping[str, Sequence[TaskCard]],
    example: TaskCard,
    entries: Sequence[str],
) -> UsageError:
    """The error for sources (label and what was typed) whose task is not known."""
    labels = [label for label, _ in lost]
    if none := [label for label in labels if label not in several]:
        it, its = ("it", "its card") if len(none) == 1 else ("them", "their cards")
        message = (
            f"It is not known which task was trained into {some(none)}: no card of these tasks names {it}, and "
            f"{its} name no dataset of these tasks alone."
        )
    else:
        message = "It is not certain which task was trained into which source."
    for label, own in several.items():
        message += f" Of these tasks, {' and '.join(task.id for task in own)} fit {label}."
    told = [f"{text}={name_of(several.get(label, [example])[0])}" for label, text in lost]
    return UsageError(message, hint=f"Say it, such as --tasks {shlex.quote(','.join([*entries, *told]))}")
