"""What the functions return: the records, which know besides where they are, and show themselves in a notebook.

Each is the record that the command writes, field by field. Accuracies are in [0, 1]; tables show them in per cent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from hfcart.quoting import plural, printable
from hfcart.records import CompareRecord, EvalRecord, FinetuneRecord, MergeRecord, SweepPoint, SweepRecord

if TYPE_CHECKING:
    import pandas

    from hfcart import hub


class _Of:
    """A record with what became of it beside its fields."""

    @classmethod
    def of(cls, record: object, **more: object) -> Self:
        """The same values, and more."""
        made = object.__new__(cls)
        vars(made).update(vars(record) | more)
        return made

    def __repr__(self) -> str:
        """One line: what it is, and what it comes to."""
        return f"<{printable(self._title(), 300)}>"

    def _title(self) -> str:
        raise NotImplementedError


class Published(_Of):
    """What a push led to.

    Attributes:
        url: page of the repo.
        commit: the commit made, or the head that held exactly these files already.
        pull_request: page of the pull request, None if none was opened.
        revision: where it can be read until it is merged, `refs/pr/N`; None for main.
        changed: False if there was nothing to change.
    """

    url: str
    commit: str
    pull_request: str | None
    revision: str | None
    changed: bool

    @classmethod
    def made(cls, done: hub.Published | None) -> Self | None:
        """Of what the push returned; None of None."""
        return cls.of(done, revision=done.revision) if done else None

    def _title(self) -> str:
        return f"Published: {self.pull_request or self.url}, commit {self.commit[:12]}"

    def _repr_html_(self) -> str:
        from hfcart.api._html import shown

        pull = [("pull request", self.pull_request)] if self.pull_request else []
        title = "Published" if self.changed else "Published already: nothing was sent"
        return shown(title, facts=[("online", self.url), *pull, ("commit", self.commit)])


class Evaluated(_Of, EvalRecord):
    """Zero-shot accuracy on each task, and where the results are.

    Attributes:
        folder: with results.json and the chart; None if nothing was written.
        published: the commit in the Hub repo, None if none was asked for.
    """

    folder: Path | None
    published: Published | None

    @property
    def mean(self) -> float | None:
        """Mean of the tasks' accuracies, in [0, 1], each task counting once; None if no image was scored."""
        from hfcart.report.accuracy import mean_accuracy

        return mean_accuracy(self.results).value

    def to_frame(self) -> pandas.DataFrame:
        """A row a task: accuracy, its 95 % interval, n, and the other towers' accuracies; in [0, 1]."""
        from hfcart.report.accuracy import accuracy, wilson

        rows = []
        for one in self.results:
            low, high = wilson(one.correct, one.n)
            row = {"task": one.task, "title": one.title, "part": one.part, "accuracy": accuracy(one)}
            row |= {"low": low, "high": high, "n": one.n, "correct": one.correct, "partial": one.partial}
            for name in ("adapter", "pretrained", "average", "individual"):
                other = getattr(one, name)
                row[name] = other.accuracy if other else None
            rows.append(row)
        return _frame(rows, "task")

    def _title(self) -> str:
        mean = "no image scored" if self.mean is None else f"mean accuracy {100 * self.mean:.1f} %"
        return f"{self.tower} on {_count(self.results, 'task')}: {mean}"

    def _repr_html_(self) -> str:
        from hfcart.api._html import shown
        from hfcart.report.eval_table import columns, remarks, rows

        return shown(self._title(), columns=columns(self), rows=rows(self), remarks=remarks(self))


