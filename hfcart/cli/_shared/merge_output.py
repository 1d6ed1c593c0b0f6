"""What `hfcart merge` prints: the plan of a dry run, and where a finished merge is."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import TYPE_CHECKING, Any, NamedTuple

from hfcart.cli._shared.output import Output, size
from hfcart.engine.adaptation_tasks import objective_of
from hfcart.engine.coefficients import directions_in
from hfcart.engine.memory import front_bytes
from hfcart.methods import ADAPTING
from hfcart.quoting import plural, some
from hfcart.system.processes import launched

if TYPE_CHECKING:
    from hfcart.engine.plan import Plan
    from hfcart.hub import Published
    from hfcart.recipes.merge_recipe import Recipe
    from hfcart.records import MergeRecord
    from hfcart.sources.towers import Tower


def show_plan(plan: Plan, output: Output) -> None:
    """What `--dry-run` prints: the plan, and with --json the same facts as JSON."""
    from hfcart.system.threads import default_workers

    workers = plan.recipe.workers or default_workers()
    if output.json:
        output.data(json.dumps(_as_json(plan, workers, output.warnings), indent=2, ensure_ascii=False) + "\n")
        return
    rows = [
        (
            tower.label + (" (base)" if tower is plan.base else ""),
            (tower.store.commit or "local")[:12],
            ", ".join(tower.weights[:1]) + (f" + {len(tower.weights) - 1} more" if len(tower.weights) > 1 else ""),
            "/".join(_dtypes(tower)),
        )
        for tower in plan.towers_and_base
    ]
    settings = ", ".join(f"{name} {value}" for name, value in plan.recipe.parameters.items())
    output.table(["source", "commit", "weights", "dtype"], rows)
    output.result()
    facts = [
        ("method", plan.method.title + (f", {settings}" if settings else "")),
        *([("images", _images(plan))] if plan.tasks else []),
        *([("coefficients", _adaptation(plan))] if plan.recipe.adapt else []),
        ("tensors", f"{len(plan.shapes)} ({plan.parameters:,} parameters)"),
        *([("rank", _rank(plan))] if plan.directions else []),
        ("through the SVD", f"{plural(plan.low_rank_groups, 'matrix', 'matrices')} of each source"),
        *([("adapters", _adapters(plan))] if plan.adapters else []),
        *([("copied from the base", _copied(plan))] if plan.parts else []),
        ("to read from the Hub" if plan.recipe.stream else "to download", size(plan.download_bytes)),
        ("to write", f"{size(plan.output_bytes)} in {plan.recipe.folder} ({plural(len(plan.layout.sizes), 'file')})"),
        ("device", _device(plan)),
        *([("processes", f"{launched()}, which share the groups")] if launched() > 1 else []),
        ("memory, about", _peak(plan, workers)),
        *([("to publish", f"in {plan.recipe.push_to}")] if plan.recipe.push_to else []),
    ]
    output.table(["plan", ""], facts)


def _as_json(plan: Plan, workers: int, warnings: list[str]) -> dict[str, Any]:
    from hfcart.system.device import choose_device

    def tower(one: Tower) -> dict[str, Any]:
        source = one.source
        files = [dataclasses.asdict(file) for file in source.files]
        beneath = {"adapter_of": tower(one.base)} if one.base else {}
        return {"label": one.label, "repo": source.repo, "commit": source.commit, "sha256": source.sha256,
                "dtypes": _dtypes(one), "files": files, **beneath}  # fmt: skip

    return {
        "sources": [tower(one) for one in plan.towers],
        "base": tower(plan.base) if plan.base else None,
        "method": plan.method.name,
        "parameters": plan.settings,
        "images": _images(plan) if plan.tasks else None,
        "coefficients": _adaptation(plan) if plan.recipe.adapt else None,
        "copied": _copied(plan) if plan.parts else None,
        "adapters": _adapters_as_json(plan),
        "model_class": plan.model_class,
        "format": plan.recipe.format,
        "tensors": len(plan.shapes),
        "elements": plan.parameters,
        "decomposed": plan.low_rank_groups,
        "directions": [{"kept": k, "of": full, "matrices": count} for k, full, count in plan.directions],
        "download_bytes": plan.download_bytes,
        "output_bytes": plan.output_bytes,
        "output_files": len(plan.layout.sizes),
        "memory_bytes": _memory(plan, workers),
        "read_ahead_bytes": _ahead(plan, workers),
        "workers": workers,
        "processes": launched(),
        "device": choose_device(plan.recipe.device).type,
        "batch": batch._asdict() if (batch := _batch(plan)) else None,
        "out": str(plan.recipe.folder),
        "push_to": plan.recipe.push_to,
        "warnings": warnings,
    }


def _rank(plan: Plan) -> str:
    """Share, per cent and number say the same thing: "15 of 192 directions (8 %)"."""
    told = [f"{k} of {plural(full, 'direction')} ({_percent(k / full)})" for k, full, _ in plan.directions]
    return "; ".join(told)


def _adapters(plan: Plan) -> str:
    made = plan.adapters
    assert made is not None  # who calls looks
    held = "with biases, norms and embeddings" if plan.recipe.adapters_carry == "all" else "matrices alone"
    each = f"rank {made.rank}, {held}, {size(made.file_bytes)} each"
    return f"{len(made.names)} of {each}: {some(list(plan.sources.canonical(made.names)))}"


def _adapters_as_json(plan: Plan) -> list[dict[str, Any]] | None:
    if plan.adapters is None:
        return None
    pairs = zip(plan.sources.canonical(plan.adapters.names), plan.towers, strict=True)
    rank, bytes_ = plan.adapters.rank, plan.adapters.file_bytes
    return [{"name": name, "source": tower.label, "rank": rank, "bytes": bytes_} for name, tower in pairs]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.1g} %"


def _dtypes(tower: Tower) -> list[str]:
    return sorted({spec.dtype for spec in tower.tensors.values()})


def _images(plan: Plan) -> str:
    """Which images are looked at, as far as it is known before a dataset is opened."""
    towers = zip(plan.sources.given, plan.tasks, strict=True)
    own = ", ".join(f"{tower.label} on {task.found.id}" for tower, task in towers)
    if chosen := plan.method.chosen:
        values = ", ".join(f"{value:g}" for value in sorted(chosen.candidates))
        read = f"; every source is read {plural(len(plan.towers), 'time')} more" if plan.recipe.stream else ""
        return (
            f"labels of validation images (a tenth of the train split, at most 5,000) choose each source's "
            f"{chosen.parameter} from {values}: {own}{read}"
        )
    front = ""
    if plan.method.through_merged:
        images, grams = map(size, front_bytes(plan))
        front = f"; {grams} of Gram matrices in the cache, and {images} of hidden states while they are gathered"
    return f"{plan.settings['examples']} of each task, of the train split, without labels: {own}{front}"


def _peak(plan: Plan, workers: int) -> str:
    """What is taken of this machine's memory."""
    ahead = _ahead(plan, workers)
    each = " in each process" if launched() > 1 else ""
    told = f", {size(ahead)} of it for what is read ahead" if ahead else ""
    return f"{size(_memory(plan, workers))} at the peak, with {plural(workers, 'worker')}{each}{told}"


