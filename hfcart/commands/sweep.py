"""Which rank and which scale? One decomposition, then every point of the grid rebuilt from it and measured.

Images are decoded once for many points. Several processes of a launch share the tensors and the images. What is done
so far survives a kill: tensors by the writer's journal, points by one of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfcart.clip.images import DECODER
from hfcart.commands.merge import preprocessor_of
from hfcart.engine.adapters.grid import AdapterGrid
from hfcart.engine.grid import Grid, MergeGrid, take_apart
from hfcart.engine.plan import CONVERTED, Plan
from hfcart.engine.planning import make_plan
from hfcart.engine.points import Points, measure_too, take_apart_too
from hfcart.engine.taking_part import hear_of_all
from hfcart.engine.writing import GroupWriter
from hfcart.errors import UsageError
from hfcart.maths.low_rank import rank_of
from hfcart.methods import METHODS, method_of
from hfcart.progress import Progress
from hfcart.quoting import plural, quoted, some
from hfcart.recipes.finished_sweep import CARRY
from hfcart.recipes.grid import usual_ranks, usual_scales
from hfcart.recipes.merge_recipe import Recipe, make
from hfcart.records import AdapterSweep, Environment, SweepPoint, SweepRecord
from hfcart.records.file_names import RECORDS, SWEEP_RECORD
from hfcart.sources.lineage import infer_base
from hfcart.sources.own_tasks import match
from hfcart.sources.towers import fetch_all
from hfcart.system.device import Machine
from hfcart.system.disk import explain_os_errors
from hfcart.system.environment import current_environment, fingerprint
from hfcart.system.journal import Journal
from hfcart.system.processes import Team
from hfcart.system.shared_progress import shared_label
from hfcart.system.tensor_files import TENSOR_FILES, TensorFiles
from hfcart.system.work_folder import WorkFolder
from hfcart.tasks.copies import copies
from hfcart.tasks.data import Split
from hfcart.tasks.task_cards import TaskCard
from hfcart.zero_shot.heads import Base, check_architecture, make_head, open_base
from hfcart.zero_shot.measurement import Measurement
from hfcart.zero_shot.outcomes import beside_best
from hfcart.zero_shot.scoring import towers_at_once

_POINTS = "points.jsonl"


def run_sweep(
    sources: Sequence[str],
    measurement: Measurement,
    *,
    ranks: Sequence[int | float] | None = None,
    scales: Sequence[float] | None = None,
    method: str = "cart",
    settings: Mapping[str, Any] | None = None,
    qkv: str = "split",
    reverse: bool = False,
    adapters: Sequence[str] = (),
    adapters_carry: str = "all",
    out: Path,
    overwrite: bool = False,
    progress: Progress,
    team: Team | None = None,
) -> SweepRecord:
    """Measure a method at every rank with every scale, and write the curve, the heat map and the record.

    Or the average with an adapter for each task, at every rank: θ̄ + SVD_k(θ_t − θ̄) for the task's own tower θ_t
    (arXiv 2412.12153, Eq. 5), beside the average alone and the towers themselves.

    Args:
        sources: as for a merge.
        measurement: on what, and how. Its base is the method's too, if it needs one; references are not measured. What
            is measured on the test part is for drawing a curve, not for choosing.
        ranks: fractions in (0, 1] or whole numbers; () for a method without rank; None for the usual ones.
        scales: values of λ; None for the usual ones.
        method: one of those that a sweep takes (`Method.swept`).
        settings: its other parameters, which every point has; the defaults for those that are not given.
        qkv: split or fused.
        reverse: keep the lowest singular directions (only cart, and adapters).
        adapters: measure adapters on these tasks, each through its own tower: names, groups, cards and SOURCE=TASK, as
            `match` takes them, in place of the measurement's tasks; () for merges.
        adapters_carry: `all`, biases, norms and embeddings of its tower too, or `matrices` alone, as Eq. 5 has it.
        out: folder to write; `out`.partial keeps the work and is gone at the end.
        overwrite: replace an earlier sweep.
        progress: told of each stage.
        team: of this process, the first of several that share the groups and the images.

    Raises:
        UsageError: a method that has no such form, a rank it does not have, scales that are none; a source of no task.
        HfcartError: a source, the base or a dataset is not what it should be.
        KeyboardInterrupt: with a note; the same command goes on where it stopped.
    """
    method = method_of(method).name
    if adapters:
        _refuse_beside_adapters(method, scales, adapters_carry)
        scales = [1.0]
    ranks = usual_ranks(method) if ranks is None else ranks
    scales = usual_scales(method) if scales is None else [float(scale) for scale in scales]
    recipe = _recipe(sources, method, ranks, scales, dict(settings or {}), measurement.base, qkv, reverse)
    machine = measurement.machine()
    with WorkFolder(out, RECORDS, overwrite=overwrite, aside=(CONVERTED,), redone=(CONVERTED, TENSOR_FILES)) as folder:
        # Each once: by its text, since 1 and 1.0 are equal numbers and different ranks.
        own_ranks, own_scales = tuple({repr(r): r for r in ranks}.values()), tuple(dict.fromkeys(scales))
        plan = make_plan(recipe, folder.path / CONVERTED, progress, beneath=measurement.base)
        try:
            for rank in ranks:
                _check_rank(rank, plan)
            given = match(plan.towers, sources, adapters) if adapters else ()
            fetch_all(plan.towers_and_base, progress, stream=False)
            plan = plan.in_canonical_order()
            grid: Grid = MergeGrid(plan, own_ranks, own_scales, reverse)
            if given:
                own = plan.sources.canonical(given)
                tasks = tuple({task.id: task for task in given}.values())
                measurement = dataclasses.replace(measurement, tasks=tasks)
                places = tuple(own.index(task) for task in tasks)
                _say_shared([tower.label for tower in plan.towers], own, places, progress)
                grid = AdapterGrid(plan, own_ranks, own_scales, reverse, places, adapters_carry == "all")
            environment = current_environment(machine.device)
            ref = plan.clip_ref if plan.base else measurement.base
            bound = open_base(ref or infer_base(plan.towers, progress), progress)
            check_architecture("the towers", plan.architecture, bound)
            splits = measurement.splits(progress)
            decides = _fingerprint(grid, splits, bound, machine.precision, environment)
            folder.begin(decides)
            journal = Journal(folder.path / _POINTS, decides)
            _take_apart(grid, folder, machine, measurement.device, environment, progress, team)
            points = _points(grid, journal, splits, bound, machine, progress)
            with TensorFiles(folder.path, grid.layout(), made=True) as tensors:
                if team is not None:
                    team.call(measure_too, points, folder.path.absolute(), measurement.device, environment)
                measured = _measure(points, tensors, journal, progress, team)
            record = _record(grid, splits, bound, measured, environment)
            _finish(folder, record, splits)
            return record
        finally:
            plan.close()


def _say_shared(labels: Sequence[str], own: Sequence[TaskCard], places: Sequence[int], progress: Progress) -> None:
    """A task is measured through one adapter, whatever other sources were fine-tuned on it."""
    for place in places:
        if left := [label for at, label in enumerate(labels) if own[at] == own[place] and at != place]:
            progress.warn(
                f"{own[place].title} is the task of {some([labels[place], *left])}: it is measured through the adapter "
                f"of {labels[place]} alone."
            )


def _refuse_beside_adapters(method: str, scales: Sequence[float] | None, carry: str) -> None:
    if method != "cart":
        raise UsageError(f"Adapters are of the average, as CART has them: {method} has none to sweep.")
    if scales is not None:
        raise UsageError("An adapter is added as it is: it has no scale to sweep.", hint="Leave out --scale.")
    if carry not in CARRY:
        raise UsageError(f"--adapters-carry is {quoted(carry)}, expected one of {', '.join(CARRY)}.")


def _recipe(
    sources: Sequence[str],
    method: str,
    ranks: Sequence[int | float],
    scales: Sequence[float],
    settings: dict[str, Any],
    base: str | None,
    qkv: str,
    reverse: bool,
) -> Recipe:
    able = [name for name, line in METHODS.items() if line.swept]
    if method not in able:
        raise UsageError(
            f"A sweep takes {', '.join(able)}: what is anchor + λ · update, without images; {quoted(method)} is not.",
            hint="`hfcart methods` lists all.",
        )
    takes_rank = any(p.name == "rank" for p in METHODS[method].parameters)
    if takes_rank != bool(ranks):
        raise UsageError(f"{method} {'needs' if takes_rank else 'has no'} ranks to sweep.", hint="hfcart sweep --help")
    if reverse and not takes_rank:
        raise UsageError(f"{method} has no singular directions to keep in reverse.", hint="Leave out --reverse.")
    if not scales:
        raise UsageError("There is no scale to sweep.", hint="hfcart sweep --help")
    needed = {"base": base} if METHODS[method].needs_base else {}
    fields = {**settings, "sources": tuple(sources), "method": method, "qkv": qkv, "dtype": "float32", **needed}
    return make(fields, "the command line")


def _check_rank(rank: int | float, plan: Plan) -> None:
    smallest = min(min(plan.shapes[name]) for group in plan.groups if group.matrix for name in group.names)
    try:
        rank_of(rank, smallest, smallest)
    except ValueError as error:
        raise UsageError(f"--rank: {error}.") from None


def _fingerprint(grid: Grid, splits: Sequence[Split], base: Base, precision: str, environment: Environment) -> str:
    return fingerprint(
        environment,
        grid.plan.recorded_recipe(),
        [tower.source.sha256 for tower in grid.plan.towers],
        [*grid.decides, precision, base.key, DECODER],
        [split.decides() for split in splits],
    )


def _take_apart(
    grid: Grid, folder: WorkFolder, machine: Machine, device: str, environment: Environment, progress: Progress,
    team: Team | None,
) -> None:  # fmt: skip
    with TensorFiles(folder.path, grid.layout()) as tensors:
        writer = GroupWriter(grid.plan, folder, tensors)
        if team is not None:
            team.call(take_apart_too, grid, folder.shared(), machine, device, environment, writer.done, writer.facts)
        take_apart(grid, writer, machine, progress, team)
    if team is not None:
        hear_of_all(team, writer)


def _points(
    grid: Grid, journal: Journal, splits: Sequence[Split], base: Base, machine: Machine, progress: Progress
) -> Points:
    """What is left to measure."""
    done = {(line["rank"], line["scale"]) for line in journal.lines}
    todo = [point for point in grid.points if point not in done]
    heads = [make_head(base, split.task, progress) for split in splits]
    # What the merge of a point would write beside its weights, so that it is measured as it would be used.
    usual = preprocessor_of(grid.plan, progress) or base.preprocessor
    return Points(
        grid=grid,
        todo=todo,
        at_once=towers_at_once(grid.plan.parameters),
        splits=splits,
        heads=heads,
        projection=base.projection,
        preprocessors=[
            {point: grid.preprocessor(point, task) or usual for point in todo} for task in range(len(splits))
        ],
        machine=machine,
    )


def _measure(
    work: Points, tensors: TensorFiles, journal: Journal, progress: Progress, team: Team | None
) -> list[dict[str, Any]]:
    """What each point reaches, a line of the journal each; an earlier run's are taken."""
    done = {(line["rank"], line["scale"]): line for line in journal.lines}
    points, images = work.grid.points, sum(map(len, work.splits))
    progress.start(shared_label(f"Measuring {plural(len(points), 'point')}", team), len(points) * images, "images")
    progress.advance((len(points) - len(work.todo)) * images)
    try:
        for lines in work.measured(tensors, progress, team):
            with explain_os_errors(journal.path.parent):
                journal.append(*lines)
            done |= {(line["rank"], line["scale"]): line for line in lines}
    finally:
        progress.finish()
    return [done[point] for point in points]


