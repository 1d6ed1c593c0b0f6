"""An evaluation: a tower bound to its base, every task's split opened and scored, and what to compare it with."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce

from hfcart.commands.merge_again import merge_average
from hfcart.errors import HfcartError, SourceError
from hfcart.progress import Progress
from hfcart.quoting import plural
from hfcart.recipes.finished_merge import opens_again, read_record
from hfcart.records import ClassScore, EvalRecord, MergeRecord, Reference, SourceRecord, TaskResult
from hfcart.records.adapters import FOLDER
from hfcart.records.file_names import MAX_RECORD, RECORD
from hfcart.sources.own_tasks import Known, known, own_tower
from hfcart.sources.places import pin
from hfcart.sources.stores import LocalStore, Store
from hfcart.sources.towers import Ref
from hfcart.system.environment import current_environment
from hfcart.tasks.copies import copies
from hfcart.tasks.data import Split
from hfcart.tasks.task_cards import TaskCard
from hfcart.zero_shot.heads import Base, base_of, check_base, make_head, open_base
from hfcart.zero_shot.loaded_tower import LoadedTower, is_clip, load_tower
from hfcart.zero_shot.measurement import Measurement
from hfcart.zero_shot.scoring import Confusion, Scorer, nothing_decoded, score


@dataclass(frozen=True)
class Evaluation:
    """A tower's accuracy on every task.

    Attributes:
        record: the numbers.
        confusions: task id -> counts, a row for each true class, a column for each predicted one.
        cards: copies of the tasks' cards, by their file; none of tasks that come with hfcart.
        reports: whether this process is the one that writes and prints (one of those that accelerate started).
    """

    record: EvalRecord
    confusions: dict[str, list[list[int]]]
    cards: dict[str, bytes]
    reports: bool


def run_eval(ref: str, measurement: Measurement, progress: Progress) -> Evaluation:
    """Measure a tower's zero-shot accuracy on each task.

    Under `accelerate launch` the examples are split over the processes, and each returns the same record.

    Args:
        ref: a Hub repo (`user/name`, `user/name@revision`) or a folder with a CLIP vision tower in it.
        measurement: on what, and how.
        progress: told of each stage.

    Raises:
        HfcartError: the tower, its base or a dataset is not what it should be; not one image of a task can be decoded.
    """
    processes = PartialState(cpu=measurement.device == "cpu")
    theirs = processes.num_processes > 1 or measurement.device == "auto"
    machine = measurement.machine(processes.device if theirs else None)
    if not processes.is_main_process:
        progress = Progress()
    tower = load_tower(ref, progress, measurement.base)
    # A vision tower alone, given as what the adapter is added to, has no text side to bind it to.
    beneath = tower.base is not None and tower.base.given and not is_clip(tower.base)
    asked = None if beneath else measurement.base
    bound = open_base(asked or base_of(tower, progress), progress)
    check_base(tower, bound, progress)
    several = f", in {plural(processes.num_processes, 'process', 'processes')}" if processes.num_processes > 1 else ""
    progress.note(f"Base model: {bound.label}. Precision: {machine.precision} on {machine.device.type}{several}.")

    def scorer(loaded: LoadedTower) -> Scorer:
        fields = loaded.preprocessor or bound.preprocessor
        return Scorer(loaded.model, bound.projection, fields, machine, label=loaded.label)

    results: list[TaskResult] = []
    confusions: dict[str, list[list[int]]] = {}
    cards: dict[str, bytes] = {}
    with _others(tower, bound, measurement, progress) as others:
        own, shared = scorer(tower), {name: scorer(loaded) for name, loaded in others.shared.items()}
        adapters = adapters_of(tower, measurement.tasks) if measurement.adapters else ()
        for task in measurement.tasks:
            with processes.main_process_first():  # the others find the head, and a split's cache, ready made
                split = measurement.split(task, progress)
                head = make_head(bound, task, progress)
            if individual := others.individual(task, progress):
                check_base(individual, bound, progress)
            rivals = shared | ({"individual": scorer(individual)} if individual else {})
            if adapters and (adapted := _adapted(tower, adapters, task, progress)):
                rivals["adapter"] = scorer(adapted)
            progress.start(task.title, len(split) // processes.num_processes, "images")
            try:
                counts, undecodable = score(
                    split,
                    [own, *rivals.values()],
                    head,
                    machine,
                    shard=processes.process_index,
                    shards=processes.num_processes,
                    progress=progress,
                )
            finally:
                progress.finish()
            total = reduce(torch.stack([*counts, _alone(undecodable, counts[0])]).to(processes.device), "sum").cpu()
            if not int(total[0].sum()):  # the same in every process
                raise nothing_decoded(split, int(total[-1, 0, 0]))
            confusions[task.id] = total[0].tolist()
            cards |= copies([(task, split.dataset)])
            measured = {name: _share(total[1 + i], s.label) for i, (name, s) in enumerate(rivals.items())}
            result = _result(split, total[0], int(total[-1, 0, 0]))
            beside: dict[str, Any] = {**_published(task, bound, measurement.references, result), **measured}
            results.append(replace(result, **beside))
            if result.undecodable:
                progress.warn(split.left_out(result.undecodable))
    record = EvalRecord(
        tower=tower.label,
        weights_sha256=tower.source.sha256,
        base=bound.label,
        base_commit=bound.source.commit,
        precision=machine.precision,
        results=tuple(results),
        environment=current_environment(machine.device),
    )
    reports = processes.is_main_process
    processes.destroy_process_group()
    return Evaluation(record, confusions, cards, reports)


def _alone(count: int, like: Confusion) -> Confusion:
    out = torch.zeros_like(like)
    out[0, 0] = count
    return out


def _result(split: Split, confusion: Confusion, undecodable: int) -> TaskResult:
    task = split.task
    n, correct = confusion.sum(dim=1).tolist(), confusion.diagonal().tolist()
    return TaskResult(
        task=task.id,
        title=task.title,
        dataset=split.dataset,
        part=split.part,
        rows=split.rows,
        limit=split.limit,
        seed=split.seed,
        undecodable=undecodable,
        card_sha256=task.sha256,
        classes=tuple(ClassScore(*row) for row in zip(task.classnames, n, correct, strict=True)),
    )


def _share(confusion: Confusion, label: str) -> Reference | None:
    n = int(confusion.sum())
    return Reference(label, round(int(confusion.diagonal().sum()) / n, 6), measured=True) if n else None


def _published(task: TaskCard, base: Base, references: str, result: TaskResult) -> dict[str, Reference]:
    """The figures that are published for this base: of the whole test split, so for nothing else."""
    figures = task.published.get(base.source.repo or "")
    if references != "published" or figures is None or result.part != "test" or result.partial:
        return {}
    tower = task.fine_tuned.get(base.source.repo or "", f"{base.label}, fine-tuned")
    return {
        "pretrained": Reference(base.label, round(figures.pretrained / 100, 6), measured=False),
        "individual": Reference(tower, round(figures.fine_tuned / 100, 6), measured=False),
    }


@dataclass(frozen=True)
class _Others:
    """The towers to measure beside ours.

    Attributes:
        shared: those measured on every task, by the field of TaskResult that they fill.
        sources: what opens each source of the merge again, and what it is known by.
    """

    shared: Mapping[str, LoadedTower]
    sources: Sequence[tuple[Ref, Known]]

    def individual(self, task: TaskCard, progress: Progress) -> LoadedTower | None:
        """The source that was fine-tuned on this task, and on no other, as far as its card or record says."""
        if not self.sources:
            return None
        found = own_tower(task, self.sources)
        if found is None:
            progress.warn(f"None of the towers merged says that it was fine-tuned on {task.dataset.label} alone.")
            return None
        return load_tower(found, progress)


@contextmanager
def _others(tower: LoadedTower, base: Base, measurement: Measurement, progress: Progress) -> Iterator[_Others]:
    if measurement.references != "measured":
        yield _Others({}, ())
        return
    record = _merge_record(tower)
    shared = {}
    if tower.source.sha256 != base.source.sha256:  # of a CLIPModel that names no other base, nothing is known
        shared["pretrained"] = load_tower(base.again, progress)
    if record is None:
        what = "only its base" if shared else "nothing"
        progress.warn(f"{tower.label} is not a merge of hfcart's: {what} is measured beside it.")
        yield _Others(shared, ())
        return
    with tempfile.TemporaryDirectory(prefix="hfcart-average-") as folder:
        try:
            average = merge_average(record, Path(folder) / "average", progress)
        except SourceError as error:
            error.message = f"The towers that were merged cannot be measured. {error.message}"
            raise
        shared["average"] = replace(load_tower(str(average), Progress()), label="average")
        check_base(shared["average"], base, progress)
        again = [(ref, source) for source in record.sources if (ref := opens_again(source))]
        yield _Others(shared, [(ref, _known(source, measurement.tasks)) for ref, source in again])


def _known(source: SourceRecord, tasks: Sequence[TaskCard]) -> Known:
    """What a merge's source is known by: its card as the merge read it; where a task is a folder, its record."""
    ref = opens_again(source) if any(task.dataset.folder is not None for task in tasks) else None
    try:
        return known(pin(ref, Progress()), tasks) if ref else Known(source.repo, source.facts)
    except HfcartError:  # it is gone: that is told if it is to be measured
        return Known(source.repo, source.facts)