def _memory(plan: Plan, workers: int) -> int:
    """Expected peak of resident memory in bytes, choosing and what is read ahead included."""
    peak = plan.peak_bytes(workers) + _ahead(plan, workers)
    if not (plan.method.chosen and plan.tasks):
        return peak
    from hfcart.learning.thresholds import held_bytes

    return peak + held_bytes(plan)


def _ahead(plan: Plan, workers: int) -> int:
    """Bytes of groups that are read before a worker asks for them: none where processes share the groups."""
    if launched() > 1 and not plan.recipe.adapt:
        return 0
    from hfcart.engine.read_ahead import bytes_ahead
    from hfcart.system.device import choose_device

    return bytes_ahead(plan, workers, choose_device(plan.recipe.device))


class _Batch(NamedTuple):
    """How many matrices a device decomposes at once, the bytes for them, and how many they may be, if it says."""

    matrices: int
    bytes: int
    most_bytes: int | None


def _device(plan: Plan) -> str:
    """Where the algebra is done, and what a batch of matrices takes of a GPU's memory."""
    from hfcart.system.device import choose_device

    name, batch = choose_device(plan.recipe.device).type, _batch(plan)
    if batch is None:
        return name
    most = "" if batch.most_bytes is None else f" of the {size(batch.most_bytes)} that a batch may take"
    return f"{name}, {plural(batch.matrices, 'matrix', 'matrices')} at once in {size(batch.bytes)}{most}"


