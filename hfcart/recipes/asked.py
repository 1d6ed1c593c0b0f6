"""What a merge is asked to do, from a recipe file and from what was given beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hfcart.errors import UsageError, together
from hfcart.methods import METHODS
from hfcart.names import spelled
from hfcart.progress import Progress
from hfcart.recipes.finished_sweep import of_adapters
from hfcart.recipes.merge_recipe import OPTIONS, Recipe, make
from hfcart.recipes.recipe_files import read


def asked_for(
    file: Path | None,
    given: dict[str, Any],
    progress: Progress,
    where: str = "the command line",
    recorded: dict[str, Any] | None = None,
) -> Recipe:
    """The recipe of a file with the fields given beside it; those go before the file's.

    Args:
        file: YAML, or the name of a recipe that comes with hfcart; None for none.
        given: fields, by name.
        progress: told what of the file is left out, and where it publishes to.
        where: what gave the fields, for messages.
        recorded: the fields of a recipe that is none of a file's: those of the merge that `file` names.

    Raises:
        UsageError: no sources, no such file, or a recipe that makes no sense.
    """
    recorded = {**recorded} if recorded is not None else read(file) if file else {}
    if file and recorded.get("push_to") and "push_to" not in given:
        progress.note(f"{file} asks to publish the result to {recorded['push_to']}.")
    if method := METHODS.get(spelled(str(given.get("method", "")), METHODS) or ""):
        # Another method than the file's: what only the file's takes is not asked of it.
        taken = {name: option.taken is None or option.taken(method) for name, option in OPTIONS.items()}
        for name in [name for name, fits in taken.items() if not fits]:
            if recorded.pop(name, None) is not None:
                progress.note(f"{method.name} takes no {name}: the one in {file} is left out.")
    learned_for = {"sources", "method", "scale", "lines", "svc", "adapt", "sweep"}
    learned_for |= {"rank", "adapt_ranks"} if "directions" in recorded else set()
    if learned_for & set(given) and recorded.pop("coefficients", None):
        progress.note(f"The coefficients in {file} were learned for what it merges: they are left out.")
        if recorded.pop("directions", None) and "adapt" not in given:
            recorded.pop("adapt_ranks", None)
    instead = [("lines", "scale"), ("scale", "lines")]  # each says what the other would
    instead += [("sweep", name) for name in ("rank", "scale", "lines")]
    instead += [("rank", "sweep"), ("scale", "sweep")]
    sweep = given.get("sweep", recorded.get("sweep"))
    if isinstance(sweep, str) and {"sweep", "adapters"} & set(given) and of_adapters(sweep):
        instead += [("sweep", "adapters"), ("sweep", "adapters_carry"), ("adapters", "sweep")]
    used = METHODS.get(spelled(str(given.get("method", recorded.get("method"))), METHODS) or "")
    if used and used.chosen:
        instead += [("tasks", used.chosen.parameter), (used.chosen.parameter, "tasks")]
    for one, other in instead:
        if one in given and other not in given:
            recorded.pop(other, None)
    fields = {**recorded, **given}
    if not fields.get("sources"):
        raise UsageError(
            "There is nothing to merge: no sources were given.",
            hint=together(
                "Name them: hfcart merge user/a user/b user/c --out merged", "Or a recipe: hfcart merge --recipe FILE"
            ),
        )
    return make(fields, f"{file} and {where}" if file else where)