class Merged(_Of, MergeRecord):
    """A merge's record, and where the merge is.

    Attributes:
        folder: with the tower, its card, its record.
        results: the evaluation, None without `eval`.
        published: the commit on the Hub, None without `push_to`.
    """

    folder: Path
    results: Evaluated | None
    published: Published | None

    @property
    def mean(self) -> float | None:
        """Mean accuracy over the tasks of `eval`, in [0, 1]; None without it."""
        return self.results.mean if self.results else None

    @property
    def energy(self) -> float | None:
        """Share of the task vectors' energy kept, mean over the matrices, in [0, 1]; None where no SVD was made."""
        known = [tensor.energy for tensor in self.tensors if tensor.energy is not None]
        return sum(known) / len(known) if known else None

    def to_frame(self) -> pandas.DataFrame:
        """A row a tensor: shape, rule, the rank kept of how many, and the share of energy kept."""
        keep = ("name", "shape", "dtype", "rule", "rank", "full_rank", "energy", "fallback")
        return _frame([{name: getattr(tensor, name) for name in keep} for tensor in self.tensors], "name")

    def _title(self) -> str:
        kept = f", {self.energy:.0%} of the task vectors' energy kept" if self.energy is not None else ""
        return f"{_count(self.sources, 'tower')} merged with {self.method.name}{kept}: {self.folder}"

    def _library(self) -> str:
        return "OpenCLIP" if self.recipe.get("format") == "open_clip" else self.model_class

    def _repr_html_(self) -> str:
        from hfcart.api._html import shown

        sources = [(s.label, "the Hub" if s.repo else "a folder", (s.commit or s.sha256)[:12]) for s in self.sources]
        facts = [
            ("method", self.method.title),
            *((name, _value(value)) for name, value in self.method.parameters.items()),
            *([("base", self.base.label)] if self.base else []),
            ("parameters", f"{self.parameters:,} in {self.dtype}, for {self._library()}"),
            *([("online", self.published.pull_request or self.published.url)] if self.published else []),
        ]
        own = shown(self._title(), facts=facts, columns=["source", "from", "commit or sha256"], rows=sources)
        return own + (self.results._repr_html_() if self.results else "")


class Swept(_Of, SweepRecord):
    """A sweep's record, and where it is.

    Attributes:
        folder: with sweep.json and the figures.
    """

    folder: Path

    @property
    def mean(self) -> float:
        """The best point's mean accuracy, in [0, 1]."""
        return self.accuracy(self.points[self.best])

    @property
    def setting(self) -> dict[str, Any]:
        """The best point as keywords: `hfcart.merge(sources, **sweep.setting)` makes it."""
        best = self.points[self.best]
        method = {"method": self.method} if self.method != "cart" else {}
        qkv = {"qkv": self.qkv} if self.qkv != "split" else {}
        if self.adapters:
            carry = {"adapters_carry": self.adapters.carry} if self.adapters.carry != "all" else {}
            return {"adapters": best.rank, **carry, **qkv}
        rank = {"rank": best.rank} if best.rank is not None else {}
        return {**rank, "scale": best.scale, **method, **qkv, **self.parameters}

    @property
    def curve(self) -> Path:
        """The figure of accuracy over rank or scale."""
        return self.folder / "figures" / "curve.png"

    def to_frame(self) -> pandas.DataFrame:
        """A row a point, the anchor alone first: rank, scale, mean accuracy and each task's, in [0, 1].

        Where `p` is 0.05 or more, the images cannot tell the point from the best. Of adapters the last row is the
        tasks' own towers, which have no rank.
        """
        rows = []
        own = [SweepPoint(None, 1.0, self.adapters.individual)] if self.adapters else []
        for point in (*self.points, *own):
            tasks = {task: right / n for task, right, n in zip(self.tasks, point.correct, self.images, strict=True)}
            row: dict[str, object] = {"rank": point.rank, "scale": point.scale, "accuracy": self.accuracy(point)}
            row["p"] = point.p
            rows.append(row | tasks)
        return _frame(rows)

    def _title(self) -> str:
        said = ", ".join(f"{name} {_value(value)}" for name, value in self.setting.items())
        return f"Sweep of {self.method} over {_count(self.points, 'point')}: best {100 * self.mean:.1f} % with {said}"

    def _repr_html_(self) -> str:
        from hfcart.api._html import shown
        from hfcart.report.sweep_table import columns, remarks, rows

        return shown(self._title(), columns=columns(self), rows=rows(self), remarks=remarks(self))


