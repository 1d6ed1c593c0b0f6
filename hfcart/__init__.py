"""hfcart: merge fine-tuned CLIP vision towers from the Hugging Face Hub into one, ready to publish.

    import hfcart
    record = hfcart.merge(["user/a", "user/b"], rank=0.08, out="merged")
    results = hfcart.evaluate("merged", ["sun397", "eurosat"])

Importing this package imports nothing heavy: torch and the Hub's client come with the first call.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hfcart.progress import Progress
    from hfcart.recipes.merge_recipe import Recipe
    from hfcart.recipes.named import LocalSource
    from hfcart.records import EvalRecord, MergeRecord

__version__ = "0.1.0"
__all__ = ["Recipe", "__version__", "evaluate", "merge"]


def merge(
    sources: Sequence[str | os.PathLike[str] | LocalSource],
    *,
    progress: Progress | None = None,
    **fields: Any,  # noqa: ANN401
) -> MergeRecord:
    """Merge towers as `hfcart merge` does, and return the record of it.

    Args:
        sources: Hub repos (`user/name`, `user/name@revision`) and local folders, in any order.
        progress: told what is being done. Default: nothing is, and warnings are Python's (HfcartWarning).
        **fields: the recipe's other fields: method, rank, scale, base, qkv, dtype, out, push_to, ...
            See `hfcart.Recipe`.

    Raises:
        hfcart.errors.HfcartError: each kind of failure has its class; the message says what to do next.
    """
    from hfcart.commands.merge_and_publish import run_merge
    from hfcart.progress import AsWarnings
    from hfcart.recipes.merge_recipe import make

    if isinstance(sources, str | os.PathLike):
        raise TypeError("sources is one source: give a list of them")
    every = {"sources": tuple(sources), **fields}
    plain = {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in every.items()}
    plain["sources"] = tuple(os.fspath(s) if isinstance(s, os.PathLike) else s for s in every["sources"])
    recipe = make(plain, "merge()")
    return run_merge(recipe, progress or AsWarnings(sys._getframe(1))).record


def evaluate(
    tower: str | os.PathLike[str],
    tasks: Sequence[str],
    *,
    progress: Progress | None = None,
    **options: Any,  # noqa: ANN401
) -> EvalRecord:
    """Measure a tower's zero-shot accuracy as `hfcart eval` does; nothing is written and nothing published.

    Args:
        tower: a Hub repo (`user/name`, `user/name@revision`) or a folder.
        tasks: task ids, groups ("8", "14", "20") and paths of task cards.
        progress: told what is being done. Default: nothing is, and warnings are Python's (HfcartWarning).
        **options: base, part, limit, seed, references, streaming, batch_size, workers, precision, device;
            see `hfcart.zero_shot.measurement.Measurement`.

    Raises:
        hfcart.errors.HfcartError: each kind of failure has its class; the message says what to do next.
    """
    from hfcart.commands.evaluate import run_eval
    from hfcart.progress import AsWarnings
    from hfcart.tasks.task_cards import read_tasks
    from hfcart.zero_shot.measurement import Measurement

    if isinstance(tasks, str):
        raise TypeError("tasks is one text: give a list of them")
    measurement = Measurement(read_tasks(tasks), **options)
    return run_eval(os.fspath(tower), measurement, progress or AsWarnings(sys._getframe(1))).record


def __getattr__(name: str) -> Any:  # noqa: ANN401 (PEP 562)
    if name == "Recipe":
        from hfcart.recipes.merge_recipe import Recipe

        return Recipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
