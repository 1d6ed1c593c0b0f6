"""Which method is best for these towers? Each merged in turn from one download, and all measured on the same images.

Every merge runs in a process of its own, with the method's default parameters, so that its time and its peak memory
are the merge's alone. As many merged towers as fit are then measured side by side: images are decoded once for them.
Several processes of a launch make a merge each at a time, and share the images.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfcart.clip.images import DECODER
from hfcart.commands.compared_methods import EVERY_DIRECTION, Ref, blind, blind_ones, chosen, needs_of, settings_of
from hfcart.commands.separate_process import Apart, Merges, is_there, merge_too
from hfcart.engine.plan import CONVERTED, Plan
from hfcart.engine.planning import make_plan
from hfcart.errors import NonFiniteError, UsageError
from hfcart.methods import ADAPTIVE, RANKED, behind
from hfcart.progress import Progress
from hfcart.quoting import plural, quoted
from hfcart.recipes.merge_recipe import make
from hfcart.recipes.named import SourceTask
from hfcart.records import CompareRecord, CompareRow, Environment
from hfcart.records.file_names import COMPARE_RECORD, RECORDS
from hfcart.report.compare_table import as_markdown
from hfcart.sources.lineage import infer_base
from hfcart.sources.own_tasks import known, own_task
from hfcart.sources.towers import Reopened, fetch_all
from hfcart.system.device import Machine
from hfcart.system.disk import explain_os_errors
from hfcart.system.environment import current_environment, fingerprint
from hfcart.system.journal import Journal
from hfcart.system.processes import Team
from hfcart.system.shared_progress import shared_label
from hfcart.system.work_folder import WorkFolder
from hfcart.tasks.copies import copies
from hfcart.tasks.data import Split
from hfcart.tasks.task_cards import TaskCard
from hfcart.zero_shot.heads import Base, make_head, open_base
from hfcart.zero_shot.measurement import Measurement
from hfcart.zero_shot.outcomes import beside_best
from hfcart.zero_shot.scoring import towers_at_once
from hfcart.zero_shot.side_by_side import SideBySide, measure_beside

TABLE = "compare.md"
_REFERENCES = ("measured", "none")  # of those of a Measurement
_BESIDE = ("pretrained", "individual")
_JOURNAL = "methods.jsonl"


@dataclass
class _Comparison:
    """A comparison under way: what is merged and measured, fixed before the work, and what is done of it."""

    plan: Plan
    sources: dict[Ref, TaskCard | None]  # what opens a source as it is -> the task that it was fine-tuned on
    base: Base
    splits: list[Split]
    rows: tuple[str, ...]
    measurement: Measurement
    machine: Machine
    folder: WorkFolder
    progress: Progress
    environment: Environment
    team: Team | None = None
    journal: Journal | None = None
    merged: dict[str, dict[str, Any]] = field(default_factory=dict)
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, Apart] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)

    @property
    def towers(self) -> Path:
        """Where merged towers wait to be measured."""
        return self.folder.path / "towers"

    def warn(self, text: str) -> None:
        """Once: what one merge says of the sources, every other would repeat."""
        if text not in self.said:
            self.said.add(text)
            self.progress.warn(text)


def run_compare(
    sources: Sequence[str],
    measurement: Measurement,
    *,
    methods: Sequence[str] = (),
    out: Path,
    overwrite: bool = False,
    progress: Progress,
    team: Team | None = None,
) -> CompareRecord:
    """Merge with each method, measure each result on every task, and write the table, the chart and the record.

    Args:
        sources: as for a merge.
        measurement: on what, and how. Its base is that of the methods that need one, too; its references are
            "measured" for rows of the base and of each task's own tower as well, or "none".
        methods: names of the registry and of what `adapt` makes of its methods, each used with its default parameters;
            () for all that take these sources and learn no coefficients, ("all",) for those that do as well.
        out: folder to write; `out`.partial keeps the work and is gone at the end.
        overwrite: replace an earlier comparison.
        progress: told of each stage.
        team: of this process, the first of several that share the merges and the images.

    Returns:
        The record. A method that failed is a row of it with an error.

    Raises:
        UsageError: an unknown method, or one for another number of sources.
        HfcartError: a source, the base or a dataset is not what it should be.
        KeyboardInterrupt: with a note; the same command goes on where it stopped.
    """
    if measurement.references not in _REFERENCES:
        found = quoted(measurement.references)
        raise UsageError(f"--references is {found}, expected one of {', '.join(_REFERENCES)}.")
    tasks, base = measurement.tasks, measurement.base
    names, every = chosen(methods, len(sources))
    settings = {name: settings_of(sources, name, tasks[0]) for name in names}
    machine = measurement.machine()
    with WorkFolder(out, RECORDS, overwrite=overwrite, aside=(CONVERTED,), redone=(CONVERTED,)) as folder:
        asked = make({"sources": tuple(sources), "method": "task_arithmetic", "base": base})
        plan = make_plan(asked, folder.path / CONVERTED, progress)  # proves base and towers alike
        try:
            fetch_all(plan.towers_and_base, progress, stream=False)
            bound = open_base(plan.clip_ref if plan.base else base or infer_base(plan.towers, progress), progress)
            own = _sources(plan, sources, tasks)
            for left, why in blind_ones(names, own, tasks) if every else ():
                progress.warn(f"{' and '.join(left)} are left out. {why}")
                names = tuple(name for name in names if name not in left)
            work = _Comparison(
                plan=plan,
                sources=own,
                base=bound,
                splits=measurement.splits(progress),
                rows=(*(_BESIDE if measurement.references == "measured" else ()), *names),
                measurement=measurement,
                machine=machine,
                folder=folder,
                progress=progress,
                environment=current_environment(machine.device),
                team=team,
            )
            decides = _fingerprint(work, settings)
            folder.begin(decides)
            work.journal = Journal(folder.path / _JOURNAL, decides)
            _resume(work)
            _run(work)
            record = _record(work, settings)
            _finish(folder, record, work.splits)
            return record
        finally:
            plan.close()


def _sources(plan: Plan, given: Sequence[str], tasks: Sequence[TaskCard]) -> dict[Ref, TaskCard | None]:
    """What opens each source with the same weights, and the one of these tasks that it says it was fine-tuned on."""
    found: dict[Ref, TaskCard | None] = {}
    for text, tower in zip(given, plan.sources.given, strict=True):
        again = tower.again
        if isinstance(again, Reopened) and again.local:
            again = dataclasses.replace(again, path=text)  # as it was typed
        found[again] = own_task(known(tower, tasks), tasks)
    return found


def _run(work: _Comparison) -> None:
    """Merge as many as may be measured side by side, measure them, and so on until every row is done."""
    at_once = towers_at_once(work.plan.parameters)
    ahead = max(at_once, work.team.number if work.team else 1)  # no process is without a merge
    batch: list[str] = []
    todo = [row for row in work.rows if row not in work.measured]
    while todo or batch:
        while todo and len(batch) < at_once:
            some, todo = todo[: ahead - len(batch)], todo[ahead - len(batch) :]
            _merge(work, [row for row in some if row not in _BESIDE and row not in work.merged])
            batch += [row for row in some if row in _BESIDE or row in work.merged]
        if batch:
            _measure(work, batch[:at_once])
            batch = batch[at_once:]


def _merge(work: _Comparison, names: Sequence[str]) -> None:
    """Merge with each in a process of its own. Where that fails, the reason is kept."""
    ready = {name: _fields(work, name) for name in names}
    for name, why in ready.items():
        if isinstance(why, str):
            _fail(work, name, Apart(0.0, 0, None, why, ()))
    fields = {name: each for name, each in ready.items() if not isinstance(each, str)}
    if not fields:
        return
    merges = Merges(tuple(fields), tuple(fields.values()), work.towers.absolute(), work.measurement.device)
    if work.team is not None:
        work.team.call(merge_too, merges, work.folder.shared(), work.environment)
    for name, found, line in merges.made(lambda line: _write_line(work, line), work.progress, work.team):
        for warning in found.warnings:
            work.warn(warning)
        if line is None:
            _fail(work, name, found)
        elif name not in work.merged:  # another process has made it, and noted it in a journal of its own
            _write_line(work, line)


def _fail(work: _Comparison, name: str, found: Apart) -> None:
    work.progress.warn(f"{name} failed: {found.error}")
    work.failed[name] = found


def _fields(work: _Comparison, name: str) -> dict[str, Any] | str:
    """The recipe's fields of a merge, or why there can be none."""
    fields: dict[str, Any] = {
        "sources": [_plain(ref) for ref in work.sources],
        "method": ADAPTIVE.get(name, name),
        "workers": work.machine.workers,
    }
    method, pinned = behind(name), {s.task.id: SourceTask.of(s.task, s.dataset).plain(here=True) for s in work.splits}
    if method.needs_base or method.heads or name in ADAPTIVE:
        fields["base"] = _plain(work.base.again)
    if method.statistics:
        fields["tasks"] = [pinned[task.id] for task in work.sources.values() if task]
    if name in ADAPTIVE:
        fields["adapt"] = list(pinned.values())
    if name in RANKED:
        fields["adapt_ranks"] = EVERY_DIRECTION
    return blind(name, work.sources, [split.task for split in work.splits]) or fields


