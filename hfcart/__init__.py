"""hfcart: merge fine-tuned CLIP vision towers from the Hugging Face Hub into one, ready to publish.

    import hfcart
    merged = hfcart.merge(["user/a", "user/b", "user/c"], rank=0.08, out="merged")
    results = hfcart.evaluate("merged", ["sun397", "eurosat"])
    hfcart.push("merged", "user/merged")

Each function does what the command of its name does (`evaluate` is `hfcart eval`), and prints nothing unless it is
called with `progress=True`: `help(hfcart.merge)` tells its options.

Importing this package imports nothing heavy: torch and the Hub's client come with the first call.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfcart.api.compare import compare
    from hfcart.api.evaluate import evaluate
    from hfcart.api.finetune import finetune
    from hfcart.api.merge import merge
    from hfcart.api.push import push
    from hfcart.api.sweep import sweep
    from hfcart.api.verify import verify
    from hfcart.recipes.merge_recipe import Recipe

__version__ = "0.1.0"
__all__ = ["Recipe", "__version__", "compare", "evaluate", "finetune", "merge", "push", "sweep", "verify"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 (PEP 562)
    if name == "Recipe":
        from hfcart.recipes.merge_recipe import Recipe

        return Recipe
    if name in __all__:
        return getattr(importlib.import_module(f"hfcart.api.{name}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
