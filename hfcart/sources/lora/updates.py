"""The tensors of an adapter's file, each put to the tensor of the tower that it changes or replaces."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from hfcart.clip.tensor_names import canonical
from hfcart.errors import MismatchError, NotATowerError
from hfcart.formats.safetensors_file import TensorSpec
from hfcart.quoting import quoted
from hfcart.sources.lora.config import MERGED_BY_PEFT, LoraConfig
from hfcart.sources.one_architecture import tensor_differences

if TYPE_CHECKING:
    from torch import Tensor

_WRAPPED = "base_model.model."  # what peft puts before the names of the model it wraps
# A name of a tower of transformers, behind whatever the model that was trained had around it.
_OWN = re.compile(
    r"(?:.*?\.)?((?:vision_model\.)?(?:embeddings|encoder|pre_layrnorm|post_layernorm)\..+|visual_projection\..+)"
)
_TEXT = re.compile(r"(?:.*\.)?(?:text_model\..+|text_projection\..+|logit_scale)")
_CLASSIFIER = re.compile(r"(?:.*\.)?classifier\..+")
_CONSTANT = re.compile(r"(?:.*\.)?embeddings\.position_ids")
_PRODUCT = re.compile(r"(.+)\.(lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB])")


@dataclass(frozen=True)
class Update(TensorSpec):
    """A tensor of an adapted tower: what it begins with, and what is added to that.

    As a TensorSpec it says what comes out: float32, of the base's shape; `file` is the adapter's, with no bytes in it.

    Attributes:
        under: what the base stores.
        saved: what the adapter stores in its place (a trained bias, a module in modules_to_save); None for nothing.
        down: A, r × in; None if nothing is added, or a bias.
        up: B, out × r, or what is added to a bias; None if nothing is added.
        scale: what multiplies B A.
    """

    under: TensorSpec | None = None
    saved: TensorSpec | None = None
    down: TensorSpec | None = None
    up: TensorSpec | None = None
    scale: float = 0.0

    def added(self, down: Tensor | None, up: Tensor) -> Tensor:
        """What is added: scale · B A in the tensor's shape, float64, so that no order of summation shows in float32.

        Args:
            down: A as it is stored: r × in, r × channels × p × p of a convolution, r × rows of an embedding; None for
                a bias.
            up: B as it is stored: out × r, with 1 × 1 behind it of a convolution.
        """
        if down is None:
            return up.double().mul_(self.scale)
        product = (up.double().flatten(1) @ down.double().flatten(1)).mul_(self.scale)
        transposed = self.down is not None and self.down.name.endswith("lora_embedding_A")  # its rows are its inputs
        return (product.T if transposed else product).reshape(self.shape)


class Updates(NamedTuple):
    """What an adapter makes of its base.

    Attributes:
        tensors: canonical name -> update.
        matrices: how many of them get a product B A.
        ranks: of these products, in ascending order.
        left: what of the adapter is no part of a vision tower, in words.
    """

    tensors: dict[str, Update]
    matrices: int
    ranks: tuple[int, ...]
    left: tuple[str, ...]


def find_updates(
    stored: Sequence[TensorSpec], config: LoraConfig, base: Mapping[str, TensorSpec], where: str, of: str
) -> Updates:
    """What an adapter makes of the tensors of its base.

    Args:
        stored: everything the adapter's headers list.
        config: of the adapter.
        base: canonical name -> where the base stores it.
        where: the adapter's label, for messages.
        of: the base's label.

    Raises:
        MismatchError: a tensor without a place in the base, or of another shape than its place; one of a pair lacks.
        NotATowerError: it changes nothing of a vision tower.
    """
    if dora := next((spec.name for spec in stored if spec.name.endswith("lora_magnitude_vector")), None):
        raise NotATowerError(
            f"{where} is DoRA: it holds {quoted(dora, 120)}, and is more than a low-rank update of its base.",
            hint=MERGED_BY_PEFT,
        )
    found = _Finding(config, base)
    for spec in stored:
        found.add(spec)
    for module, parts in found.modules.items():
        found.add_products(module, parts)
    if rows := tensor_differences(found.held, found.expected):
        raise MismatchError(
            f"The LoRA adapter {where} does not fit {of}, the base that it is added to. Nothing was downloaded.",
            [(where, *row) for row in rows],
            hint="Name a revision of it that fits, user/name@revision, or leave it out.",
        )
    if not found.tensors:
        raise NotATowerError(
            f"The LoRA adapter {where} changes nothing of a vision tower"
            + (f": it holds {' and '.join(found.left)} only." if found.left else ": it holds no tensor."),
            hint="Leave it out: vision towers are merged.",
        )
    return Updates(found.tensors, found.matrices, tuple(sorted(found.ranks)), tuple(found.left))


class _Finding:
    """The tensors of an adapter while they are put to their places."""

    def __init__(self, config: LoraConfig, base: Mapping[str, TensorSpec]) -> None:
        self._config, self._base = config, base
        self.tensors: dict[str, Update] = {}
        self.modules: dict[str, dict[str, TensorSpec]] = {}  # name in the adapter -> part (`lora_A.weight`, ...) -> it
        self.held: dict[str, TensorSpec] = {}  # by the names in the file
        self.expected: dict[str, tuple[int, ...]] = {}
        self.left: dict[str, None] = {}
        self.matrices = 0
        self.ranks: set[int] = set()

    def add(self, spec: TensorSpec) -> None:
        """Take a stored tensor: one that replaces the base's at once, one of a product with its module."""
        name = spec.name.removeprefix(_WRAPPED)
        if kind := _beside(name):
            self.left[kind] = None
            return
        if ".original_module." in name:
            return  # what a module in modules_to_save was before
        self.held[spec.name] = spec
        if pair := _PRODUCT.fullmatch(name):
            self.modules.setdefault(pair[1], {})[pair[2]] = spec
            return
        place = _place(name.replace(".base_layer.", ".").replace(".modules_to_save.", "."))
        if place in self._base:
            self.expected[spec.name] = self._base[place].shape
            if place not in self.tensors or ".modules_to_save." in name:  # which peft may write twice, once plainly
                self._at(place, spec, saved=spec)

    def add_products(self, module: str, parts: dict[str, TensorSpec]) -> None:
        """Put a module's pair of matrices to its weight, and a bias that goes with them to its bias."""
        place, bias = _place(f"{module}.weight"), _place(f"{module}.bias")
        weight = self._base.get(place)
        if weight is None or len(weight.shape) not in (2, 4):
            return  # then its tensors have no place
        rank, first = self._config.rank(module), next(iter(parts.values()))
        down, up, shapes = _pair(weight.shape, rank, embedding=any("embedding" in part for part in parts))
        if "lora_B.bias" in parts and bias in self._base:
            shapes["lora_B.bias"] = self._base[bias].shape
            self._at(bias, first, up=parts["lora_B.bias"], scale=self._config.scale(module))
        stem = first.name[: first.name.rindex(".lora_")]
        self.expected |= {f"{stem}.{part}": shape for part, shape in shapes.items()}
        if down in parts and up in parts:
            self._at(place, first, down=parts[down], up=parts[up], scale=self._config.scale(module))
            self.matrices += 1
            self.ranks.add(rank)

    def _at(self, place: str, of: TensorSpec, **parts: Any) -> None:  # noqa: ANN401 (fields of an update)
        under = self._base[place]
        begun = self.tensors.get(place) or Update(place, "F32", under.shape, of.file, 0, 0, under=under)
        self.tensors[place] = replace(begun, **parts)


def _place(name: str) -> str:
    """The canonical name of a parameter as an adapter calls it; "" for what is no name of a vision tower."""
    own = _OWN.fullmatch(name)
    return canonical(own[1]) or "" if own else ""


def _beside(name: str) -> str | None:
    """What a name belongs to, if that is no part of a vision tower."""
    if _TEXT.fullmatch(name):
        return "a text tower's tensors"
    if _CLASSIFIER.fullmatch(name):
        return "a classifier"
    return "position ids" if _CONSTANT.fullmatch(name) else None


def _pair(weight: tuple[int, ...], rank: int, *, embedding: bool) -> tuple[str, str, dict[str, tuple[int, ...]]]:
    """What peft calls A and B for a weight of this shape, and the shapes that they have."""
    if embedding:
        return "lora_embedding_A", "lora_embedding_B", {
            "lora_embedding_A": (rank, weight[0]), "lora_embedding_B": (weight[1], rank)
        }  # fmt: skip
    ones = (1,) * (len(weight) - 2)
    return "lora_A.weight", "lora_B.weight", {
        "lora_A.weight": (rank, *weight[1:]), "lora_B.weight": (weight[0], rank, *ones)
    }  # fmt: skip