def _measure(work: _Comparison, batch: Sequence[str]) -> None:
    """Measure some rows side by side on every task; if one gives NaN, each alone, to see which."""
    try:
        measured = _score(work, batch)
    except NonFiniteError as error:
        if len(batch) > 1:
            for row in batch:
                _measure(work, [row])
            return
        work.progress.warn(error.message)
        work.failed[batch[0]] = Apart(0.0, 0, None, error.message, ())
    else:
        for line in measured:
            _write_line(work, line)
    for row in batch:
        if row in work.merged:
            shutil.rmtree(work.towers / work.merged[row]["folder"], ignore_errors=True)


def _score(work: _Comparison, batch: Sequence[str]) -> list[dict[str, Any]]:
    """A line of the journal for each row; of a task without a tower of its own, None for the individual one."""
    lines: list[dict[str, Any]] = [{"measured": row, "correct": [], "images": [], "right": []} for row in batch]
    label = ", ".join(batch) if len(batch) < 4 else f"{len(batch)} of {plural(len(work.rows), 'row')} side by side"
    beside, splits = _side_by_side(work, batch), work.splits
    if work.team is not None:
        work.team.call(measure_beside, beside, work.measurement.device, work.environment)
    work.progress.start(shared_label(f"Measuring {label}", work.team), sum(map(len, splits)), "images")
    try:
        for split, (names, found) in zip(splits, beside.measured(work.progress, work.team), strict=True):
            if found is not None and found.undecodable:
                work.warn(split.left_out(found.undecodable))
            counts = dict(zip(names, found.correct, strict=True)) if found else {}
            bits = dict(zip(names, found.right, strict=True)) if found else {}
            for line in lines:
                line["correct"].append(counts.get(line["measured"]))
                line["right"].append(bits.get(line["measured"]))
                line["images"].append(found.images if found else 0)
    finally:
        work.progress.finish()
    return lines


