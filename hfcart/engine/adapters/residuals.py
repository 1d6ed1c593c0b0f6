"""What each source has that the tower as written has not, cut to rank k and put into its adapter: Eq. 5.

The difference is taken from the merged tensor after it was rounded to the output's dtype: what is loaded and added is
then right, whatever that dtype is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hfcart.clip.tensor_names import Group
from hfcart.engine.adapters.layout import Adapters
from hfcart.engine.loop import Drive
from hfcart.engine.plan import TORCH_NAME, Plan
from hfcart.engine.reading import TORCH_DTYPES, all_finite
from hfcart.engine.writing import GroupWriter
from hfcart.errors import NonFiniteError
from hfcart.maths.low_rank import LowRank, truncated_svd
from hfcart.maths.low_rank_batch import is_batched, truncated_svds
from hfcart.records.adapters import adapter_file


class Written(NamedTuple):
    """A group's part of every adapter, as its journal line has it.

    Attributes:
        sha256: by the tensors' slots.
        norms: of each source: [what its rank keeps of ‖θ_t − tower‖², ‖θ_t − tower‖², whether the solver gave up]; []
            for what is no matrix.
    """

    sha256: dict[str, str]
    norms: list[list[float]]


class Residuals:
    """Makes and writes the adapters, group by group. Several threads may, each group by one of them."""

    def __init__(self, plan: Plan, adapters: Adapters, writer: GroupWriter, device: torch.device) -> None:
        """Take the plan, its towers in canonical order.

        Args:
            plan: of the merge.
            adapters: of the plan.
            writer: with a slot for every tensor of them.
            device: where matrices are decomposed.
        """
        self._adapters, self._writer, self._device = adapters, writer, device
        self._names = plan.sources.canonical(adapters.names)
        self._shapes = plan.shapes
        self._dtype, self._dtype_name = TORCH_DTYPES[plan.dtype], TORCH_NAME[plan.dtype]

    def write(
        self, group: Group, thetas: Float[Tensor, " task *shape"], merged: Float[Tensor, " *shape"], drive: Drive
    ) -> Written:
        """Write a group's part of every adapter.

        Args:
            group: of the tower; nothing that is copied.
            thetas: the group of every tower, on the CPU. Overwritten.
            merged: what was made of it, on the CPU.
            drive: has work done on the device.

        Raises:
            NonFiniteError: a number that the dtype cannot hold.
        """
        if group.key in self._adapters.ranks:
            return self._factors(group, self._from(thetas, merged), drive)
        stored = self._adapters.whole(group.key)
        if stored not in self._adapters.shapes:
            return Written({}, [])
        values = self._from(thetas, merged) if self._adapters.is_delta(group.key) else thetas
        found = [self._put(name, stored, value) for name, value in zip(self._names, values, strict=True)]
        return Written({slot: digest for each in found for slot, digest in each.items()}, [])

    def _from(self, thetas: Float[Tensor, " task *shape"], merged: Float[Tensor, " *shape"]) -> Tensor:
        """The towers' differences from what was written, in their place; a copy of it, for it may be one of them."""
        return thetas.sub_(merged.to(self._dtype, copy=True).to(thetas.dtype))

    def _factors(self, group: Group, residuals: Float[Tensor, "task m n"], drive: Drive) -> Written:
        digests: dict[str, str] = {}
        norms = []
        rows = [self._shapes[name][0] for name in group.names]
        parts = self._approximated(residuals, self._adapters.ranks[group.key], drive)
        for name, (total, part) in zip(self._names, parts, strict=True):
            norms.append([part.energy * total, total, part.fallback])
            left, right = balanced(part)
            for matrix, block in zip(group.names, torch.split(left, rows), strict=True):
                for stored, factor in zip(self._adapters.factors(matrix), (block, right.T), strict=True):
                    digests |= self._put(name, stored, factor)
        return Written(digests, norms)

    def _approximated(
        self, residuals: Float[Tensor, "task m n"], k: int, drive: Drive
    ) -> Iterable[tuple[float, LowRank]]:
        """‖A‖² and SVD_k(A) of each: one after the other on the CPU, in their own memory; all at once on a device."""
        if self._device.type == "cpu":
            return ((_square(residual), truncated_svd(residual, k, overwrite=True)) for residual in residuals)
        return zip(map(_square, residuals), drive(_on_device, residuals, k, self._device), strict=True)

    def _put(self, adapter: str, stored: str, values: Tensor) -> dict[str, str]:
        out = values.to(self._dtype).contiguous()
        if not all_finite(out):
            raise NonFiniteError(
                f"{stored} of the adapter {adapter} has values beyond what {self._dtype_name} holds.",
                hint="Give --dtype float32.",
            )
        return self._writer.write_whole(adapter_file(adapter, stored), out)


def _square(a: Float[Tensor, "m n"]) -> float:
    return float(torch.linalg.vector_norm(a, dtype=torch.float64)) ** 2


def _on_device(residuals: Float[Tensor, "task m n"], k: int, device: torch.device) -> list[LowRank]:
    there = residuals.to(device)
    found = truncated_svds(there, k) if is_batched(device) else [truncated_svd(each, k) for each in there]
    return [LowRank(each.left.cpu(), each.right.cpu(), each.energy, each.solver, each.fallback) for each in found]


def balanced(part: LowRank) -> tuple[Float[Tensor, "m k"], Float[Tensor, "n k"]]:
    """The factors with the singular values shared evenly, √σ to each side: neither loses digits in half precision.

    Returns:
        (left, right) with the same product.
    """
    left, right = (torch.linalg.vector_norm(side, dim=0) for side in (part.left, part.right))
    by = torch.where((left > 0) & (right > 0), (right / left).sqrt(), 1.0)
    return part.left * by, part.right / by
