"""The merge, from a recipe to a finished folder."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcart.clip.tensor_names import COPIED
from hfcart.commands.merge_adapters import any_fallback, finish_adapters
from hfcart.engine.described import describing_files, read_describing_back, refuse_undescribable
from hfcart.engine.plan import CONVERTED, TORCH_NAME, Plan
from hfcart.engine.planning import make_plan
from hfcart.errors import DistantError, OutputError
from hfcart.formats.shard_layout import INDEX
from hfcart.learning.adapt.log import LOG, adaptation_log
from hfcart.maths.similarity import compare
from hfcart.progress import Progress
from hfcart.quoting import plural
from hfcart.recipes.finished_merge import RECIPE, method_record
from hfcart.recipes.finished_sweep import read_sweep, refuse_other_sources
from hfcart.recipes.merge_recipe import Recipe
from hfcart.recipes.recipe_files import as_yaml
from hfcart.records import Environment, MergeRecord, SelectionRecord, Similarity, Swept, TensorRecord
from hfcart.records.adapters import FOLDER as ADAPTERS
from hfcart.records.file_names import RECORD, RECORDS
from hfcart.report.merge_card import render_card
from hfcart.sources.preprocessor import PreprocessorError, read_preprocessor
from hfcart.sources.stores import LocalStore
from hfcart.sources.towers import fetch_all
from hfcart.system.disk import explain_os_errors
from hfcart.system.journal import Line
from hfcart.system.processes import Team
from hfcart.system.tensor_files import TENSOR_FILES, TensorFiles, read_back, refuse_without_room
from hfcart.system.threads import default_workers
from hfcart.system.work_folder import WorkFolder, work_path
from hfcart.tasks.copies import copies

if TYPE_CHECKING:
    from torch import device

    from hfcart.hub import Target
    from hfcart.learning.adapt.learned import Learned

# What learns from images before the merge keeps its work in these, inside the merge's own work folder.
_ADAPTATION, _CHOOSING = "adaptation", "choosing"
_FARTHEST = 0.5  # ‖θ_t − ref‖ / ‖ref‖; fine-tuning moves a tower by a few per cent, another ancestor by more than 1


def merge_folder(
    recipe: Recipe, progress: Progress, target: Target | None = None, team: Team | None = None
) -> MergeRecord:
    """Merge, verify, and write the folder; nothing is measured or published, whatever the recipe says.

    Args:
        recipe: what was asked.
        progress: told of each stage.
        target: where the result is going to be published, if the push is to replace what is there.
        team: of this process, the first of several that share the work.

    Raises:
        HfcartError: see hfcart.errors; the partial folder can be resumed unless the error says otherwise.
        KeyboardInterrupt: with a note that says how to go on.
    """
    with _work_folder(recipe) as folder:
        return _merge_into(folder, recipe, progress, target, team)


def _work_folder(recipe: Recipe) -> WorkFolder:
    return WorkFolder(
        recipe.folder,
        RECORDS,
        overwrite=recipe.overwrite,
        aside=(CONVERTED, work_path(Path(_ADAPTATION)).name, _CHOOSING),
        redone=(CONVERTED, TENSOR_FILES, ADAPTERS),
    )


def _merge_into(
    folder: WorkFolder, recipe: Recipe, progress: Progress, target: Target | None, team: Team | None
) -> MergeRecord:
    plan = make_plan(recipe, folder.path / CONVERTED, progress, target)
    try:
        swept = _swept(plan)
        plan, device = _prepared(plan, folder.out, progress, stream=recipe.stream)
        from hfcart.engine.merging import merge_groups
        from hfcart.engine.taking_part import hear_of_all, merge_part
        from hfcart.engine.writing import GroupWriter
        from hfcart.system.environment import current_environment

        learned, cards = None, dict[str, bytes]()
        own = [task.found for task in plan.own_tasks] if plan.tasks else []
        if recipe.adapt:
            from hfcart.learning.adapt.loop import adapt  # transformers and accelerate take seconds to import

            fields = preprocessor_of(plan, Progress())
            if team is not None:
                from hfcart.learning.adapt.taking_part import join_accelerate, learn

                team.call(learn, plan, folder.path / _ADAPTATION, fields)
                join_accelerate(recipe)
            learned = adapt(plan, folder.path / _ADAPTATION, fields, progress)
            plan, cards = plan.adapted(learned.coefficients, learned.directions), learned.cards
        environment = current_environment(device)
        workers = recipe.workers or default_workers()
        selection = None
        if plan.method.chosen and plan.tasks:
            from hfcart.learning.thresholds import choose  # imports datasets, which takes seconds

            fields = preprocessor_of(plan, Progress())
            selection = choose(plan, folder.path / _CHOOSING, fields, device, workers, progress)
            plan = plan.settled(selection.parameter, [each.value for each in selection.sources])
        if plan.method.statistics:
            from hfcart.learning.statistics import gather  # imports datasets, which takes seconds

            plan = plan.informed(gather(plan, device, workers, progress))
        if looked := plan.gathered.data if plan.gathered else selection.sources if selection else ():
            cards = copies(zip(own, (seen.dataset for seen in looked), strict=True))
        folder.begin(_fingerprint(plan, environment))
        with TensorFiles(folder.path, plan.layout) as tensors:
            writer = GroupWriter(plan, folder, tensors)
            if writer.done:
                progress.note(f"Resuming: {len(writer.done)} of {plural(len(plan.groups), 'group')} done already.")
            if team is not None:
                team.call(merge_part, plan, folder.shared(), environment, writer.done, writer.facts)
            merge_groups(plan, writer, device, workers, progress, team)
        if team is not None:
            hear_of_all(team, writer)
        return _finish(folder, plan, writer.done, environment, learned, selection, swept, cards, progress)
    finally:
        plan.close()


def rehearse(recipe: Recipe, progress: Progress, target: Target | None = None) -> Plan:
    """Everything that a merge says and refuses before its first byte; no weights are fetched, nothing is written.

    Exceptions are pickles and weight files outside LFS: without the whole of them nothing is known of them.

    Args:
        recipe: what was asked.
        progress: told of each stage, and of every warning that the merge would give.
        target: as for `merge_folder`.

    Returns:
        The plan, its towers in canonical order.

    Raises:
        HfcartError: what the merge would raise up to there.
    """
    folder = _work_folder(recipe)
    folder.refuse_in_the_way()
    with tempfile.TemporaryDirectory() as converted:
        plan = make_plan(recipe, Path(converted), progress, target)
        try:
            _swept(plan)
            plan, device = _prepared(plan, folder.out, progress, stream=True)
            from hfcart.system.environment import current_environment

            # What is learned from images first has a part in the fingerprint, by which other work is known.
            if not (recipe.adapt or plan.method.statistics or (plan.method.chosen and plan.tasks)):
                folder.refuse_other_work(_fingerprint(plan, current_environment(device)))
            refuse_without_room(folder.path, plan.layout)
            return plan
        finally:
            plan.close()


def _swept(plan: Plan) -> Swept | None:
    """The sweep that the recipe took rank and scale from. Raises UsageError if it is one of other towers."""
    if plan.recipe.sweep is None:
        return None
    record, swept = read_sweep(Path(plan.recipe.sweep))
    refuse_other_sources(record, [(tower.label, tower.store.commit) for tower in plan.towers], plan.recipe.sweep)
    return swept


def _prepared(plan: Plan, out: Path, progress: Progress, *, stream: bool) -> tuple[Plan, device]:
    """What comes before the first image or byte: the sources fetched, in canonical order, and all that is odd said."""
    _refuse_to_replace_a_source(plan, out)
    # torch takes seconds to import: a source that does not fit is refused before that.
    from hfcart.engine.reading import other_projections
    from hfcart.system.device import choose_device

    found = choose_device(plan.recipe.device)
    fetch_all(plan.towers_and_base, progress, stream=stream)
    plan = plan.in_canonical_order()
    _warn_of_sources(plan, progress)
    fields = preprocessor_of(plan, progress)  # said once, and before the first image is read
    refuse_undescribable(plan, fields, progress)
    if others := other_projections(plan):
        progress.warn(
            f"The visual projection of {', '.join(others)} is not the base's, which the CLIPModel gets: what such "
            "a tower learned may fit its text side less well."
        )
    return plan, found


def _finish(
    folder: WorkFolder,
    plan: Plan,
    done: Mapping[str, Line],
    environment: Environment,
    learned: Learned | None,
    selection: SelectionRecord | None,
    swept: Swept | None,
    cards: Mapping[str, bytes],
    progress: Progress,
) -> MergeRecord:
    """Every group is in place: prove it, write what goes beside the weights, and rename the folder."""
    lines = [done[group.key] for group in plan.groups]
    _warn_of_fallbacks(lines, progress)
    similarity = compare([line["spread"] for line in lines if line["spread"]], against_base=plan.base is not None)
    _refuse_distant(plan, similarity, folder.path)
    progress.step("Reading the output back")
    digests = {name: digest for line in lines for name, digest in line["sha256"].items()}
    record = _record(plan, lines, similarity, environment, learned, selection)
    with ThreadPoolExecutor(1, "figures") as beside:
        drawn = beside.submit(_draw, record, folder.path, learned.history if learned else ())
        files = dict(read_back(folder.path, plan.layout, digests))
    drawn.result()
    adapters, own = finish_adapters(folder, plan, lines, files)
    files |= own | _write_small_files(folder, plan)
    read_describing_back(folder.path, plan)
    record = replace(record, files=dict(sorted(files.items())), swept=swept, adapters=adapters)
    if learned is not None:
        folder.add(LOG, adaptation_log(record, learned.history))
    for name, card in cards.items():
        folder.add(name, card)
    folder.add(RECORD, record.to_json().encode())
    folder.add("README.md", render_card(record, repo=plan.recipe.push_to).encode())
    folder.commit()
    return record


def _draw(record: MergeRecord, folder: Path, history: Sequence[Sequence[float]]) -> None:
    """The figures: they tell of everything but files, and so can be drawn while these are read back."""
    from hfcart.report.plots import draw_figures  # matplotlib's memory must not add to the merge's own

    with explain_os_errors(folder):
        draw_figures(record, folder, history)


def _refuse_to_replace_a_source(plan: Plan, out: Path) -> None:
    out = out.resolve()
    for tower in plan.read:
        if isinstance(tower.store, LocalStore) and tower.store.folder.resolve().is_relative_to(out):
            raise OutputError(
                f"The output {out.name} would replace the source {tower.label}.", hint="Give another --out."
            )


def _warn_of_sources(plan: Plan, progress: Progress) -> None:
    """Say what of the sources makes the merge something else than was meant."""
    local = [tower.label for tower in plan.read if not tower.store.repo]
    if twice := sorted({label for label in local if local.count(label) > 1}):
        progress.warn(
            f"{local.count(twice[0])} local sources are called {twice[0]}: the recipe knows them by that name alone, "
            "and could not be run again. Rename the folders to make the merge repeatable."
        )
    if len(plan.towers) == 1:
        progress.warn(f"Only one source: the result is {plan.towers[0].label} again under most methods.")
    elif len(plan.towers) < plan.method.fewest and not (plan.recipe.adapt or plan.recipe.coefficients):
        progress.warn(
            f"{plan.method.name} gives {plural(len(plan.towers), 'source')} their plain average, whatever its "
            f"parameters: it takes {plan.method.fewest} or more."
        )
    for one, other in zip(plan.towers, plan.towers[1:], strict=False):
        if one.source.sha256 == other.source.sha256:
            progress.warn(f"{one.label} and {other.label} hold the same weights: they count twice in the merge.")


def _fingerprint(plan: Plan, environment: Environment) -> str:
    """Digest of all that decides the bytes. What only lets a merge through (allow_distant) is left out."""
    from hfcart.system.environment import fingerprint  # imports torch, which takes seconds

    recipe = {key: value for key, value in plan.recorded_recipe().items() if key != "allow_distant"}
    sources = [tower.source.sha256 for tower in plan.towers]
    headers = {file: hashlib.sha256(header).hexdigest() for file, header in plan.layout.headers.items()}
    statistics = [data.sha256 for data in plan.gathered.data] if plan.gathered else []
    return fingerprint(environment, recipe, sources, headers, statistics, plan.method.package)


def _warn_of_fallbacks(lines: Sequence[dict[str, Any]], progress: Progress) -> None:
    if names := [line["group"] for line in lines if any_fallback(line)]:
        progress.warn(
            f"The solver did not converge on {plural(len(names), 'matrix', 'matrices')} ({names[0]}, …): float64 "
            "LAPACK took over."
        )


def _refuse_distant(plan: Plan, similarity: Similarity | None, folder: Path) -> None:
    if similarity is None or plan.recipe.allow_distant:
        return
    distances = sorted(zip(similarity.distance, (tower.label for tower in plan.towers), strict=True), reverse=True)
    far = [f"{label} ({distance:.2f})" for distance, label in distances if not distance <= _FARTHEST]
    if far:
        centre = plan.base.label if plan.base else "their mean"
        raise DistantError(
            f"The towers are not of one ancestor: {', '.join(far)} lie further than {_FARTHEST} of the norm from "
            f"{centre}; towers fine-tuned from one model lie within a few hundredths.",
            hint=f"Merge towers of one base model, or go on with --allow-distant (the work is kept in {folder}).",
        )


def preprocessor_of(plan: Plan, progress: Progress) -> dict[str, Any] | None:
    """The image preprocessing of the merged tower: the first source's that states one, else the base's, else None.

    One that cannot be followed is passed over, and said to be: the weights can be merged all the same.
    """
    kinds = []
    for tower in plan.towers_and_base:
        try:
            fields = read_preprocessor(tower.describing, plan.architecture.image_size)
        except PreprocessorError as error:
            progress.warn(f"{error.message} What it says of images is passed over.")
            continue
        if fields is not None:
            kinds.append(fields)
    if any(fields != kinds[0] for fields in kinds):
        progress.warn("The sources' image preprocessing differs: the first one's (in the card's order) is used.")
    return kinds[0] if kinds else None


def _write_small_files(folder: WorkFolder, plan: Plan) -> dict[str, str]:
    """What describes the weights, the index and the recipe. Returns their sha256 by name."""
    contents = describing_files(plan, preprocessor_of(plan, Progress()))
    contents[RECIPE] = as_yaml(plan.recorded_recipe()).encode()
    if plan.layout.index is not None:
        contents[INDEX] = plan.layout.index
    for name, data in contents.items():
        folder.add(name, data)
    return {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}


def _record(
    plan: Plan,
    lines: Sequence[dict[str, Any]],
    similarity: Similarity | None,
    environment: Environment,
    learned: Learned | None,
    selection: SelectionRecord | None,
) -> MergeRecord:
    """All but the files, which are to be read back yet, and what is known of them."""
    method, coefficients = plan.method, plan.recipe.coefficients or ()
    tensors = {
        name: TensorRecord(
            name=name,
            shape=plan.shapes[name],
            dtype=plan.dtype,
            # With a coefficient for each tower another tensor gets what a matrix of full rank does.
            rule=COPIED if group.copied else method.rule_name(matrix=group.matrix or group.key in coefficients),
            rank=line["rank"],
            full_rank=line["full_rank"],
            energy=None if line["energy"] is None else _rounded(line["energy"]),
            fallback=line["fallback"],
            sha256=line["sha256"][name],
        )
        for group, line in zip(plan.groups, lines, strict=True)
        for name in group.names
    }
    return MergeRecord(
        recipe=plan.recorded_recipe(),
        method=method_record(plan.recipe, plan.settings),
        sources=tuple(tower.source for tower in plan.towers),
        base=plan.base.source if plan.base else None,
        architecture=plan.architecture,
        model_class=plan.model_class,
        parameters=plan.parameters,
        dtype=TORCH_NAME[plan.dtype],
        tensors=tuple(tensors[name] for name in plan.shapes),
        similarity=similarity,
        environment=environment,
        files={},
        adaptation=learned.record if learned else None,
        data=plan.gathered.data if plan.gathered else (),
        selection=selection,
    )


def _rounded(value: float) -> float:
    return round(value, 6) if math.isfinite(value) else 0.0