def _side_by_side(work: _Comparison, batch: Sequence[str]) -> SideBySide:
    def own(task: TaskCard) -> dict[str, Ref]:
        ref = _own_tower(work, task) if "individual" in batch else None
        return {} if ref is None else {"individual": ref}

    return SideBySide(
        towers={row: _place(work, row) for row in batch if row != "individual"},
        own=[own(split.task) for split in work.splits],
        splits=work.splits,
        heads=[make_head(work.base, split.task, Progress()) for split in work.splits],
        projection=work.base.projection,
        preprocessor=work.base.preprocessor,
        machine=work.machine,
    )


def _plain(ref: Ref) -> str | dict[str, Any]:
    """A source as a recipe's field."""
    return ref if isinstance(ref, str) else ref.as_field()


def _place(work: _Comparison, row: str) -> Ref:
    if row == "pretrained":
        return work.base.again
    return str(work.towers.absolute() / work.merged[row]["folder"] / "merged")


def _own_tower(work: _Comparison, task: TaskCard) -> Ref | None:
    found = next((ref for ref, own in work.sources.items() if own == task), None)
    if found is None:
        work.warn(f"None of the towers says that it was fine-tuned on {task.dataset.label} alone.")
    return found


def _fingerprint(work: _Comparison, settings: Mapping[str, Any]) -> str:
    own = sorted(task.id if task else "" for task in work.sources.values())
    return fingerprint(
        work.environment,
        sorted(tower.source.sha256 for tower in work.plan.towers),
        [work.base.key, work.machine.precision, DECODER, work.rows, settings, own],
        [split.decides() for split in work.splits],
    )


