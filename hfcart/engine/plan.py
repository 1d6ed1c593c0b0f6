"""The plan of a merge: its sources, what will be computed, and what that will cost."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from hfcart.clip.tensor_names import Group
from hfcart.engine.adaptation_tasks import AdaptationTask
from hfcart.engine.adapters.layout import Adapters
from hfcart.engine.memory import peak_bytes
from hfcart.formats.shard_layout import Layout
from hfcart.methods import ADAPTING, Method
from hfcart.progress import Progress
from hfcart.recipes.merge_check import name_of
from hfcart.recipes.merge_recipe import Recipe, recorded
from hfcart.recipes.named import AdapterSource, LocalSource, SourceTask
from hfcart.records import Architecture, SourceData
from hfcart.sources.full_clip import BaseParts
from hfcart.sources.lineage import infer_base
from hfcart.sources.order import OrderedTowers
from hfcart.sources.towers import Reopened, Tower, with_bases

if TYPE_CHECKING:
    from torch import Tensor, device


CONVERTED = "converted"  # what the folder of converted pickles is called in a work folder
TORCH_NAME = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Statistics(Protocol):
    """What a method knows of each source from images of its task, as hfcart.learning.statistics gathers it."""

    @property
    def data(self) -> tuple[SourceData, ...]:
        """What each was gathered on."""

    @property
    def known(self) -> dict[str, Any]:
        """What a rule takes for every group, by keyword."""

    def of(self, group: Group, device: device) -> dict[str, Tensor]:
        """What its rule takes for a group, by keyword."""

    def close(self) -> None:
        """Close every file."""


@dataclass(frozen=True)
class Plan:
    """Everything that is known before a byte of weights is fetched; later stages return a new plan.

    Attributes:
        recipe: what was asked.
        method: its registry line.
        sources: the towers, in the order given until they are fetched, in canonical order from then on.
        tasks: the task that each of them was fine-tuned on, if the method looks at images, and the dataset's commit,
            if the recipe says one; () once what was to be chosen on them is.
        gathered: what the method knows of those images, once it is gathered.
        adapters: what is written for each source beside the tower; None if nothing is.
        base: the base model, if the method needs one or one was given.
        architecture: shared by all of them.
        shapes: name -> shape of every output tensor, in output order.
        groups: what one call of the method merges, in output order.
        dtype: safetensors dtype of the output.
        layout: every offset of the output, of the adapters too.
        parts: what is copied from the base to make a whole CLIPModel; None for a tower alone.
        learns: the tasks that coefficients are learned on; () without adaptation.
    """

    recipe: Recipe
    method: Method
    sources: OrderedTowers
    base: Tower | None
    architecture: Architecture
    shapes: Mapping[str, tuple[int, ...]]
    groups: tuple[Group, ...]
    dtype: str
    layout: Layout
    parts: BaseParts | None
    tasks: tuple[SourceTask, ...] = ()
    gathered: Statistics | None = None
    adapters: Adapters | None = None
    learns: tuple[AdaptationTask, ...] = ()

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The sources, in canonical order once they are fetched."""
        return self.sources.towers

    @property
    def model_class(self) -> str:
        """Class that loads the output."""
        if self.parts:
            return "CLIPModel"
        return "CLIPVisionModelWithProjection" if self.recipe.with_projection else "CLIPVisionModel"

    @property
    def parameters(self) -> int:
        """Number of parameters written."""
        return sum(prod(shape) for shape in self.shapes.values())

    @property
    def low_rank_groups(self) -> int:
        """How many matrices (fused ones counted once) go through the SVD, for each source; adapters decompose too."""
        decomposes = self.method.decomposes or self.recipe.adapt_ranks is not None
        by_method = sum(g.matrix for g in self.groups) if decomposes else 0
        return by_method + (self.adapters.decomposed(self.groups) if self.adapters else 0)

    @property
    def directions(self) -> list[tuple[int, int, int]]:
        """What the rank means here: (k, of how many, in how many matrices), most frequent first; [] without a rank."""
        from hfcart.maths.low_rank import rank_of  # scipy: not for a plan alone

        rank = self.recipe.parameters.get("rank")
        if rank is None:
            return []
        sizes = Counter(self.full_rank(group) for group in self.groups if group.matrix)
        return [(rank_of(rank, full, full), full, sizes[full]) for full in sorted(sizes, key=lambda full: -sizes[full])]

    def full_rank(self, group: Group) -> int:
        """How many singular directions a matrix has."""
        shapes = [self.shapes[name] for name in group.names]
        return min(sum(shape[0] for shape in shapes), shapes[0][1])

    @property
    def settings(self) -> dict[str, Any]:
        """The method's parameters, those with a value for each source in the towers' present order."""
        out = dict(self.recipe.parameters)
        for parameter in self.method.parameters:
            if isinstance(out.get(parameter.name), tuple):
                out[parameter.name] = self.sources.canonical(out[parameter.name])
        return out

    def coefficients_of(self, group: Group) -> tuple[float, ...] | None:
        """Each tower's coefficient of a group, in the towers' present order; None where there is none."""
        given = (self.recipe.coefficients or {}).get(group.key)
        return None if given is None else self.sources.canonical(given)

    def in_canonical_order(self) -> Plan:
        """This plan with the towers ordered by what they hold. They must be fetched."""
        return dataclasses.replace(self, sources=self.sources.by_content())

    def settled(self, parameter: str, values: Sequence[float]) -> Plan:
        """This plan with a parameter's values known, so that no image needs to be looked at to choose them.

        Args:
            parameter: its name.
            values: one for each tower, in their present order.
        """
        found = {"tasks": None, parameter: self.sources.given_order(values)}
        return dataclasses.replace(self, recipe=self.recipe.model_copy(update=found), tasks=())

    def adapted(
        self, coefficients: Mapping[str, Sequence[float]], directions: Mapping[str, Sequence[str]] | None = None
    ) -> Plan:
        """This plan with what was learned.

        Args:
            coefficients: group's key -> one for each tower, in the towers' present order.
            directions: matrix's key -> those of each tower that stay, likewise, if they were chosen.
        """
        adaptive = self.recipe.adaptive
        found: dict[str, Any] = dict.fromkeys((*(adaptive.replaces if adaptive else ()), *(p.name for p in ADAPTING)))
        found |= {"adapt": None, "adapt_tensors": "auto"}
        found["coefficients"] = {key: list(self.sources.given_order(each)) for key, each in coefficients.items()}
        if directions is not None:
            found["directions"] = {key: list(self.sources.given_order(each)) for key, each in directions.items()}
        return dataclasses.replace(self, recipe=self.recipe.model_copy(update=found))

    def informed(self, gathered: Statistics) -> Plan:
        """This plan with the statistics of images that the method needs."""
        return dataclasses.replace(self, gathered=gathered)

    @property
    def clip_ref(self) -> str | Reopened:
        """What opens the CLIP model behind the towers: the base at its commit, else what they lead to.

        Raises:
            UsageError: nothing tells.
        """
        if self.base is None:
            return infer_base(self.towers, Progress())
        store = self.base.store
        if store.ref:
            return store.ref
        asked = self.recipe.base
        if isinstance(asked, AdapterSource):
            return self.base.again
        path = asked.path if isinstance(asked, LocalSource) else asked or infer_base(self.towers, Progress())
        return Reopened(path, self.base.source.sha256)

    @property
    def own_tasks(self) -> tuple[SourceTask, ...]:
        """The tasks in the towers' present order."""
        return self.sources.canonical(self.tasks)

    @property
    def towers_and_base(self) -> list[Tower]:
        """Every tower that is merged, and the base."""
        return [*self.towers, *([self.base] if self.base else [])]

    @property
    def read(self) -> list[Tower]:
        """Every tower that is read: those that adapters are added to, too."""
        return with_bases(self.towers_and_base)

    @property
    def download_bytes(self) -> int:
        """Weights that are not on this machine yet; with --stream, what is read from the Hub."""
        return sum(
            tower.store.sizes[name]
            for tower in self.read
            if tower.store.remote and not tower.pickled
            for name in tower.weights
            if name not in tower.files
            if self.recipe.stream or not tower.store.here(name)
        )

    @property
    def output_bytes(self) -> int:
        """Size of the weights written."""
        return sum(self.layout.sizes.values())

    def group_elements(self, group: Group) -> int:
        """Number of elements of a group's tensors, of one tower."""
        return sum(prod(self.shapes[name]) for name in group.names)

    def peak_bytes(self, workers: int) -> int:
        """Expected peak of resident memory, no less than what is taken, with so many worker threads."""
        return peak_bytes(self, workers)

    def close(self) -> None:
        """Close the files of every tower."""
        for tower in self.read:
            tower.close()
        if self.gathered:
            self.gathered.close()

    def recorded_recipe(self) -> dict[str, Any]:
        """The recipe that reproduces the bytes: pinned sources, no paths, nothing that cannot change them.

        Needs the towers' records, so it is there once they are fetched.
        """

        out: dict[str, Any] = {"sources": [name_of(tower.source) for tower in self.towers], "method": self.method.name}
        out |= {name: list(value) if isinstance(value, tuple) else value for name, value in self.settings.items()}
        if self.recipe.coefficients is not None:
            found = ((group.key, self.coefficients_of(group)) for group in self.groups)
            out["coefficients"] = {key: list(values) for key, values in found if values is not None}
        if (chosen := self.recipe.directions) is not None:
            keys = [group.key for group in self.groups if group.key in chosen]
            out["directions"] = {key: list(self.sources.canonical(chosen[key])) for key in keys}
        if self.gathered:
            pairs = zip(self.own_tasks, self.gathered.data, strict=True)
            out["tasks"] = [SourceTask.of(own.found, data.dataset).plain() for own, data in pairs]
        if self.base:
            out["base"] = name_of(self.base.source)
        settled = {"dtype": TORCH_NAME[self.dtype], "full_clip": self.parts is not None}
        return out | recorded(self.recipe, settled)