def adapters_of(tower: LoadedTower, tasks: Sequence[TaskCard]) -> list[tuple[str, Known]]:
    """What opens each adapter beside a merged tower, at its commit, and what the source it was made of is known by.

    Args:
        tower: the merged one.
        tasks: which it may have been made for.
    """
    record, store = _merge_record(tower), tower.store
    if record is None or not record.adapters or store.chosen:
        return []
    place = f"{store.ref}{'/' if store.path else ':'}" if store.ref else f"{_folder(store)}/"
    pairs = zip(record.adapters, record.sources, strict=True)
    return [(f"{place}{FOLDER}/{adapter.name}", _known(source, tasks)) for adapter, source in pairs]


def _folder(store: Store) -> str:
    assert isinstance(store, LocalStore)  # every other has a ref
    return str(store.folder)


def _adapted(
    tower: LoadedTower, adapters: Sequence[tuple[str, Known]], task: TaskCard, progress: Progress
) -> LoadedTower | None:
    """A tower with the adapter that was made of the tower fine-tuned on this task."""
    found = own_tower(task, adapters)
    if found is None:
        progress.note(f"{tower.label} has no adapter of {task.title}: it is measured by the tower alone.")
        return None
    return replace(load_tower(found, progress), label=f"{FOLDER}/{found.rpartition('/')[2]}")


def _merge_record(tower: LoadedTower) -> MergeRecord | None:
    data = tower.store.small(RECORD, MAX_RECORD)
    try:
        return read_record(data, f"{tower.label}/{RECORD}") if data is not None else None
    except HfcartError:
        return None
