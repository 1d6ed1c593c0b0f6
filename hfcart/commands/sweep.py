"""Which rank and which scale? One decomposition, then every point of the grid rebuilt from it and measured.

A method that is anchor + λ · update(k) is taken apart once, to the largest rank: the anchor and one update a rank lie
on disk, and a point is one multiplication and one addition away. Measuring is the rest, and images are decoded once
for many points. What is done so far survives a kill: tensors by the writer's journal, points by one of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hfcart.clip.tensor_names import Group
from hfcart.commands.merge import preprocessor_of
from hfcart.engine.loop import workers as worker_threads
from hfcart.engine.plan import CONVERTED, Plan, make_plan
from hfcart.engine.reading import GroupReader, Held
from hfcart.engine.writing import GroupWriter
from hfcart.errors import UsageError
from hfcart.formats.shard_layout import Layout, lay_out
from hfcart.maths.low_rank import rank_of
from hfcart.methods import METHODS, function, keywords_of, method_of
from hfcart.progress import Progress, Within
from hfcart.quoting import plural, quoted
from hfcart.recipes.grid import usual_ranks, usual_scales
from hfcart.recipes.merge_recipe import Recipe, make
from hfcart.records import Environment, SweepPoint, SweepRecord
from hfcart.records.file_names import RECORDS, SWEEP_RECORD
from hfcart.sources.lineage import infer_base
from hfcart.sources.towers import fetch_all
from hfcart.system.device import Machine
from hfcart.system.disk import explain_os_errors
from hfcart.system.environment import current_environment, fingerprint
from hfcart.system.journal import Journal
from hfcart.system.tensor_files import TENSOR_FILES, TensorFiles
from hfcart.system.work_folder import WorkFolder
from hfcart.tasks.data import Split
from hfcart.zero_shot.heads import Base, check_architecture, make_head, open_base
from hfcart.zero_shot.measurement import Measurement
from hfcart.zero_shot.scoring import Scorer, nothing_decoded, score, towers_at_once

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

_POINTS = "points.jsonl"
_Setting = tuple[int, float]  # place of the rank among the grid's (1 and 1.0 are equal, and different ranks), and scale


@dataclass(frozen=True)
class _Grid:
    """What is measured on what: fixed before the work."""

    plan: Plan
    ranks: tuple[int | float, ...]
    scales: tuple[float, ...]
    reverse: bool

    @property
    def points(self) -> list[_Setting]:
        """The anchor alone first, then every rank (by its place) with every scale."""
        return [(0, 0.0), *((i, scale) for i in range(max(1, len(self.ranks))) for scale in self.scales)]

    def updated(self, group: Group) -> bool:
        """Whether the method adds anything to this group's anchor."""
        return group.matrix or self.plan.method.alike

    def layout(self) -> Layout:
        """Where the anchor and each rank's update of every tensor lie."""
        shapes = {f"anchor.{name}": shape for name, shape in self.plan.shapes.items()}
        for i in range(max(1, len(self.ranks))):
            names = [name for group in self.plan.groups if self.updated(group) for name in group.names]
            shapes |= {f"update{i}.{name}": self.plan.shapes[name] for name in names}
        return lay_out(shapes, "F32", 1 << 50)


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
    out: Path,
    overwrite: bool = False,
    progress: Progress,
) -> SweepRecord:
    """Measure a method at every rank with every scale, and write the curve, the heat map and the record.

    Args:
        sources: as for a merge.
        measurement: on what, and how. Its base is the method's too, if it needs one; references are not measured. What
            is measured on the test part is for drawing a curve, not for choosing.
        ranks: fractions in (0, 1] or whole numbers; () for a method without rank; None for the usual ones.
        scales: values of λ; None for the usual ones.
        method: one whose result is anchor + λ · update: cart, task_arithmetic or consensus.
        settings: its other parameters, which every point has; the defaults for those that are not given.
        qkv: split or fused.
        reverse: keep the lowest singular directions (only cart).
        out: folder to write; `out`.partial keeps the work and is gone at the end.
        overwrite: replace an earlier sweep.
        progress: told of each stage.

    Raises:
        UsageError: a method that has no such form, a rank it does not have, scales that are none.
        HfcartError: a source, the base or a dataset is not what it should be.
        KeyboardInterrupt: with a note; the same command goes on where it stopped.
    """
    method = method_of(method).name
    ranks = usual_ranks(method) if ranks is None else ranks
    scales = usual_scales(method) if scales is None else [float(scale) for scale in scales]
    recipe = _recipe(sources, method, ranks, scales, dict(settings or {}), measurement.base, qkv, reverse)
    machine = measurement.machine()
    with WorkFolder(out, RECORDS, overwrite=overwrite, aside=(CONVERTED,), redone=(CONVERTED, TENSOR_FILES)) as folder:
        # Each once: by its text, since 1 and 1.0 are equal numbers and different ranks.
        own_ranks, own_scales = tuple({repr(r): r for r in ranks}.values()), tuple(dict.fromkeys(scales))
        grid = _Grid(
            make_plan(recipe, folder.path / CONVERTED, progress, beneath=measurement.base),
            own_ranks,
            own_scales,
            reverse,
        )
        try:
            for rank in ranks:
                _check_rank(rank, grid.plan)
            fetch_all(grid.plan.towers_and_base, progress, stream=False)
            grid = dataclasses.replace(grid, plan=grid.plan.in_canonical_order())
            environment = current_environment(machine.device)
            ref = grid.plan.clip_ref if grid.plan.base else measurement.base
            bound = open_base(ref or infer_base(grid.plan.towers, progress), progress)
            check_architecture("the towers", grid.plan.architecture, bound)
            splits = measurement.splits(progress)
            decides = _fingerprint(grid, splits, bound, machine.precision, environment)
            folder.begin(decides)
            journal = Journal(folder.path / _POINTS, decides)
            with TensorFiles(folder.path, grid.layout()) as tensors:
                _take_apart(grid, GroupWriter(grid.plan, folder, tensors), machine, progress)
                points, images = _measure(grid, tensors, journal, splits, bound, machine, progress)
            record = _record(grid, splits, bound, points, images, environment)
            _finish(folder, record)
            return record
        finally:
            grid.plan.close()


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
    able = [name for name, line in METHODS.items() if line.updates]
    if method not in able:
        raise UsageError(
            f"A sweep takes {', '.join(able)}; {quoted(method)} is not anchor + λ · update.",
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


def _take_apart(grid: _Grid, writer: GroupWriter, machine: Machine, progress: Progress) -> None:
    """Write every group's anchor, and what each rank adds to it, in place of merging it."""
    parts = function(grid.plan.method.updates or "")
    _, other_rule = grid.plan.method.load()
    offered = {**grid.plan.settings, "ranks": grid.ranks, "reverse": grid.reverse}
    reader = GroupReader(grid.plan, machine.device)

    def apart(group: Group, held: Held) -> tuple[torch.Tensor, list[torch.Tensor]]:
        thetas, base = held.to(machine.device)
        if not grid.updated(group):
            return other_rule(thetas).tensor.cpu(), []
        anchor, updates = parts(thetas, **keywords_of(parts, {**offered, "base": base}))
        return anchor.cpu(), [update.cpu() for update in updates]

    def work(group: Group) -> None:
        anchor, updates = pool.drive(apart, group, reader.read(group))
        digests = writer.write(group, anchor, "anchor.")
        for i, update in enumerate(updates):
            digests |= writer.write(group, update, f"update{i}.")
        writer.note({"group": group.key, "sha256": digests})

    with worker_threads(machine.workers, machine.device, progress) as pool:
        pool.each("Decomposing", *writer.to_do(), work, reader.bytes_read)


def _fingerprint(grid: _Grid, splits: Sequence[Split], base: Base, precision: str, environment: Environment) -> str:
    return fingerprint(
        environment,
        grid.plan.recorded_recipe(),
        [tower.source.sha256 for tower in grid.plan.towers],
        [grid.ranks, grid.scales, grid.reverse, precision, base.key],
        [split.decides() for split in splits],
    )


def _measure(
    grid: _Grid,
    tensors: TensorFiles,
    journal: Journal,
    splits: Sequence[Split],
    base: Base,
    machine: Machine,
    progress: Progress,
) -> tuple[list[SweepPoint], tuple[int, ...]]:
    """Every point on every task, those of an earlier run taken from its journal; and how many images were scored."""
    done = {(line["rank"], line["scale"]): line for line in journal.lines}
    todo = [point for point in grid.points if point not in done]
    at_once = towers_at_once(grid.plan.parameters)
    heads = [make_head(base, split.task, progress) for split in splits]
    # What the merge of a point would write beside its weights, so that it is measured as it would be used.
    fields = preprocessor_of(grid.plan, progress) or base.preprocessor
    label = f"Measuring {plural(len(grid.points), 'point')}"
    progress.start(label, len(grid.points) * sum(map(len, splits)), "images")
    progress.advance((len(grid.points) - len(todo)) * sum(map(len, splits)))
    try:
        for start in range(0, len(todo), at_once):
            some = todo[start : start + at_once]
            scorers = [
                Scorer(
                    _tower(grid, tensors, (index, scale)),
                    base.projection,
                    fields,
                    machine,
                    label=f"rank {grid.ranks[index] if grid.ranks else 'all'}, scale {scale}",
                )
                for index, scale in some
            ]
            correct: list[list[int]] = [[] for _ in some]
            images: list[int] = []
            for split, head in zip(splits, heads, strict=True):
                counted = _Times(progress, len(some))
                found, undecodable = score(split, scorers, head, machine, progress=counted)
                images.append(int(found[0].sum()))
                if not images[-1]:
                    raise nothing_decoded(split, undecodable)
                for counts, confusion in zip(correct, found, strict=True):
                    counts.append(int(confusion.diagonal().sum()))
            lines = [
                {"rank": index, "scale": scale, "correct": counts, "images": images}
                for (index, scale), counts in zip(some, correct, strict=True)
            ]
            with explain_os_errors(journal.path.parent):
                journal.append(*lines)
            done |= dict(zip(some, lines, strict=True))
    finally:
        progress.finish()
    points = [
        SweepPoint(grid.ranks[point[0]] if grid.ranks and n else None, point[1], tuple(done[point]["correct"]))
        for n, point in enumerate(grid.points)
    ]
    return points, tuple(done[grid.points[0]]["images"])


class _Times(Within):
    """Counts an image once for every tower that it is scored with."""

    def __init__(self, outer: Progress, times: int) -> None:
        super().__init__(outer)
        self._times = times

    def advance(self, amount: int) -> None:
        super().advance(amount * self._times)


def _tower(grid: _Grid, stored: TensorFiles, point: _Setting) -> CLIPVisionModel:
    """θ(k, λ) = anchor + λ · update_k, from what the decomposition left on disk."""
    from hfcart.clip.models import vision_model

    index, scale = point

    def tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.frombuffer(bytearray(stored.read(name)), dtype=torch.float32).view(shape)

    tensors = {}
    for group in grid.plan.groups:
        for name in group.names:
            tensors[name] = tensor(f"anchor.{name}", grid.plan.shapes[name])
            if scale and grid.updated(group):
                tensors[name] += scale * tensor(f"update{index}.{name}", grid.plan.shapes[name])
    return vision_model(grid.plan.architecture, tensors)


def _record(
    grid: _Grid,
    splits: Sequence[Split],
    base: Base,
    points: Sequence[SweepPoint],
    images: tuple[int, ...],
    environment: Environment,
) -> SweepRecord:
    record = SweepRecord(
        method=grid.plan.method.name,
        anchor="base" if grid.plan.method.needs_base else "average",
        reverse=grid.reverse,
        qkv=grid.plan.recipe.qkv,
        sources=tuple((tower.label, tower.store.commit) for tower in grid.plan.towers),
        base=base.label,
        part=splits[0].part,
        tasks=tuple(split.task.id for split in splits),
        images=images,
        limit=splits[0].limit,
        ranks=grid.ranks,
        scales=grid.scales,
        parameters={n: v for n, v in grid.plan.settings.items() if n not in ("rank", "scale")},
        points=tuple(points),
        best=1,
        environment=environment,
    )
    return dataclasses.replace(record, best=max(range(1, len(points)), key=lambda i: record.accuracy(points[i])))


def _finish(folder: WorkFolder, record: SweepRecord) -> None:
    from hfcart.report.plots import draw_sweep

    for path in folder.path.glob(TENSOR_FILES):  # the anchor and the updates, gigabytes of large towers
        path.unlink()
    (folder.path / _POINTS).unlink()
    folder.add(SWEEP_RECORD, record.to_json().encode())
    with explain_os_errors(folder.path):
        draw_sweep(record, folder.path)
    folder.commit()
