"""The adapters that a merge writes beside its tower: what is in them, where each byte goes, and how peft is told.

Eq. 5 of CART's paper, in the form that peft loads: tower + adapter is the tower with one source's own part of rank k.
All adapters of a merge hold the same tensors; only the numbers in them differ.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from hfcart.clip.tensor_names import PREFIX, Group, is_matrix
from hfcart.errors import UsageError
from hfcart.formats.shard_layout import SINGLE, Layout, Slot, lay_out
from hfcart.quoting import plural
from hfcart.records.adapters import WEIGHTS, adapter_file

_ROOT = "base_model.model."  # what peft's names begin with
_UNLIMITED = 1 << 62  # an adapter is one file: peft reads no other form


@dataclass(frozen=True)
class Adapters:
    """Every adapter of a merge, before a byte of them is computed.

    Attributes:
        names: one for each source, in the order in which they were given.
        ranks: matrix -> k.
        shapes: name in the file -> shape, of one adapter, in the order of the file.
        flat: whether the class that loads the tower has its modules without `vision_model.` before them.
        layout: where the tensors of all adapters go, by `adapter_file(name of the adapter, name in its file)`.
    """

    names: tuple[str, ...]
    ranks: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    flat: bool
    layout: Layout

    @property
    def rank(self) -> int:
        """The k of the matrices, the largest where they differ."""
        return max(self.ranks.values())

    @property
    def parameters(self) -> int:
        """Numbers in one adapter."""
        return sum(map(prod, self.shapes.values()))

    @property
    def file_bytes(self) -> int:
        """Size of one adapter's weight file."""
        return self.layout.sizes[adapter_file(self.names[0], WEIGHTS)]

    @property
    def copies(self) -> float:
        """Float32 copies of a group that making them takes beside the towers' own; of one after the other."""
        full = max(min(self.shapes[left][0], self.shapes[right][1]) for left, right in map(self.factors, self.ranks))
        return 4 + 5 * self.rank / full

    def decomposed(self, groups: Sequence[Group]) -> int:
        """How many matrices of each source go through an SVD, fused ones counted once."""
        return sum(group.key in self.ranks for group in groups)

    def factors(self, matrix: str) -> tuple[str, str]:
        """Names in the file of B (out × k) and A (k × in): the matrix of tower + adapter is the tower's + B A."""
        module = self._path(matrix.removesuffix(".weight"))
        return f"{_ROOT}{module}.lora_B.weight", f"{_ROOT}{module}.lora_A.weight"

    def whole(self, name: str) -> str:
        """Name in the file of a tensor that is no matrix, for one that they carry. It is there whole, or as a delta."""
        path = self._path(name)
        return _ROOT + (path.removesuffix(".bias") + ".lora_B.bias" if self.is_delta(name) else path)

    def is_delta(self, name: str) -> bool:
        """Whether a tensor is the bias of a matrix, to which peft adds one of its own; any other it takes in place."""
        return name.endswith(".bias") and name.removesuffix(".bias") + ".weight" in self.ranks

    def config(self) -> bytes:
        """adapter_config.json, the same for each of them. It names no base: that is the tower it lies beside."""
        count = Counter(self.ranks.values())
        usual = max(count, key=lambda k: (count[k], k))
        others = {self._path(name.removesuffix(".weight")): k for name, k in self.ranks.items() if k != usual}
        whole = [name.removeprefix(_ROOT) for name in self.shapes if ".lora_" not in name]
        modules = dict.fromkeys(_saved_module(name) for name in whole)
        fields = {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": None,
            "r": usual,
            "lora_alpha": usual,  # B A as it is: alpha / r is 1
            "rank_pattern": others,
            "alpha_pattern": others,
            "use_rslora": False,
            "use_dora": False,
            "lora_dropout": 0.0,
            "bias": "none",  # with anything else peft takes one adapter only
            "lora_bias": any(name.endswith(".lora_B.bias") for name in self.shapes),
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "inference_mode": True,
            "target_modules": [self._path(name.removesuffix(".weight")) for name in self.ranks],
            "modules_to_save": list(modules) or None,
        }
        return (json.dumps(fields, indent=2) + "\n").encode()

    def _path(self, name: str) -> str:
        return name.removeprefix(PREFIX) if self.flat else name


def plan_adapters(
    names: Sequence[str],
    rank: int | float,
    groups: Sequence[Group],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtype: str,
    flat: bool,
    all_tensors: bool,
) -> Adapters:
    """Lay the adapters out.

    Args:
        names: of the adapters, in the order of the sources.
        rank: as a method takes it, of each matrix, or of q, k and v together where they are one group.
        groups: of the tower, in output order.
        shapes: of its tensors.
        dtype: safetensors dtype of the tower, which they are written in too.
        flat: as in Adapters.
        all_tensors: whether they carry what is no matrix, too.

    Raises:
        UsageError: a matrix has not so many directions.
    """
    ranks: dict[str, int] = {}
    for group in groups:
        if is_matrix(group.key):
            rows = sum(shapes[name][0] for name in group.names)
            ranks |= dict.fromkeys(group.names, _rank(rank, group, rows, shapes[group.key][1]))
    made = Adapters(tuple(names), ranks, {}, flat, Layout({}, {}, {}, None))
    held: dict[str, tuple[int, ...]] = {}
    for name in [name for group in groups if not group.copied for name in group.names]:
        if k := ranks.get(name):
            left, right = made.factors(name)
            held |= {right: (k, shapes[name][1]), left: (shapes[name][0], k)}
        elif all_tensors:
            held[made.whole(name)] = shapes[name]
    one = lay_out(held, dtype, _UNLIMITED)
    files = {name: adapter_file(name, WEIGHTS) for name in names}
    slots: dict[str, Slot] = {
        adapter_file(name, tensor): dataclasses.replace(place, file=file)
        for name, file in files.items()
        for tensor, place in one.slots.items()
    }
    headers = dict.fromkeys(files.values(), one.headers[SINGLE])
    sizes = dict.fromkeys(files.values(), one.sizes[SINGLE])
    return dataclasses.replace(made, shapes=held, layout=Layout(headers, sizes, slots, None))


def together(layout: Layout, adapters: Adapters | None) -> Layout:
    """The layout of a tower with that of its adapters."""
    if adapters is None:
        return layout
    own = adapters.layout
    return Layout(
        {**layout.headers, **own.headers},
        {**layout.sizes, **own.sizes},
        {**layout.slots, **own.slots},
        layout.index,
    )


def _saved_module(name: str) -> str:
    """The module that peft is to keep a copy of: the embeddings as one, since the class token is a tensor of theirs."""
    head, mark, _ = name.partition("embeddings.")
    return head + mark.removesuffix(".") if mark else name.rpartition(".")[0]


def _rank(rank: int | float, group: Group, rows: int, columns: int) -> int:
    from hfcart.maths.low_rank import rank_of  # scipy and torch: not for a plan without adapters

    try:
        return rank_of(rank, rows, columns)
    except ValueError:
        full = min(rows, columns)
        raise UsageError(
            f"adapters: rank {rank} is above the size of {group.key}, which has {plural(full, 'singular direction')}.",
            hint=f"Give --adapters of at most {full}, or a share such as 8%.",
        ) from None
