"""The card of a fine-tuning: a FinetuneRecord rendered through `cards/finetune_card.md.jinja`. Pure: no network."""

from __future__ import annotations

import math
import shlex
from typing import Any

from hfcart.errors import UsageError
from hfcart.formats.markdown import code
from hfcart.recipes.finished_finetuning import FROZEN
from hfcart.records import DatasetRecord, EvalRecord, FinetuneRecord, FolderRecord, ImagesRecord, SourceRecord
from hfcart.records.repo_id import is_repo_id
from hfcart.report.accuracy import belongs, described
from hfcart.report.licences import license_fields
from hfcart.report.links import images, page_of, pinned
from hfcart.report.results_section import accuracy_section, model_index
from hfcart.report.template import front_matter as as_yaml
from hfcart.report.template import render
from hfcart.tasks.task_cards import GROUPS

TEMPLATE = "finetune_card.md.jinja"


def render_finetune_card(record: FinetuneRecord, *, repo: str | None = None, results: EvalRecord | None = None) -> str:
    """The README.md of a fine-tuning: same record, same text.

    Args:
        record: everything the card says.
        repo: the Hub repo it is published to, "user/name"; without it the card speaks of its own folder.
        results: an evaluation; those of other weights are not shown.

    Raises:
        UsageError: `repo` is not a Hub repo, or the template (which users may edit) does not render.
    """
    if repo is not None and not is_repo_id(repo, namespace=True):
        raise UsageError(f"{repo!r} is not a Hub repo.", hint="Give it as user/name.")
    results = results if results and belongs(results, record) else None
    (base,) = record.sources
    return render(
        TEMPLATE,
        metadata=as_yaml(finetune_front_matter(record, repo=repo, results=results)),
        record=record,
        repo=repo,
        base=_source(base),
        local=base.repo is None,
        license=base.facts.license,
        tasks=[(task, _dataset(task.dataset)) for task in record.tasks],
        validation=_validation(record),
        frozen=_frozen(record),
        own=[task.task for task in record.tasks if task.task not in max(GROUPS.values(), key=len)],
        accuracy=accuracy_section(results) if results else None,
        command=_command(record),
        checksums="\n".join(f"{digest}  {name}" for name, digest in sorted(record.files.items())),
    )


def finetune_front_matter(
    record: FinetuneRecord, *, repo: str | None = None, results: EvalRecord | None = None
) -> dict[str, Any]:
    """The card's metadata, with the Hub's field names: `hfcart merge` finds base and data sets by them."""
    (base,) = record.sources
    base_model = [base.repo] if base.repo and is_repo_id(base.repo) else []
    names = [task.dataset.repo for task in record.tasks if isinstance(task.dataset, DatasetRecord)]
    datasets = dict.fromkeys(name for name in names if is_repo_id(name))
    metadata: dict[str, Any] = {
        **license_fields(base),
        "library_name": "transformers",
        "pipeline_tag": "image-feature-extraction",
        "base_model": base_model,
        "base_model_relation": "finetune" if base_model else None,
        "datasets": list(datasets),
        "tags": ["hfcart", "clip", "multi-task"] if len(record.tasks) > 1 else ["hfcart", "clip"],
    }
    if results is not None:
        name = repo.partition("/")[2] if repo else "-".join(["finetune", *(task.task for task in record.tasks[:3])])
        metadata["model-index"] = model_index(results, name, repo)
    return {key: value for key, value in metadata.items() if value}


def _frozen(record: FinetuneRecord) -> dict[str, Any] | None:
    """What the card says of the parts that were not trained; None if all were."""
    kept = [tensor for tensor in record.tensors if tensor.rule == FROZEN]
    if not kept:
        return None
    numbers = sum(math.prod(tensor.shape) for tensor in kept)
    return {
        "names": ", ".join(code(name) for name in record.recipe["freeze"]),
        "tensors": len(kept),
        "of": len(record.tensors),
        "numbers": numbers,
        "share": numbers / record.parameters,
    }


def _validation(record: FinetuneRecord) -> dict[str, Any] | None:
    """What the card says of the validation; None if nobody looked."""
    curve = record.curve
    if curve is None or curve.validation is None:
        return None
    seen = curve.validation
    kept, best = seen.at(curve.kept), seen.best
    return {
        "images": sum(seen.images),
        "looks": len(seen.looks) - 1,
        "before": described(seen, seen.looks[0]),
        "after": described(seen, kept) if kept else None,
        "better": (best.step, described(seen, best)) if best and kept and best.correct != kept.correct else None,
    }


def _source(source: SourceRecord) -> str:
    if source.repo and page_of(source.repo, source.commit):
        return pinned(source.repo, source.commit, between="at")
    return f"{code(source.label)} (a local folder whose weights have sha256 {code(source.sha256[:12])})"


def _dataset(dataset: ImagesRecord) -> str:
    if isinstance(dataset, FolderRecord):
        return f"{images(dataset)}, split {code(dataset.split)}"
    name = pinned(dataset.repo, dataset.commit, "datasets/", between="at")
    return name + (f", config {code(dataset.config)}" if dataset.config else "") + f", split {code(dataset.split)}"


def _command(record: FinetuneRecord) -> str:
    recipe = dict(record.recipe)
    base, tasks = recipe.pop("base", ""), recipe.pop("tasks", [])
    lines = ["hfcart finetune " + shlex.quote(str(base.get("path") if isinstance(base, dict) else base))]
    lines += [f"--tasks {shlex.quote(str(task))}" for task in tasks]
    for name, value in sorted(recipe.items()):
        text_of = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        lines.append(f"--{name.replace('_', '-')} {shlex.quote(text_of)}")
    return " \\\n  ".join([*lines, "--out again"])
