"""`hfcart space`: a small app with which anybody tries a published tower in the browser, as a folder and as a Space."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from hfcart import hub
from hfcart.clip.architecture import expected_shapes
from hfcart.clip.tensor_names import canonical
from hfcart.commands.merge_again import merge_average
from hfcart.commands.push_space import push_space, space_target
from hfcart.errors import HfcartError, SourceError, UsageError, VerifyError
from hfcart.progress import Progress
from hfcart.quoting import plural, quoted, some
from hfcart.recipes.finished_finetuning import read_any
from hfcart.recipes.finished_merge import pinned
from hfcart.records import FinetuneRecord, MergeRecord, SpaceRecord, SpaceTask, SpaceTower
from hfcart.records.file_names import AVERAGE, MAX_RECORD, RECORD, RECORDS, SPACE_RECORD
from hfcart.records.repo_id import is_repo_id
from hfcart.report.space_card import APP, REQUIREMENTS, about, render_space_card, shipped
from hfcart.results.card import CARD
from hfcart.results.files import MAX_RESULTS, RESULTS, read_results
from hfcart.sources.preprocessor import read_preprocessor
from hfcart.sources.stores import LocalStore
from hfcart.system.disk import explain_os_errors
from hfcart.system.work_folder import WorkFolder, refuse_existing
from hfcart.tasks.task_cards import TaskCard, benchmark_task, read_tasks
from hfcart.zero_shot.heads import Base, base_of, check_base, open_base
from hfcart.zero_shot.loaded_tower import LoadedTower, load_tower

PROMPTS = ("a photo of a {}.",)
_MOST_LABELS, _MOST_TEXTS = 400, 5000  # of a task that is offered: as many labels, times prompts, as the app takes


@dataclass(frozen=True)
class Made:
    """A Space that was written.

    Attributes:
        folder: where.
        record: what it shows.
        closed: the repos that it reads and that not everybody may read.
        published: the commit, None without `push_to`.
    """

    folder: Path
    record: SpaceRecord
    closed: tuple[str, ...]
    published: hub.Published | None


def run_space(
    tower: str,
    *,
    base: str | None,
    tasks: str | None,
    average: bool,
    out: Path | None,
    overwrite: bool,
    push_to: str | None,
    private: bool,
    create_pr: bool,
    message: str | None,
    progress: Progress,
) -> Made:
    """Write a Space for a published tower, and publish it if asked to.

    Args:
        tower: `user/name` or `user/name@revision`.
        base: the CLIP model with its text tower; None to find it as an evaluation does.
        tasks: what to offer labels and prompts of; None for the tasks that the tower's results are of.
        average: whether the plain average of a merge's sources is made and goes into the folder.
        out: the folder; None for `./NAME-space`.
        overwrite: replace a folder of hfcart's, and whatever the Space holds.
        push_to: `user/name` of the Space, None to write the folder only.
        private: for a Space that has to be created.
        create_pr: open a pull request, and leave main alone.
        message: of the commit.
        progress: told of each stage.

    Raises:
        HfcartError: the tower is not on the Hub, or cannot be used; its base is not to be found, or no such; the
            folder or the Space may not be made or replaced.
    """
    repo = _on_the_hub(tower)
    folder = out or Path(f"{repo.partition('/')[2]}-space")
    refuse_existing(folder, RECORDS, overwrite=overwrite)
    cards = read_tasks([tasks]) if tasks else None
    hub.set_notifier(progress.note)
    target = None
    if push_to is not None:
        progress.step(f"Checking write access to the Space {push_to}")
        target = space_target(push_to, repo, overwrite=overwrite, private=private, create_pr=create_pr)
    loaded = load_tower(tower, progress)
    bound = open_base(base or base_of(loaded, progress), progress)
    check_base(loaded, bound, progress)
    _refuse_other_forms(loaded)
    if bound.source.repo is None or bound.source.path is not None:
        raise UsageError(
            f"{bound.label} is a folder: the Space reads the text tower from a repo's top level.",
            hint="Name the CLIP model on the Hub: --base user/name",
        )
    if any(file.name.startswith("open_clip") for file in bound.source.files):
        raise UsageError(
            f"{bound.label} is in OpenCLIP's form: the Space reads the text tower with transformers.",
            hint="Name the CLIP model as transformers has it: --base user/name",
        )
    closed = tuple(each for each in dict.fromkeys([repo, bound.source.repo]) if not hub.is_open(each))
    with tempfile.TemporaryDirectory(prefix="hfcart-average-") as aside:
        known, made = _record_of(loaded), Path(aside) / AVERAGE
        averaged = _average(loaded, known, bound, made, progress) if average else None
        offered = _of_results(loaded, progress) if cards is None else _of_cards(cards, progress)
        record = _record(loaded, known, bound, averaged, offered)
        count = len(known.sources) if averaged and known else 0
        card = render_space_card(record, loaded.source, averaged=count, closed=closed)
        _write(folder, record, card, made if averaged else None, overwrite=overwrite)
    if target is None:
        return Made(folder, record, closed, None)
    published = push_space(
        folder,
        target.repo,
        target=target,
        overwrite=overwrite,
        private=private,
        create_pr=create_pr,
        message=message,
        progress=progress,
    )
    return Made(folder, record, closed, published)


def _on_the_hub(tower: str) -> str:
    """The repo of a tower that is on the Hub. Raises UsageError for what can be no such thing."""
    if Path(tower).expanduser().is_dir():
        raise UsageError(
            f"{tower} is a folder: a Space reads its tower from the Hub.",
            hint=f"Publish it first: hfcart push {shlex.quote(tower)} --push-to user/name",
        )
    if not is_repo_id(tower.partition("@")[0], namespace=True):
        raise UsageError(
            f"{quoted(tower, 120)} is not the name of a Hub repo.", hint="Write user/name, or user/name@revision."
        )
    return hub.split_ref(tower)[0]


def _refuse_other_forms(tower: LoadedTower) -> None:
    """Raise SourceError unless transformers alone, which is all that the app has, would load the whole tower."""
    names = [file.name for file in tower.source.files]
    stored: set[str | None] = set()
    if all(name.startswith("model") and name.endswith(".safetensors") for name in names):
        for name in names:
            with safe_open(tower.store.fetch(name), "pt") as file:
                stored |= set(map(canonical, file.keys()))
    if not expected_shapes(tower.architecture, projection=False).keys() <= stored:
        raise SourceError(
            f"{tower.label} is not stored as transformers loads it from safetensors, and the Space has nothing else.",
            hint=f"Publish a copy that is: hfcart merge {tower.source.ref} --method average --push-to user/copy",
        )


def _record_of(tower: LoadedTower) -> MergeRecord | FinetuneRecord | None:
    """What hfcart recorded of the tower; None if it did not make it, as far as its record can be believed."""
    data = tower.store.small(RECORD, MAX_RECORD)
    try:
        return None if data is None else read_any(data, f"{tower.label}/{RECORD}")
    except VerifyError:
        return None


def _average(
    tower: LoadedTower, known: MergeRecord | FinetuneRecord | None, base: Base, folder: Path, progress: Progress
) -> SpaceTower | None:
    """The average of what a merge was made of, in `folder`; None, and why, where there is none to be shown."""
    if not isinstance(known, MergeRecord):
        progress.note(f"{tower.label} is not a merge of hfcart's: there is no average to show beside it.")
        return None
    if local := [source.label for source in known.sources if pinned(source) is None]:
        progress.warn(f"The average is left out: it is of {some(local, 3)}, too, a folder on some machine.")
        return None
    try:
        # In a public Space everybody could read what is made of them.
        if closed := [source.label for source in known.sources if source.repo and not hub.is_open(source.repo)]:
            progress.warn(f"The average is left out: it is of {some(closed, 3)}, too, not open to everybody.")
            return None
        # Half the size: a Space is meant to be small, and CLIP's own weights were released so.
        merge_average(known, folder, progress, dtype="float16")
    except SourceError as error:
        progress.warn(f"The average is left out. {error.message}")
        return None
    fields = read_preprocessor(LocalStore(folder), tower.architecture.image_size) or base.preprocessor
    return SpaceTower(f"the average of the {plural(len(known.sources), 'tower')}", None, None, AVERAGE, fields)


def _record(
    tower: LoadedTower,
    known: MergeRecord | FinetuneRecord | None,
    base: Base,
    average: SpaceTower | None,
    tasks: tuple[SpaceTask, ...],
) -> SpaceRecord:
    source, own = tower.source, base.source
    fields = tower.preprocessor or base.preprocessor
    towers = [SpaceTower(source.repo or "", source.repo, source.commit, None, fields)]
    if average is not None:
        towers.append(average)
    if (source.repo, source.commit) != (own.repo, own.commit):
        towers.append(SpaceTower(f"its base, {own.repo}", own.repo, own.commit, None, base.preprocessor))
    return SpaceRecord(
        about=about(known),
        towers=tuple(towers),
        base={"repo": own.repo or "", "commit": own.commit or ""},
        prompts=PROMPTS,
        tasks=tasks,
    )


def _of_cards(cards: Sequence[TaskCard], progress: Progress) -> tuple[SpaceTask, ...]:
    """What the tasks that the user named have to choose from."""
    found = [SpaceTask(card.title, card.classnames, card.templates) for card in cards]
    if large := [task.title for task in found if not _fits(task)]:
        progress.warn(f"Not offered, for more than {_MOST_LABELS} labels or {_MOST_TEXTS} prompts: {some(large)}.")
    return tuple(task for task in found if _fits(task))


def _fits(task: SpaceTask) -> bool:
    return 2 <= len(task.labels) <= _MOST_LABELS and len(task.labels) * len(task.prompts) <= _MOST_TEXTS


def _of_results(tower: LoadedTower, progress: Progress) -> tuple[SpaceTask, ...]:
    """The tasks that the tower's published results are of, with the prompts of hfcart's own cards where these are."""
    data = tower.store.small(RESULTS, MAX_RESULTS)
    try:
        results = () if data is None else read_results(data, f"{tower.label}/{RESULTS}").results
    except HfcartError as error:
        progress.warn(f"No task is offered. {error.message}")
        return ()
    found = []
    for result in results:
        card = benchmark_task(result.task)
        prompts = card.templates if card and card.sha256 == result.card_sha256 else PROMPTS
        names = tuple(dict.fromkeys(score.name for score in result.classes))
        found.append(SpaceTask(result.title, names, prompts))
    return tuple(task for task in found if _fits(task))


def _write(folder: Path, record: SpaceRecord, card: str, average: Path | None, *, overwrite: bool) -> None:
    """Write the folder, whole or not at all; the files of the average are moved into it."""
    with WorkFolder(folder, RECORDS, overwrite=overwrite, redone=("*",)) as work:
        for name in (APP, REQUIREMENTS):
            work.add(name, shipped(name))
        work.add(CARD, card.encode())
        if average is not None:
            with explain_os_errors(folder):
                (work.path / AVERAGE).mkdir()
                for path in [*average.glob("*.safetensors"), *average.glob("*.index.json"), average / "config.json"]:
                    shutil.move(path, work.path / AVERAGE / path.name)
        work.add(SPACE_RECORD, record.to_json().encode())
        work.commit()