class Compared(_Of, CompareRecord):
    """A comparison's record, and where it is.

    Attributes:
        folder: with compare.json, the table and the chart.
    """

    folder: Path

    @property
    def mean(self) -> float | None:
        """The highest mean accuracy of a method, in [0, 1]; None if none was measured."""
        return self.average(self.best) if self.best else None

    def to_frame(self) -> pandas.DataFrame:
        """A row a method: mean accuracy and each task's in [0, 1], seconds and bytes of the merge, or its error.

        Where `p` is 0.05 or more, the images cannot tell the method from the one with the highest mean.
        """
        rows = []
        for row in self.rows:
            own = {"method": row.name, "accuracy": self.average(row), "normalised": self.normalised(row), "p": row.p}
            tasks = {task: value for (task, _), value in zip(self.tasks, self.accuracies(row), strict=True)}
            rows.append(own | tasks | {"seconds": row.seconds, "peak": row.peak, "error": row.error})
        return _frame(rows, "method")

    def _title(self) -> str:
        best = f"best {self.best.name}, {100 * self.mean:.1f} %" if self.best and self.mean is not None else "none done"
        found = f": {best}" if self.part != "test" or not self.best else ", test images"
        return f"{_count(self.rows, 'row')} compared on {_count(self.tasks, 'task')}{found}"

    def _repr_html_(self) -> str:
        from hfcart.api._html import shown
        from hfcart.report.compare_table import cells, columns, evidence, explain

        failed = [f"{row.name} failed: {row.error}" for row in self.rows if row.error]
        table = [cells(self, row) for row in self.rows]
        return shown(
            self._title(), columns=columns(self), rows=table, remarks=[*evidence(self), explain(self), *failed]
        )


class Finetuned(_Of, FinetuneRecord):
    """A fine-tuning's record, and where the tower is.

    Attributes:
        folder: with the tower, its card, its record, and the log of its losses.
        published: the commit on the Hub, None without `push_to`.
    """

    folder: Path
    published: Published | None

    def to_frame(self) -> pandas.DataFrame:
        """The log of the training, results/training.csv: a row for each line of it."""
        import pandas

        return pandas.read_csv(self.folder / "results" / "training.csv")

    def _title(self) -> str:
        tasks, base = ", ".join(task.task for task in self.tasks), self.sources[0].label
        losses = f"training loss {self.method.first_loss:.4f} to {self.method.last_loss:.4f}"
        return f"{base} fine-tuned on {tasks}, {losses}: {self.folder}"

    def _repr_html_(self) -> str:
        from hfcart.api._html import shown

        online = [("online", self.published.pull_request or self.published.url)] if self.published else []
        rows = [(task.task, task.title, f"{task.images:,}") for task in self.tasks]
        return shown(self._title(), facts=online, columns=["task", "title", "training images"], rows=rows)


@dataclass(frozen=True, repr=False)
class Verified(_Of):
    """Whether the repeated merge has the recorded bytes; true if it has, false if not.

    Attributes:
        identical: whether every byte of the weights is the same.
        sentence: the finding, in words.
        differences: tensor -> (largest absolute difference, ‖difference‖ / ‖recorded‖).
    """

    identical: bool
    sentence: str
    differences: Mapping[str, tuple[float, float]]

    def __bool__(self) -> bool:
        """Whether it is identical: `assert hfcart.verify(...)` means what it says."""
        return self.identical

    def to_frame(self) -> pandas.DataFrame:
        """A row a tensor that differs."""
        found = self.differences.items()
        return _frame([{"tensor": n, "largest": a, "relative": r} for n, (a, r) in found], "tensor")

    def _title(self) -> str:
        return self.sentence

    def _repr_html_(self) -> str:
        from hfcart.api._html import shown

        rows = [(name, f"{a:.3g}", f"{r:.3g}") for name, (a, r) in self.differences.items()]
        return shown(self.sentence, columns=["tensor", "largest difference", "relative"] * bool(rows), rows=rows)


def _frame(rows: Sequence[Mapping[str, Any]], index: str | None = None) -> pandas.DataFrame:
    import pandas  # takes most of a second

    found = pandas.DataFrame(list(rows))
    return found.set_index(index) if index and rows else found


def _count(things: Sequence[object], one: str) -> str:
    return plural(len(things), one)


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
