"""The recipe of a merge that is there: of a Hub repo, at a commit, or of a finished folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hfcart.errors import UsageError
from hfcart.names import spelled
from hfcart.progress import Progress
from hfcart.quoting import plural
from hfcart.recipes.asked import asked_for
from hfcart.recipes.finished_finetuning import is_finetune_record
from hfcart.recipes.finished_merge import read_record
from hfcart.recipes.merge_recipe import Recipe
from hfcart.recipes.recipe_files import names
from hfcart.records.file_names import MAX_RECORD, RECORD
from hfcart.records.repo_id import is_repo_id
from hfcart.sources.places import open_store


def is_place(text: str) -> bool:
    """Whether a recipe is named by a folder or a Hub repo, and not by a file or a name of hfcart's own."""
    try:
        path = Path(text).expanduser()
        if path.is_file() or not text.strip():
            return False
        if path.is_dir():  # one without a merge in it does not hide a recipe of that name
            return (path / RECORD).is_file() or spelled(text, names()) is None
        return is_repo_id(text.partition("@")[0], namespace=True) and not text.endswith((".yaml", ".yml"))
    except (OSError, RuntimeError, ValueError):  # no such home, a NUL, a name too long
        return False


def asked_by(recipe: str, given: dict[str, Any], progress: Progress, where: str = "the command line") -> Recipe:
    """What a merge is asked to do by a recipe, of any kind, and by what was given beside it.

    Args:
        recipe: a file, a name of hfcart's own, or a merge: a folder or a Hub repo.
        given: as for `asked_for`, and the rest, too.
        progress: told where the recipe is from, and what of it is left out.
        where: what gave the fields, for messages.

    Raises:
        HfcartError: as `recipe_of` and `asked_for`.
    """
    return asked_for(Path(recipe), given, progress, where, recipe_of(recipe, progress) if is_place(recipe) else None)


def recipe_of(place: str, progress: Progress) -> dict[str, Any]:
    """The fields of the recipe that a merge was made by, its sources pinned.

    The record is a stranger's file, checked value by value as `hfcart verify` does: it can choose no path and no repo
    to publish in.

    Args:
        place: a folder, or `user/name[@revision]`.
        progress: told where the recipe is from.

    Raises:
        SourceError: no such folder or repo.
        UsageError: it is no merge of hfcart's.
        VerifyError: its record is not what a merge records.
    """
    store = open_store(place, progress)
    data = store.small(RECORD, MAX_RECORD)
    if data is None or is_finetune_record(data):
        what = f"has no {RECORD}" if data is None else "is a fine-tuned tower"
        raise UsageError(
            f"{store.label} {what}: there is no recipe of a merge in it.",
            hint="Name a merge that hfcart made, a YAML file, or a recipe: hfcart merge --recipe NAME",
        )
    record = read_record(data, f"{store.label}/{RECORD}")
    at = f" at {store.commit[:12]}" if store.commit else ""
    progress.note(
        f"The recipe is that of {store.label}{at}: {record.method.name} of {plural(len(record.sources), 'tower')}."
    )
    return record.recipe
