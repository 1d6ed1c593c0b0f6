"""What a method declares of itself, and what it gives back. Imports nothing heavy."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from hfcart.quoting import plural, quoted

if TYPE_CHECKING:
    from torch import Tensor


_LARGEST = 1e300  # of a parameter; beyond it a whole number is no float
# In the order in which methods are listed.
FAMILIES = ("between the towers", "task vectors", "singular directions", "images")

# One pass of a `fit`: (thetas, base) of a group, and its `key` and statistics where the function names them, to a
# tensor of counts or sums, which are added over all groups.
Measure = Callable[..., Any]


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


class Parts(NamedTuple):
    """A group taken apart for coefficients that are learned: merged = anchor + Σ_t c_t · component_t.

    Attributes:
        anchor: what nothing is added to, of the group's shape.
        left: T × m × k, a factor of each component; or T × the group's shape, the components themselves.
        right: T × n × k, the other factor: component_t = left_t right_tᵀ. None where `left` is all there is.
        energies: of factors, the share of each tower's ‖τ_t‖²_F that its k directions hold, in [0, 1].
        fallback: whether the solver gave up and float64 LAPACK took over.
    """

    anchor: Tensor
    left: Tensor
    right: Tensor | None = None
    energies: tuple[float, ...] = ()
    fallback: bool = False


@dataclass(frozen=True)
class Adaptive:
    """What a method becomes when a coefficient for each tower and tensor is learned on unlabelled images.

    Attributes:
        name: as `hfcart compare --methods` takes it.
        title: the paper's name for it.
        parts: "package.module:function": (thetas, **keywords) -> Parts; it gets what the rules get. Groups that
            the matrix rule applies to have parts, and the others if their rule is the same.
        other_parts: the same for those others, where every tensor is to have coefficients; empty if that cannot be.
        others: one sentence: what every other tensor gets then; empty where it is the same as the matrices.
        formula: LaTeX of the rule, with λ_t^l.
        matrices: one sentence: what the attention and MLP weights get.
        start: what every coefficient begins at, if the recipe gives no scale.
        clamped: whether coefficients act within [0, 1] only.
        rounds: batches of each task a step, their losses added.
        replaces: the method's parameters that have no meaning beside coefficients.
        arxiv: id of the paper whose adaptation this is.
        citation: BibTeX of the adaptation, which stands beside the method's own.
        published: as Method.published.
        note: where the figures come from.
        rank: where singular directions are chosen too: how many of each matrix are on at the start, as a share or a
            number; `parts` then takes `rank`, how many there are to choose from. None where none are chosen.
        ranked: what it becomes where directions are chosen too; None if they cannot be.
    """

    name: str
    title: str
    parts: str
    formula: str
    matrices: str
    start: float
    clamped: bool
    rounds: int
    replaces: tuple[str, ...]
    arxiv: str
    citation: str
    published: tuple[float | None, float | None]
    note: str = ""
    other_parts: str = ""
    others: str = ""
    rank: int | float | None = None
    ranked: Adaptive | None = None


@dataclass(frozen=True)
class Chosen:
    """A parameter with a value for each tower that can be chosen by accuracy on labelled validation images.

    Attributes:
        parameter: its name.
        candidates: its values, the one preferred among equally good ones first.
        candidate: "package.module:function": (thetas, base=…, task=…, and the parameter's value by its name)
            to what a tensor becomes for the tower in place `task` alone; each candidate is scored on that tower's task.
        formula: LaTeX of that.
    """

    parameter: str
    candidates: tuple[float, ...]
    candidate: str
    formula: str


@dataclass(frozen=True)
class Parameter:
    """One keyword argument of a method, as the recipe, the help and the card show it.

    Attributes:
        name: of the keyword, of the recipe's field, and (with hyphens) of the option.
        default: None where nothing given means something of its own, as the help says.
        help: one or two sentences.
        kind: of its values. A `rank` is a fraction in (0, 1] or a whole number; `numbers` are one for each source,
            `each` one for all of them or one for each.
        least: the smallest value allowed.
        above: the value that every allowed one exceeds.
        most: the largest value allowed.
        choices: the values allowed, for a `choice`.
        symbol: the letter that stands for it in the formula, for the card; empty where none does.
        gathering: whether it decides only what the method's statistics are gathered on, and no rule takes it.
    """

    name: str
    default: float | int | str | None
    help: str
    kind: Literal["number", "whole", "rank", "choice", "numbers", "each"] = "number"
    least: float | None = None
    above: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    symbol: str = ""
    gathering: bool = False

    @property
    def option(self) -> str:
        """Its long option."""
        return "--" + self.name.replace("_", "-")

    def check(self, value: float | int | str | tuple[float, ...]) -> None:
        """Raise ValueError if a value, of the right type already, is none that the method takes."""
        if isinstance(value, str):
            if value not in self.choices:
                raise ValueError(f"{quoted(value)} is none of {', '.join(self.choices)}")
            return
        if self.kind == "rank":
            if isinstance(value, float) and not 0 < value <= 1:
                raise ValueError(f"{value} is no fraction in (0, 1]")
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{value} is no whole number of directions, expected at least 1")
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if not abs(number) < _LARGEST:
                raise ValueError(f"{quoted(number)} is not a finite number")
            if self.least is not None and number < self.least:
                raise ValueError(f"{number} is below {self.least:g}")
            if self.above is not None and number <= self.above:
                raise ValueError(f"{number} is not above {self.above:g}")
            if self.most is not None and number > self.most:
                raise ValueError(f"{number} is above {self.most:g}")
        if self.kind == "numbers" and not any(numbers):
            raise ValueError("they are all zero")


@dataclass(frozen=True)
class Method:
    """A registry line: everything the engine, the help and the card need to know of a method.

    Attributes:
        name: as in `--method`.
        family: one of FAMILIES: what the method looks at.
        title: the paper's name for it.
        summary: one sentence for the help.
        matrices: one sentence: what the attention and MLP weights get.
        others: one sentence: what every other tensor gets.
        formula: LaTeX of the rule for matrices.
        matrix_rule: "package.module:function", for the attention and MLP weights.
        other_rule: the same for every other tensor.
        parameters: the keyword arguments a recipe may set; each rule gets those it names.
        needs_base: whether the rules take `base`, the pretrained tensor.
        arxiv: id of the paper.
        citation: its BibTeX.
        updates: "package.module:function" that takes the method apart for a sweep: (thetas, and what it names of
            ranks, base and the parameters) to an anchor and what each rank adds to it at scale 1. None if the result is
            not anchor + scale × update, or if it is that for every tensor with the base as anchor: see `swept`.
        fit: "package.module:function" that gathers what the rules must know of all tensors together, by streaming them
            first: a generator function of those parameters that it names. It yields a `Measure` for each pass, is sent
            the measures' sum over all groups, and returns keyword arguments of the rules, as JSON has them. None if the
            rules need nothing but the group itself.
        task_vectors: whether the result is the base plus a merged task vector that `lines` may scale by block and
            `svc` by matrix. With a parameter `scale` both rules are then the base plus scale times something, which
            `lines` and a sweep rely on.
        statistics: what its rules must know of each tower on images of its own task, without labels: `fisher` (they
            take `fishers`, task × shape, and `norms`) or `gram` (the matrix rule takes `grams` of the layers' inputs,
            task × n × n); gathered by hfcart.learning.statistics. None if it needs no images.
        through_merged: whether a block's Gram matrices are gathered on what comes through the merged embeddings and
            blocks before it, in place of the tower's own. Its rules merge the front as well, and know no more by `fit`.
        heads: whether those statistics take the tasks' zero-shot heads, and so the base's text side.
        exactly: the number of sources it is defined for; 0 for any.
        fewest: with fewer sources than this (and more than one) it gives their plain average, whatever its parameters.
        decomposes: whether each tower's matrices go through an SVD.
        batched: whether its rule has all towers' matrices decomposed at once where that is faster, as on CUDA, and not
            their sum alone; for what a plan says of the device's memory.
        any_matrix: whether its rule for attention and MLP weights means as much for any other matrix, such as the
            position embedding.
        published: mean accuracy over the eight tasks of CART's tables in per cent, (ViT-B/32, ViT-L/14), as that paper
            prints it or, where `note` says so, the method's own: OpenCLIP's towers, not the Hub's.
        note: where the figures come from; what else is to be said of the settings.
        copies: float32 copies of a group that its algebra takes beside the towers' own, for the estimate of memory.
        adaptive: what it becomes with `adapt`; None if its result is no sum over towers with coefficients. Its rules
            then take `coefficients`, one for each tower, in place of what `replaces` names.
        chosen: what can be chosen on labelled validation images of the towers' tasks; None if nothing can.
        package: who brings it, name and version; empty for hfcart's own. Filled in when it is found.
    """

    name: str
    family: str
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
    updates: str | None = None
    fit: str | None = None
    task_vectors: bool = False
    statistics: Literal["fisher", "gram"] | None = None
    through_merged: bool = False
    heads: bool = False
    exactly: int = 0
    fewest: int = 1
    decomposes: bool = False
    batched: bool = False
    any_matrix: bool = False
    published: tuple[float | None, float | None] = (None, None)
    note: str = ""
    copies: int = 4
    adaptive: Adaptive | None = None
    chosen: Chosen | None = None
    package: str = ""

    @property
    def takes_tasks(self) -> bool:
        """Whether it looks at images of each tower's own task, or can do so."""
        return self.statistics is not None or self.chosen is not None

    @property
    def needs(self) -> str:
        """What it takes beside the towers, in a few words."""
        exactly = f", {plural(self.exactly, 'source')}" if self.exactly else ""
        examples = self.parameter("examples")
        images = f", {examples.default} unlabelled images a task" if self.statistics and examples else ""
        base = "base model" if self.needs_base else "base's text tower" if self.heads else "towers only"
        return base + exactly + images

    @property
    def alike(self) -> bool:
        """Whether every tensor gets what the attention and MLP weights get."""
        return self.matrix_rule == self.other_rule

    @property
    def swept(self) -> bool:
        """Whether a sweep takes it: it is anchor + scale × update, by `updates` or with the base; without images."""
        of_base = self.task_vectors and self.parameter("scale") is not None and self.parameter("rank") is None
        return (self.updates is not None or of_base) and self.statistics is None

    def load(self) -> tuple[Callable[..., Merged], Callable[..., Merged]]:
        """Import and return (matrix rule, other rule): functions (thetas, **keywords) -> Merged."""
        return function(self.matrix_rule), function(self.other_rule)

    def parameter(self, name: str) -> Parameter | None:
        """Its parameter of that name, if it has one."""
        return next((p for p in self.parameters if p.name == name), None)

    def rule_name(self, *, matrix: bool) -> str:
        """Name of the rule that a tensor gets, for the record: "cart", "average", ..."""
        return (self.matrix_rule if matrix else self.other_rule).rsplit(":", 1)[1]


def keywords_of(rule: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """Those of the offered arguments that a rule names."""
    named = inspect.signature(rule).parameters
    return {name: value for name, value in offered.items() if name in named}


def function(where: str) -> Callable[..., Any]:
    """Import "package.module:name"."""
    module, name = where.split(":")
    loaded: Any = getattr(importlib.import_module(module), name)
    return loaded  # type: ignore[no-any-return]
