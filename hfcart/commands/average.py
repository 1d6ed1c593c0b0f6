"""The plain average of the towers that a merge was made of: what a merge is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hfcart.commands.merge import merge_aside
from hfcart.methods import METHODS
from hfcart.progress import Progress, Within
from hfcart.recipes.merge_recipe import OPTIONS, make
from hfcart.records import MergeRecord
from hfcart.records.file_names import RECORD


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
    merge_aside(make({**kept_by_average(record.recipe), **changed}, RECORD), Within(progress))
    return folder


def kept_by_average(recipe: dict[str, Any]) -> dict[str, Any]:
    """What of a merge's recipe holds for the average of its sources, too: neither coefficients nor adapters do."""
    average = METHODS["average"]
    taken = {name for name, option in OPTIONS.items() if option.taken is None or option.taken(average)}
    kept = taken - {"adapters", "adapters_carry"} | {"sources"}
    return {name: value for name, value in recipe.items() if name in kept}
