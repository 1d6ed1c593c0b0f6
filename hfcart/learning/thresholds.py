"""A method's parameter chosen for each source, by accuracy on labelled validation images of the source's own task.

For every source, a tower is made of each candidate as the method's paper has it, and all of them are scored side by
side on a tenth of the task's train split that nothing is trained on. Test images are never read. What a source's
candidates reached is noted at once, so that a killed merge measures nothing twice.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hfcart.clip.models import vision_model
from hfcart.clip.tensor_names import PROJECTION, Group
from hfcart.engine.loop import driving
from hfcart.engine.plan import Plan
from hfcart.engine.reading import GroupReader, Held
from hfcart.methods import Chosen, function
from hfcart.progress import Progress
from hfcart.quoting import plural
from hfcart.records import Selected, SelectionRecord
from hfcart.system.device import Machine, full_float32, one_blas_thread
from hfcart.system.disk import explain_os_errors
from hfcart.system.environment import current_environment, fingerprint
from hfcart.system.journal import Journal
from hfcart.tasks.data import Part, Split, open_split
from hfcart.tasks.task_cards import TaskCard
from hfcart.zero_shot.heads import Base, check_architecture, make_head, open_base
from hfcart.zero_shot.scoring import Scorer, nothing_decoded, score, towers_at_once

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

PART: Part = "validation"
_COUNTS = "counts.jsonl"
_VERSION = 2  # of the numbers: raised when the same inputs would give others


@dataclass(frozen=True)
class _Counts:
    """What one source's candidates reached.

    Attributes:
        correct: images recognised, by candidate, in the order that the method lists them.
        images: how many were scored.
        undecodable: how many could not be.
    """

    correct: tuple[int, ...]
    images: int
    undecodable: int

    @classmethod
    def of(cls, line: dict[str, Any]) -> _Counts:
        """From a line of the journal."""
        return cls(tuple(line["correct"]), line["images"], line["undecodable"])


def choose(
    plan: Plan,
    folder: Path,
    preprocessor: dict[str, Any] | None,
    device: torch.device,
    workers: int,
    progress: Progress,
) -> SelectionRecord:
    """Choose what the plan's method lets choose.

    Args:
        plan: fetched, in canonical order, with a task for each source.
        folder: where what is known so far is kept until the merge is done.
        preprocessor: of the merged tower; None for the base's.
        device: where candidates are made and run.
        workers: threads; changes no number.
        progress: told of each source.

    Returns:
        How it was chosen. Of equally good candidates the one that the method lists first was.

    Raises:
        UsageError: a task names no train split.
        SourceError: the base is no whole CLIP model, a dataset is not what it should be, or no image can be decoded.
        MismatchError: the base is not the towers'.
    """
    work = _Choosing(plan, folder, preprocessor, device, workers, progress)
    splits = [work.split(own.found, own.commit) for own in plan.own_tasks]  # all are opened before the first is read
    selected = []
    for place, (tower, split) in enumerate(zip(plan.towers, splits, strict=True)):
        found = work.counts(place, split)
        best = max(found.correct)
        value = work.chosen.candidates[found.correct.index(best)]
        progress.note(
            f"{tower.label}: {work.chosen.parameter} {value:g} ({best} of {plural(found.images, 'image')} right)."
        )
        selected.append(
            Selected(
                source=tower.label,
                task=split.task.id,
                title=split.task.title,
                dataset=split.dataset,
                images=found.images,
                undecodable=found.undecodable,
                card_sha256=split.task.sha256,
                correct=tuple(n for _, n in sorted(zip(work.chosen.candidates, found.correct, strict=True))),
                value=value,
            )
        )
    return SelectionRecord(
        parameter=work.chosen.parameter,
        candidates=tuple(sorted(work.chosen.candidates)),
        formula=work.chosen.formula,
        part=PART,
        base=work.base.label,
        base_commit=work.base.source.commit,
        precision=work.machine.precision,
        sources=tuple(selected),
    )


def held_bytes(plan: Plan) -> int:
    """Memory that the candidates take at most: their weights, and as float64 too, which decides between near ties."""
    assert plan.method.chosen is not None
    return 12 * plan.parameters * min(len(plan.method.chosen.candidates), towers_at_once(plan.parameters))


class _Choosing:
    """What all sources share."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        preprocessor: dict[str, Any] | None,
        device: torch.device,
        workers: int,
        progress: Progress,
    ) -> None:
        assert plan.method.chosen is not None
        self.plan, self.progress = plan, progress
        self.machine = Machine.on(device, plan.recipe.precision, workers)
        self.chosen: Chosen = plan.method.chosen
        self.base: Base = open_base(plan.clip_ref, progress)
        check_architecture("the towers", plan.architecture, self.base)
        self._preprocessor = preprocessor or self.base.preprocessor
        self._candidate = function(self.chosen.candidate)
        self._at_once = towers_at_once(plan.parameters)
        self._reader = GroupReader(plan, device)
        # Each line has a fingerprint of its own: counts do not depend on all that decides the merge.
        self._journal = Journal(folder / _COUNTS, f"counts {_VERSION}")
        self._noted = {line["of"]: _Counts.of(line) for line in self._journal.lines}
        self._splits: dict[str, Split] = {}

    def split(self, task: TaskCard, commit: str | None) -> Split:
        """The validation part of a task; opened once for all its towers."""
        key = f"{task.id} {task.sha256} {commit}"
        if key not in self._splits:
            # Read over the network where once is enough; otherwise kept, and read as often as it takes.
            once = self._at_once >= len(self.chosen.candidates)
            self._splits[key] = open_split(task, PART, commit=commit, streaming=once, progress=self.progress)
        return self._splits[key]

    def counts(self, place: int, split: Split) -> _Counts:
        """What the candidates of the tower in that place reach on its task: noted by an earlier run, or measured."""
        digest = fingerprint(
            current_environment(self.machine.device),
            [_VERSION, self.plan.method.name, self.chosen.parameter, self.chosen.candidates, place],
            [tower.source.sha256 for tower in self.plan.towers_and_base],
            dataclasses.asdict(self.plan.architecture),
            [self.base.key, self.base.source.sha256, self._preprocessor, self.machine.precision],
            split.decides(),
        )
        found = self._noted.get(digest)
        if found is None:
            found = self._measured(place, split)
            with explain_os_errors(self._journal.path):
                self._journal.append({"of": digest, **dataclasses.asdict(found)})
            self._noted[digest] = found
        if found.undecodable:
            self.progress.warn(split.left_out(found.undecodable))
        return found

    def _measured(self, place: int, split: Split) -> _Counts:
        head = make_head(self.base, split.task, self.progress)
        values, name, label = self.chosen.candidates, self.chosen.parameter, self.plan.towers[place].label
        passes = math.ceil(len(values) / self._at_once)
        correct: list[int] = []
        images = undecodable = 0
        which = f"{label} ({place + 1} of {len(self.plan.towers)})"
        self.progress.start(f"{plural(len(values), 'value')} of {name} for {which}", passes * len(split), "images")
        try:
            for start in range(0, len(values), self._at_once):
                some = values[start : start + self._at_once]
                scorers = [
                    Scorer(
                        tower,
                        self.base.projection,
                        self._preprocessor,
                        self.machine,
                        label=f"{label} with {name} {value:g}",
                    )
                    for value, tower in zip(some, self._towers(place, some), strict=True)
                ]
                found, undecodable = score(split, scorers, head, self.machine, progress=self.progress)
                images = int(found[0].sum())
                correct += [int(confusion.diagonal().sum()) for confusion in found]
        finally:
            self.progress.finish()
        if not images:
            hint = f"Look at {split.dataset.label}, or give {label} another task: --tasks {shlex.quote(label)}=TASK"
            raise nothing_decoded(split, undecodable, hint=hint)
        return _Counts(tuple(correct), images, undecodable)

    def _towers(self, place: int, values: tuple[float, ...]) -> list[CLIPVisionModel]:
        """A tower for each candidate, from one reading of every source. Each group is made by one thread, entry by
        entry: their number changes no bit."""
        made: list[dict[str, torch.Tensor]] = [{} for _ in values]

        def candidates(held: Held) -> list[torch.Tensor]:
            thetas, base = held.to(self.machine.device)
            settings = ({self.chosen.parameter: value} for value in values)
            return [self._candidate(thetas, base=base, task=place, **setting).cpu() for setting in settings]

        def one(group: Group) -> None:
            rows = [self.plan.shapes[name][0] for name in group.names]
            with self._reader.held(group) as held:
                found = drive(candidates, held)
            for whole, tensors in zip(found, made, strict=True):
                tensors.update(zip(group.names, torch.split(whole, rows) if len(rows) > 1 else [whole], strict=True))

        groups = [group for group in self.plan.groups if not group.copied and group.names != (PROJECTION,)]
        pool = ThreadPoolExecutor(self.machine.workers, "choose", initializer=torch.set_num_threads, initargs=(1,))
        with one_blas_thread(), full_float32(), driving(self.machine.device) as drive:
            try:
                with self._reader.ahead(groups, self.machine.workers):
                    list(pool.map(one, groups))
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        # The model has copies of them: each candidate's go as soon as it stands.
        return [vision_model(self.plan.architecture, made.pop(0)) for _ in values]
