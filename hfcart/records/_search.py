"""What a search over settings or methods found: sweep.json and compare.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hfcart.records._format import canonical_json
from hfcart.records._sources import Environment


@dataclass(frozen=True)
class SweepPoint:
    """One setting and what it reaches.

    Attributes:
        rank: as in the recipe; None for a method without one, and for the anchor alone.
        scale: λ; 0 for the anchor alone.
        correct: images recognised, one number a task.
        discordant: images that exactly one of this and the best point recognises, one number a task; () if that is
            not known.
        p: of this point being as good as the best, given these images, adjusted for the number of points
            (`hfcart.report.paired_test`); None for the best itself, and if it is not known.
    """

    rank: int | float | None
    scale: float
    correct: tuple[int, ...]
    discordant: tuple[int, ...] = ()
    p: float | None = None


@dataclass(frozen=True)
class AdapterSweep:
    """What a sweep of adapters knows beside its points: each task is measured through its own tower's adapter.

    Attributes:
        carry: `all`, where an adapter has its tower's own biases, norms and embeddings too, or `matrices`.
        owners: label of each task's own tower, in the order of the tasks.
        individual: images that these towers themselves recognise, one number a task.
        sizes: how many numbers an adapter of each rank holds.
        parameters: how many the tower holds.
    """

    carry: str
    owners: tuple[str, ...]
    individual: tuple[int, ...]
    sizes: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class SweepRecord:
    """A sweep; written as sweep.json.

    Attributes:
        method: its registry name.
        anchor: what scale 0 gives: `average` or `base`.
        reverse: whether the lowest singular directions were kept.
        qkv: split or fused.
        sources: label and commit (None for a folder) of each tower.
        base: label of the CLIP model behind the heads.
        part: which images the points were measured on.
        tasks: their ids.
        images: how many of each could be decoded and scored.
        limit: how many of each were asked for (a seeded sample), None for all.
        ranks: as in the recipe, () for a method without one.
        scales: values of λ.
        points: the anchor alone, then rank by rank, scale by scale.
        best: index of the point with the highest mean accuracy; the first of equal ones.
        environment: versions and device.
        parameters: the method's others, which every point has; what has a value for each source is in their order.
        adapters: of a sweep of adapters to the average; None for one of merges.
    """

    method: str
    anchor: str
    reverse: bool
    qkv: str
    sources: tuple[tuple[str, str | None], ...]
    base: str
    part: str
    tasks: tuple[str, ...]
    images: tuple[int, ...]
    limit: int | None
    ranks: tuple[int | float, ...]
    scales: tuple[float, ...]
    points: tuple[SweepPoint, ...]
    best: int
    environment: Environment
    parameters: dict[str, Any] = field(default_factory=dict)
    adapters: AdapterSweep | None = None
    format: int = 1

    def rows(self) -> list[tuple[SweepPoint, ...]]:
        """The grid: a row for each rank (one row for a method without), a point for each scale.

        By place, never by value: k = 1 and full rank, 1 and 1.0, are equal numbers.
        """
        wide = len(self.scales)
        return [self.points[start : start + wide] for start in range(1, len(self.points), wide)]

    def accuracy(self, point: SweepPoint) -> float:
        """Mean over tasks, in [0, 1]."""
        return sum(right / n for right, n in zip(point.correct, self.images, strict=True)) / len(self.images)

    def to_json(self) -> str:
        """Canonical JSON: same record, same bytes. Where there are no adapters, that field is left out."""
        return canonical_json(self, leave=() if self.adapters else ("adapters",))


@dataclass(frozen=True)
class Swept:
    """The sweep whose best point a merge took its rank and scale from, as far as the merge's record tells of it.

    Attributes:
        part: which images its points were measured on.
        tasks: their ids.
        images: how many were scored, over all tasks.
        points: how many settings were tried.
        accuracy: mean over tasks of the best one, in [0, 1].
        anchor: that of the average or the base alone.
        sha256: of its sweep.json.
    """

    part: str
    tasks: tuple[str, ...]
    images: int
    points: int
    accuracy: float
    anchor: float
    sha256: str


@dataclass(frozen=True)
class CompareRow:
    """One line of a comparison.

    Attributes:
        name: a method's registry name, or `pretrained` or `individual` (each task by the tower fine-tuned on it).
        needs: what the method needs; "" for the other two.
        parameters: every parameter that has a value, and the value.
        correct: images recognised, one number a task; None for a task it was not measured on.
        seconds: wall time of the merge in a process of its own; None for what is no merge.
        peak: bytes of memory that this process took at its peak.
        sha256: digest of the merged weights, as SourceRecord.sha256.
        discordant: images that exactly one of this merge and the best recognises, one number a task; () for what was
            not compared with it.
        p: of this merge being as good as the best, given these images, adjusted for the number of merges
            (`hfcart.report.paired_test`); None for the best itself and for what was not compared with it.
        error: why there is no result; None if there is one.
    """

    name: str
    needs: str
    parameters: dict[str, Any]
    correct: tuple[int | None, ...]
    seconds: float | None = None
    peak: int | None = None
    sha256: str | None = None
    error: str | None = None
    discordant: tuple[int, ...] = ()
    p: float | None = None


@dataclass(frozen=True)
class CompareRecord:
    """A comparison of methods; written as compare.json.

    Attributes:
        sources: label and commit (None for a folder) of each tower.
        base: label of the CLIP model behind the heads, which is also the base of the methods that need one.
        base_commit: its commit, None for a local folder.
        part: which images it was measured on.
        limit: how many images of each task were asked for, None for all.
        tasks: id and title of each.
        images: how many of each could be decoded and scored.
        precision: `float32` or `bfloat16` (autocast).
        rows: what was measured beside the merges first, then the methods in the order asked for.
        environment: versions and device.
        processes: so many merges at most ran side by side, in as many processes of a launch.
    """

    sources: tuple[tuple[str, str | None], ...]
    base: str
    base_commit: str | None
    part: str
    limit: int | None
    tasks: tuple[tuple[str, str], ...]
    images: tuple[int, ...]
    precision: str
    rows: tuple[CompareRow, ...]
    environment: Environment
    processes: int = 1
    format: int = 1

    def accuracies(self, row: CompareRow) -> tuple[float | None, ...]:
        """In [0, 1], one a task; None where nothing was measured."""
        pairs = zip(row.correct, self.images, strict=True)
        return tuple(right / n if right is not None and n else None for right, n in pairs)

    def average(self, row: CompareRow) -> float | None:
        """Mean over the tasks, in [0, 1]; None unless every task was measured: another mean would be no comparison."""
        known = [value for value in self.accuracies(row) if value is not None]
        return sum(known) / len(known) if len(known) == len(self.tasks) else None

    def normalised(self, row: CompareRow) -> float | None:
        """Mean over tasks of accuracy by the individual tower's; None where one of either is not known."""
        individual = next((self.accuracies(other) for other in self.rows if other.name == "individual"), ())
        ratios = [a / b for a, b in zip(self.accuracies(row), individual, strict=False) if a is not None and b]
        return sum(ratios) / len(ratios) if len(ratios) == len(self.tasks) else None

    @property
    def merges(self) -> list[CompareRow]:
        """What was merged and measured on every task."""
        return [row for row in self.rows if row.seconds is not None and self.average(row) is not None]

    @property
    def best(self) -> CompareRow | None:
        """The merge with the highest average; the first of equal ones."""
        return max(self.merges, key=lambda row: self.average(row) or 0.0, default=None)

    def to_json(self) -> str:
        """Canonical JSON: same record, same bytes. Of one process, their number is left out."""
        return canonical_json(self, leave=() if self.processes > 1 else ("processes",))