def _record(
    grid: Grid,
    splits: Sequence[Split],
    base: Base,
    measured: Sequence[dict[str, Any]],
    environment: Environment,
) -> SweepRecord:
    adapters = None
    if isinstance(grid, AdapterGrid):
        *measured, alone = measured
        owners = tuple(grid.plan.towers[place].label for place in grid.own)
        carry = CARRY[not grid.carry_all]
        adapters = AdapterSweep(carry, owners, tuple(alone["correct"]), grid.sizes, grid.plan.parameters)
    points = tuple(
        SweepPoint(grid.ranks[index] if grid.ranks and n else None, scale, tuple(line["correct"]))
        for n, ((index, scale), line) in enumerate(zip(grid.points, measured, strict=False))
    )
    record = SweepRecord(
        method=grid.plan.method.name,
        anchor="base" if grid.plan.method.needs_base else "average",
        reverse=grid.reverse,
        qkv=grid.plan.recipe.qkv,
        sources=tuple((tower.label, tower.store.commit) for tower in grid.plan.towers),
        base=base.label,
        part=splits[0].part,
        tasks=tuple(split.task.id for split in splits),
        images=tuple(measured[0]["images"]),
        limit=splits[0].limit,
        ranks=grid.ranks,
        scales=grid.scales,
        parameters={n: v for n, v in grid.plan.settings.items() if n not in ("rank", "scale")},
        points=points,
        best=1,
        environment=environment,
        adapters=adapters,
    )
    best = max(range(1, len(points)), key=lambda i: record.accuracy(points[i]))
    told = zip(points, beside_best(best, measured[: len(points)]), strict=True)
    points = tuple(dataclasses.replace(point, discordant=differ, p=p) for point, (differ, p) in told)
    return dataclasses.replace(record, best=best, points=points)


def _finish(folder: WorkFolder, record: SweepRecord, splits: Sequence[Split]) -> None:
    from hfcart.report.plots import draw_sweep

    for path in folder.path.glob(TENSOR_FILES):  # the anchor and the updates, gigabytes of large towers
        path.unlink()
    (folder.path / _POINTS).unlink()
    folder.add(SWEEP_RECORD, record.to_json().encode())
    for name, card in copies((split.task, split.dataset) for split in splits).items():
        folder.add(name, card)
    with explain_os_errors(folder.path):
        draw_sweep(record, folder.path)
    folder.commit()
