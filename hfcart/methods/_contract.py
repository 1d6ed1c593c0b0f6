"""What a method declares of itself, and what it gives back. Imports nothing heavy."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Merged(NamedTuple):
    """What a method makes of one group of tensors.

    Attributes:
        tensor: the merged tensor, of the group's shape.
        rank: the k of its low-rank approximation, None where it makes none.
        energy: share of ‖τ_t‖²_F that rank keeps, mean over tasks, in [0, 1]; None with rank.
        fallback: whether the solver gave up and float64 LAPACK took over.
    """

    tensor: Tensor
    rank: int | None = None
    energy: float | None = None
    fallback: bool = False


@dataclass(frozen=True)
class Parameter:
    """One keyword argument of a method, as the recipe, the help and the card show it."""

    name: str
    default: float | int
    help: str


@dataclass(frozen=True)
class Method:
    """A registry line: everything the engine, the help and the card need to know of a method.

    Attributes:
        name: as in `--method`.
        title: the paper's name for it.
        summary: one sentence for the help.
        matrices: one sentence: what the attention and MLP weights get.
        others: one sentence: what every other tensor gets.
        formula: LaTeX of the rule for matrices.
        matrix_rule: "module:function" in this package, for the attention and MLP weights.
        other_rule: the same for every other tensor.
        parameters: the keyword arguments a recipe may set.
        needs_base: whether both rules take `base`, the pretrained tensor.
        arxiv: id of the paper.
        citation: its BibTeX.
    """

    name: str
    title: str
    summary: str
    matrices: str
    others: str
    formula: str
    matrix_rule: str
    other_rule: str
    parameters: tuple[Parameter, ...]
    needs_base: bool
    arxiv: str
    citation: str

    def load(self) -> tuple[Callable[..., Merged], Callable[..., Merged]]:
        """Import and return (matrix rule, other rule): functions (thetas, **keywords) -> Merged."""
        return _function(self.matrix_rule), _function(self.other_rule)

    def rule_name(self, *, matrix: bool) -> str:
        """Name of the rule that a tensor gets, for the record: "cart", "average", ..."""
        return (self.matrix_rule if matrix else self.other_rule).rsplit(":", 1)[1]


def _function(where: str) -> Callable[..., Merged]:
    module, name = where.split(":")
    loaded: Any = getattr(importlib.import_module(f"hfcart.methods.{module}"), name)
    return loaded  # type: ignore[no-any-return]