def _batch(plan: Plan) -> _Batch | None:
    """The largest batch; None where one matrix is decomposed after another."""
    from hfcart.maths.low_rank_batch import bytes_each, is_batched, matrices_at_once, room_of
    from hfcart.system.device import choose_device

    device = choose_device(plan.recipe.device)
    batched = plan.method.batched or plan.adapters or plan.recipe.adapt_ranks is not None
    if not (batched and is_batched(device)):
        return None
    tensors = [[plan.shapes[name] for name in group.names] for group in plan.groups if group.matrix]
    m, n = max(((sum(m for m, _ in each), each[0][1]) for each in tensors), key=lambda shape: bytes_each(*shape))
    room = room_of(device)
    matrices = matrices_at_once(len(plan.towers), m, n, room)
    return _Batch(matrices, matrices * bytes_each(m, n), room)


def _objective(plan: Plan) -> str:
    words = {
        "entropy": "to be sure of one class",
        "infomax": "to be sure of one class, and even over all",
        "distill": "to say what each task's own tower says",
    }
    return words[objective_of(plan.recipe, plan.learns)]


def _adaptation(plan: Plan) -> str:
    """How coefficients will be learned, and what that keeps on disk meanwhile."""
    from hfcart.learning.adapt.parts import part_bytes

    recipe, adaptive = plan.recipe, plan.recipe.adaptive
    assert adaptive is not None  # the recipe was checked
    given = recipe.given("steps")
    steps = next(p.default for p in ADAPTING if p.name == "steps") if given is None else given
    count = sum(directions_in(plan, group) or 0 for group in plan.groups)
    chosen = f", among them {count:,} directions of each tower to choose from" if count else ""
    return (
        f"{adaptive.name}: {plural(int(str(steps)), 'step')}, {adaptive.rounds} x {recipe.batch_size} "
        f"{recipe.adapt_split} images of each task a step, without labels, {_objective(plan)}; "
        f"{size(part_bytes(plan))} on disk while they are learned{chosen}"
    )


def _copied(plan: Plan) -> str:
    groups = [group for group in plan.groups if group.copied]
    count = sum(plan.group_elements(group) for group in groups)
    kind = "an OpenCLIP model" if plan.recipe.format == "open_clip" else "a CLIPModel"
    return f"{len(groups)} of the tensors ({count:,} parameters) and the tokenizer, for {kind}"


def show_result(recipe: Recipe, record: MergeRecord, published: Published | None, output: Output) -> None:
    """What a finished merge prints."""
    if output.json:
        output.data(record.to_json())
    energies = [t.energy for t in record.tensors if t.energy is not None]
    kept = f", {sum(energies) / len(energies):.0%} of the task vectors' energy kept" if energies else ""
    place = json.dumps(str(recipe.folder) if published is None else recipe.push_to, ensure_ascii=False)
    at = f', revision="{published.revision}"' if published and published.revision else ""
    load = f"{record.model_class}.from_pretrained({place}{at})"
    if recipe.format == "open_clip":
        name = f"hf-hub:{recipe.push_to}" if published else f"local-dir:{recipe.folder}"
        load = f"open_clip.create_model_and_transforms({json.dumps(name, ensure_ascii=False)})"
    elif record.model_class == "CLIPModel":
        load = f'pipeline("zero-shot-image-classification", model={place}{at})'
    others = ", ".join(each.name for each in record.adapters[:3]) + (", …" if len(record.adapters) > 3 else "")
    output.result()
    output.result(f"Merged {plural(len(record.sources), 'tower')} with {record.method.name}{kept}: {recipe.folder}")
    output.result(f"  card     {recipe.folder / 'README.md'}")
    if others:
        output.result(f"  adapters {others} in {recipe.folder / 'adapters'}, for peft: the card says how")
    if published is None:
        output.result(f"  load     {load}")
        output.result(f"  publish  hfcart push {shlex.quote(str(recipe.folder))} --push-to user/name")
    else:
        output.result(f"  load     {load}")
        output.result(f"  verify   hfcart verify {recipe.push_to}{f'@{published.revision}' if at else ''}")
        output.result(f"  online   {published.pull_request or published.url}")
    if output.quiet:
        output.essential(published.pull_request or published.url if published else str(recipe.folder))
