"""The card's accuracies: the rows of its table, and the front matter's model-index that the Hub reads."""

from __future__ import annotations

from typing import Any

from hfcart.formats.markdown import code, one_line, words
from hfcart.quoting import plural
from hfcart.records import DatasetRecord, EarlierResults, EvalRecord, FolderRecord, Reference, TaskResult
from hfcart.report.accuracy import (
    Mean,
    accuracy,
    has_chart,
    mean_accuracy,
    mean_interval,
    mean_reference,
    normalised,
    whole_test_split,
    wilson,
)
from hfcart.report.links import HUB, images, on_the_hub, pinned

TASK_TYPE = "zero-shot-image-classification"
SOURCE = "hfcart"  # names our results among others'
PUBLISHED = "†"
OTHERS = ("adapter", "pretrained", "average", "individual")  # the towers that a result is set beside


def model_index(results: EvalRecord, name: str, repo: str | None) -> list[dict[str, Any]]:
    """The results as the Hub's model-index, as huggingface_hub's eval_results_to_model_index writes it.

    Accuracies are shares of 1, as transformers' own cards have them. Only whole test splits go in: an accuracy of
    a sample or of a validation part is on the card, with its name, and nowhere a reader might take it for more.

    Args:
        results: the evaluation.
        name: of the model.
        repo: the Hub repo that holds results.json, to be named as the source; None for no source.

    Returns:
        [{name, results}], or [] where no result is to be reported.
    """
    entries = [index_entry(result, f"{HUB}/{repo}" if repo else None) for result in reported(results)]
    return [{"name": name, "results": entries}] if entries else []


def reported(results: EvalRecord) -> list[TaskResult]:
    """The results that leave the card: whole test splits of datasets on the Hub, at a commit."""
    return [result for result in results.results if whole_test_split(result) and on_the_hub(result.dataset)]


def index_entry(result: TaskResult, page: str | None) -> dict[str, Any]:
    """One result of a model-index; `page` is its source."""
    data = result.dataset
    assert isinstance(data, DatasetRecord)  # `reported`
    dataset = {
        "name": one_line(result.title, 120) or "?",
        "type": data.repo,
        "config": one_line(data.config or "", 120),
        "split": one_line(data.split, 120),
        "revision": data.commit,
    }
    entry = {
        "task": {"type": TASK_TYPE, "name": "Zero-Shot Image Classification"},
        "dataset": {key: value for key, value in dataset.items() if value},
        "metrics": [{"type": "accuracy", "value": share(result), "name": metric_name(result)}],
    }
    return entry | ({"source": {"url": page, "name": SOURCE}} if page else {})


def share(result: TaskResult) -> float:
    """The accuracy that is reported, as a share of 1 with six decimals."""
    return round(accuracy(result) or 0.0, 6)


def metric_name(result: TaskResult) -> str:
    """`top-1 accuracy`, and what it leaves out."""
    if not result.undecodable:
        return "top-1 accuracy"
    return f"top-1 accuracy without {plural(result.undecodable, 'undecodable image')}"


def accuracy_section(record: EvalRecord) -> dict[str, Any]:
    """What the template needs for the section on accuracy, every text of a stranger's made safe."""
    results = record.results
    references = [ref for result in results for name in OTHERS if (ref := getattr(result, name)) is not None]
    whole, ratio = mean_accuracy(results), normalised(results)
    counts = [(result.correct, result.n) for result in results if result.n]
    return {
        "rows": [_row(result) for result in results],
        "mean": {
            "tasks": whole.tasks,
            "accuracy": _percent(whole),
            "interval": _span(*mean_interval(counts)) if counts else "",
            **{name: _mean_cell(results, name) for name in OTHERS},
        },
        "normalised": ratio if ratio.value is not None else None,
        "others": [name for name in OTHERS if any(getattr(result, name) for result in results)],
        "published": any(not reference.measured for reference in references),
        "partial": [(words(r.title), r.n + r.undecodable, r.rows) for r in results if r.partial],
        "undecodable": [(words(r.title), r.undecodable) for r in results if r.undecodable],
        "held_out": [(words(r.title), r.part) for r in results if r.part != "test"],
        "base": pinned(record.base, record.base_commit),
        "precision": code(record.precision),
        "environment": record.environment,
        "earlier": [_earlier(setting, results) for setting in record.earlier],
        "alt": _alt(results, whole) if has_chart(results) else "",
    }


def _earlier(setting: EarlierResults, results: tuple[TaskResult, ...]) -> dict[str, Any]:
    return {
        "titles": ", ".join(words(result.title) for result in results if result.task in setting.tasks),
        "base": pinned(setting.base, setting.base_commit),
        "precision": code(setting.precision),
        "environment": setting.environment,
    }


def _row(result: TaskResult) -> dict[str, str]:
    value = accuracy(result)
    low, high = wilson(result.correct, result.n)
    return {
        "task": words(result.title),
        "accuracy": "none" if value is None else f"**{100 * value:.1f}**",
        "interval": "" if value is None else _span(low, high),
        "images": f"{result.n:,} of {result.rows:,}" if result.partial else f"{result.n:,}",
        **{name: _reference(getattr(result, name)) for name in OTHERS},
        "dataset": _dataset(result),
    }


def _span(low: float, high: float) -> str:
    return f"{100 * low:.1f}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{100 * high:.1f}"


def _reference(reference: Reference | None) -> str:
    if reference is None:
        return ""
    return f"{100 * reference.accuracy:.1f}{'' if reference.measured else PUBLISHED}"


def _mean_cell(results: tuple[TaskResult, ...], name: str) -> str:
    """A mean to set beside that of the accuracies: only where it is over the same tasks."""
    found = mean_reference(getattr(result, name) for result in results if result.n)
    if found.tasks < mean_accuracy(results).tasks:
        return ""
    return _percent(found) + (PUBLISHED if found.published else "")


def _percent(mean: Mean) -> str:
    return "" if mean.value is None else f"{100 * mean.value:.1f}"


def _dataset(result: TaskResult) -> str:
    dataset, part = result.dataset, result.part
    parts = [words(dataset.config)] if isinstance(dataset, DatasetRecord) and dataset.config else []
    parts.append(f"{words(dataset.split)} split" + (f" ({words(part)} part)" if part != "test" else ""))
    beside = f", as {code(f'tasks/{result.task}.yaml')} says" if isinstance(dataset, FolderRecord) else ""
    return f"{images(dataset)}, {', '.join(parts)}{beside}"


def _alt(results: tuple[TaskResult, ...], mean: Mean) -> str:
    """What the chart shows, in plain words: they stand between brackets, where no code span may."""
    values = [value for result in results if (value := accuracy(result)) is not None]
    if len(values) < 2:
        return "Bar chart of the accuracy, beside that of other towers."
    span = f"from {100 * min(values):.1f}% to {100 * max(values):.1f}%"
    return f"Bar chart of the accuracy on each of {plural(len(results), 'task')}: {span}, {_percent(mean)}% on average."
