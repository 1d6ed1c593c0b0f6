"""What a merge's card says first: its base, its tasks, how good it is; and how each setting was chosen. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hfcart.formats.markdown import code, text, words
from hfcart.methods import METHODS
from hfcart.records import EvalRecord, MergeRecord, Reference, SourceRecord, TaskResult
from hfcart.records.check import is_commit
from hfcart.records.repo_id import is_repo_id
from hfcart.report.accuracy import accuracy, mean_accuracy, mean_reference
from hfcart.report.links import HUB, dataset_link, pinned
from hfcart.report.results_section import OTHERS, PUBLISHED
from hfcart.report.template import some

_MOST_TASKS = 10  # named in the first lines
_CALLED = {
    "adapter": "it with each task's own adapter",
    "pretrained": "the base alone",
    "average": "the plain average of the towers",
    "individual": "the individual towers, each on its own task",
}


@dataclass(frozen=True)
class KnownBase:
    """The CLIP model that the towers were fine-tuned from, and how it is known.

    Attributes:
        label: its name.
        commit: its commit; None where nobody pinned it, and for a local folder.
        stated: whether no more is known of it than what the towers' own cards say.
    """

    label: str
    commit: str | None
    stated: bool = False

    @property
    def repo(self) -> str | None:
        """Its id on the Hub, if it has one that opens; else None."""
        opens = is_repo_id(self.label) and (self.stated or is_commit(self.commit))
        return self.label if opens else None


def known_base(record: MergeRecord, results: EvalRecord | None) -> KnownBase | None:
    """The base by what was measured, merged or learned with it, else by the towers' cards if they agree; else None."""
    if results is not None:
        return KnownBase(results.base, results.base_commit)
    if record.base is not None:
        return KnownBase(record.base.label, record.base.commit)
    for used in (record.adaptation, record.selection):
        if used is not None:
            return KnownBase(used.base, used.base_commit)
    said = {source.facts.base_models for source in record.sources if source.facts.base_models}
    names = {name for models in said for name in models}
    (name,) = names if len(names) == 1 else (None,)
    return KnownBase(name, None, stated=True) if name and is_repo_id(name) else None


def first_lines(record: MergeRecord, results: EvalRecord | None) -> dict[str, Any]:
    """What the template needs for the first lines, every text of a stranger's made safe."""
    base = known_base(record, results)
    # What the card's lines of Python load with transformers cannot be in OpenCLIP's form.
    repo = base.repo if base and not _in_open_clip(record.base, base) else None
    return {
        "base": base and {"link": _link(base), "repo": repo, "commit": base.commit, "stated": base.stated},
        "tasks": some(_tasks(record, results), _MOST_TASKS),
        "accuracy": _accuracy(results.results) if results else None,
    }


def _in_open_clip(source: SourceRecord | None, base: KnownBase) -> bool:
    if source is None or source.repo != base.label:
        return False
    return any(file.name.startswith("open_clip") for file in source.files)


def chosen(record: MergeRecord) -> list[dict[str, str]]:
    """A row for each parameter: its name, value and letter, and how it was chosen, as far as the record knows."""
    method = METHODS.get(record.method.name)
    symbols = {p.name: p.symbol for p in method.parameters} if method else {}
    return [
        {"name": name, "value": code(value), "symbol": symbols.get(name, ""), "how": _how(name, value, record)}
        for name, value in sorted(record.method.parameters.items())
    ]


def _how(name: str, value: object, record: MergeRecord) -> str:
    if record.selection is not None and record.selection.parameter == name:
        return "by accuracy on labelled validation images, for each tower: see below"
    if record.swept is not None and name in ("rank", "scale"):
        return "best of a sweep, see below"
    method = METHODS.get(record.method.name)
    parameter = method.parameter(name) if method else None
    if parameter is not None and parameter.default == value and type(parameter.default) is type(value):
        return "hfcart's default"
    return "given; the record does not say why"


def _link(base: KnownBase) -> str:
    if base.repo and base.stated:
        return f"[{text(base.repo)}]({HUB}/{base.repo})"
    return pinned(base.label, base.commit)


def _tasks(record: MergeRecord, results: EvalRecord | None) -> list[str]:
    """What was measured, else what the method looked at, else the data sets that the towers' cards name."""
    seen = [data.title for data in record.data]
    seen += [each.title for each in record.selection.sources] if record.selection else []
    seen += [task.title for task in record.adaptation.tasks] if record.adaptation else []
    titles = [result.title for result in results.results] if results else seen
    if titles:
        return [words(title) for title in dict.fromkeys(titles)]
    names = dict.fromkeys(name for source in record.sources for name in source.facts.datasets)
    return list(map(dataset_link, names))


def _accuracy(results: Sequence[TaskResult]) -> dict[str, Any] | None:
    """The mean accuracy, of which images, and beside it those of others that are known for the same tasks."""
    scored = [result for result in results if accuracy(result) is not None]
    mean = mean_accuracy(scored)
    if mean.value is None:
        return None
    others = []
    for name in OTHERS:
        found: list[Reference | None] = [getattr(result, name) for result in scored]
        other = mean_reference(found)
        if other.value is not None and other.tasks == mean.tasks:
            mark = PUBLISHED if other.published else ""
            others.append(f"{100 * other.value:.1f}%{mark} for {_CALLED[name]}")
    return {"value": f"{100 * mean.value:.1f}", "tasks": mean.tasks, "images": _images(scored), "others": others}


def _images(results: Sequence[TaskResult]) -> str:
    parts = {result.part for result in results}
    of = f"the {parts.pop()} images" if len(parts) == 1 and parts <= {"test", "validation", "train"} else "images"
    return f"a sample of {of}" if any(result.partial for result in results) else of
