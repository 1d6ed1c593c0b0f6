"""A recorded merge made once more, in a temporary folder: as it was, or by the plain average of its towers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hfcart.commands.merge import merge_folder
from hfcart.errors import DistantError, OutputError, UsageError
from hfcart.methods import METHODS
from hfcart.progress import Progress, Within
from hfcart.recipes.finished_merge import not_runnable
from hfcart.recipes.merge_recipe import OPTIONS, Recipe, make
from hfcart.records import MergeRecord
from hfcart.records.file_names import RECORD


def merge_again(recipe: Recipe, where: str, progress: Progress) -> MergeRecord:
    """Merge as a record says: no message says that what is there is kept, or that somebody has typed it.

    Args:
        recipe: of the record, its output somewhere temporary.
        where: the record's name in messages.
        progress: told of each stage.

    Raises:
        VerifyError: the recipe asks for what cannot be.
        HfcartError: as `merge_folder`.
    """
    try:
        return merge_folder(recipe, progress)
    except KeyboardInterrupt as stop:
        stop.__notes__ = []
        raise
    except UsageError as error:
        raise not_runnable(error, where) from None
    except OutputError as error:
        error.hint = "Free some space where temporary files go, or name another place for them: TMPDIR=/path"
        raise
    except DistantError as error:
        error.hint = None
        raise


def merge_average(record: MergeRecord, folder: Path, progress: Progress, *, dtype: str | None = None) -> Path:
    """Merge the sources of a merge, at their commits, once more: by their average.

    Args:
        record: of the merge.
        folder: made here; somewhere temporary.
        progress: told of it.
        dtype: of the result; None for that of the merge.

    Returns:
        The folder.

    Raises:
        SourceError: a source is a folder, or gone.
        HubError, OutputError: as every merge.
    """
    changed = {"method": "average", "full_clip": False, "format": "transformers", "out": str(folder)}
    changed |= {"dtype": dtype} if dtype else {}
    progress.step("Averaging the towers that were merged")
    merge_again(make({**kept_by_average(record.recipe), **changed}, RECORD), RECORD, Within(progress))
    return folder


def kept_by_average(recipe: dict[str, Any]) -> dict[str, Any]:
    """What of a merge's recipe holds for the average of its sources, too: neither coefficients nor adapters do."""
    average = METHODS["average"]
    taken = {name for name, option in OPTIONS.items() if option.taken is None or option.taken(average)}
    kept = taken - {"adapters", "adapters_carry"} | {"sources"}
    return {name: value for name, value in recipe.items() if name in kept}