def _resume(work: _Comparison) -> None:
    """Take what an earlier run of the same comparison did."""
    assert work.journal is not None
    for line in work.journal.lines:
        _take(work, line)
    for line in work.folder.lines:  # what another process merged in the very round in which all were stopped
        if line["merged"] not in work.merged and is_there(work.towers, line):
            _write_line(work, line)
    gone = [row for row, line in work.merged.items() if not is_there(work.towers, line)]
    for row in gone:
        if row not in work.measured:  # it could not be measured: it is made, and told, again
            del work.merged[row]
    waiting = {line["folder"] for row, line in work.merged.items() if row not in work.measured}
    for path in work.towers.iterdir() if work.towers.is_dir() else ():
        if path.name not in waiting:
            shutil.rmtree(path, ignore_errors=True)
    if work.merged or work.measured:
        done = f"{len(work.measured)} of {plural(len(work.rows), 'row')} are"
        work.progress.note(f"Resuming: {done} measured already, {plural(len(waiting), 'merge')} wait for it.")


def _write_line(work: _Comparison, line: dict[str, Any]) -> None:
    assert work.journal is not None
    with explain_os_errors(work.folder.path):
        work.journal.append(line)
    _take(work, line)


def _take(work: _Comparison, line: dict[str, Any]) -> None:
    kind = "merged" if "merged" in line else "measured"
    getattr(work, kind)[line[kind]] = line


def _record(work: _Comparison, settings: Mapping[str, dict[str, Any]]) -> CompareRecord:
    images = [0] * len(work.splits)
    for line in work.measured.values():  # those of a task that has no tower of its own are counted by other rows
        images = [max(pair) for pair in zip(images, line["images"], strict=True)]
    rows = []
    for name in work.rows:
        failed, merged = work.failed.get(name), work.merged.get(name)
        correct = work.measured[name]["correct"] if name in work.measured else [None] * len(images)
        row = CompareRow(
            name, needs_of(name) if name in settings else "", settings.get(name, {}), tuple(correct),
            error=failed.error if failed else None,
        )  # fmt: skip
        if merged:
            row = dataclasses.replace(row, seconds=merged["seconds"], peak=merged["peak"], sha256=merged["sha256"])
        rows.append(row)
    record = CompareRecord(
        sources=tuple((tower.label, tower.store.commit) for tower in work.plan.sources.given),
        base=work.base.label,
        base_commit=work.base.source.commit,
        part=work.measurement.part,
        limit=work.measurement.limit,
        tasks=tuple((split.task.id, split.task.title) for split in work.splits),
        images=tuple(images),
        precision=work.machine.precision,
        rows=tuple(rows),
        environment=work.environment,
        processes=max((merged.get("processes", 1) for merged in work.merged.values()), default=1),
    )
    names = [row.name for row in record.merges]
    if len(names) < 2 or record.best is None:
        return record
    found = beside_best(names.index(record.best.name), [work.measured[name] for name in names])
    for name, (differ, p) in zip(names, found, strict=True):
        rows[work.rows.index(name)] = dataclasses.replace(rows[work.rows.index(name)], discordant=differ, p=p)
    return dataclasses.replace(record, rows=tuple(rows))


def _finish(folder: WorkFolder, record: CompareRecord, splits: Sequence[Split]) -> None:
    from hfcart.report.plots import draw_compare

    folder.refuse_existing()  # before the journal goes
    shutil.rmtree(folder.path / "towers", ignore_errors=True)
    folder.add(COMPARE_RECORD, record.to_json().encode())
    folder.add(TABLE, as_markdown(record).encode())
    for name, card in copies((split.task, split.dataset) for split in splits).items():
        folder.add(name, card)
    with explain_os_errors(folder.path):
        draw_compare(record, folder.path)
    (folder.path / _JOURNAL).unlink(missing_ok=True)
    folder.commit()
