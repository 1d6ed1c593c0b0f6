"""TIES: trim, elect signs, merge what agrees (arXiv 2306.01708, Sec. 3)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Float64, Int32, Int64
from torch import Tensor

from hfcart.maths.moments import double_home
from hfcart.methods.contract import Measure, Merged, Parts
from hfcart.methods.shared.task_vectors import (
    agreeing,
    chunks_of,
    disjoint_mean,
    kth_largest,
    magnitudes,
    magnitudes_of,
    merge_chunks,
)

_LOW_BITS = 15  # of the 31 that order the magnitudes of float32: 65,536 bins of 32,768 values each
_BINS = 1 << (31 - _LOW_BITS)


def ties(
    thetas: Float[Tensor, " task *shape"],
    thresholds: Sequence[float] | None,
    majority: int,
    *,
    base: Float[Tensor, " *shape"],
    scale: float = 1.0,
    density: float = 0.2,
    trim: str = "global",
    combine: str = "mean",
    coefficients: Sequence[float] | None = None,
) -> Merged:
    """θ_0 + λ times the mean (or sum) of the trimmed task vectors' entries that have the elected sign.

    The sign elected for an entry is that of the trimmed task vectors' sum, or the majority's where that is zero.

    Args:
        thetas: the T towers' versions of one tensor, float32 (or float64), any shape.
        thresholds: for each tower the least |τ| that stays; None to take it from this tensor alone.
        majority: sign of the sum of all signs elected in the whole tower: 1, 0 or -1.
        base: the pretrained version θ_0.
        scale: λ, any finite number.
        density: share of each task vector that stays, in (0, 1]; used where there are no thresholds yet.
        trim: `global` over the whole tower, by `gather`; `tensor` over each tensor.
        combine: `mean` over the towers that agree, or `sum`.
        coefficients: a λ_t for each tower's entries that agree, which are then summed, in place of `scale` and
            `combine` (AdaMerging++, arXiv 2310.02575).
    """
    least = thresholds if thresholds is not None else _own_thresholds(thetas, base, density)
    weights = None if coefficients is None else torch.tensor(list(coefficients), dtype=torch.float64)

    def rule(taus: Tensor, _: slice) -> Tensor:
        kept = _elected(taus, least, majority)
        if weights is not None:
            return weights.to(taus.device) @ kept
        return scale * (kept.sum(0) if combine == "sum" else disjoint_mean(kept))

    return Merged(merge_chunks(thetas, base, rule))


def parts(
    thetas: Float[Tensor, " task *shape"],
    thresholds: Sequence[float] | None,
    majority: int,
    *,
    base: Float[Tensor, " *shape"],
    density: float = 0.2,
) -> Parts:
    """The base, and of each task vector what trimming and the election of signs leave. Arguments as for `ties`."""
    least = thresholds if thresholds is not None else _own_thresholds(thetas, base, density)
    kept = torch.empty_like(thetas).reshape(len(thetas), -1)
    for taus, part in chunks_of(thetas, base):
        kept[:, part] = _elected(taus, least, majority).to(kept.device, kept.dtype)
    return Parts(base, kept.reshape(thetas.shape))


def gather(*, density: float, trim: str) -> Generator[Measure, Tensor, dict[str, Any]]:
    """What TIES must know of the whole tower, in three passes (one for trim=tensor) of bounded memory, exactly.

    The k-th largest of n float32 magnitudes is found from their bit patterns, which are in the same order: a histogram
    of the upper bits says which bin it is in, and one of the lower bits of what is in that bin says which value it is.

    Yields:
        Functions (thetas, base) -> int64 counts; each is sent back their sum over all tensors.

    Returns:
        The keyword arguments `thresholds` and `majority` of `ties`.
    """
    thresholds = None
    if trim == "global":
        counts = yield _upper_counts
        keep = max(1, int(density * int(counts[0].sum())))
        bins, left = zip(*(_find(row, keep) for row in counts), strict=True)
        counts = yield partial(_lower_counts, bins=bins)
        patterns = [(b << _LOW_BITS) + _find(row, k)[0] for b, row, k in zip(bins, counts, left, strict=True)]
        thresholds = torch.tensor(patterns, dtype=torch.int32).view(torch.float32).tolist()
    signs = yield partial(_sign_sum, thresholds=thresholds, density=density)
    return {"thresholds": thresholds, "majority": int(signs.sign())}


def _find(counts: Int64[Tensor, " bin"], k: int) -> tuple[int, int]:
    """The bin that the k-th largest lies in, and which of the largest of that bin it is."""
    above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, k))
    return len(counts) - 1 - place, k - int(above[place] - counts.flip(0)[place])


def _patterns(taus: Float64[Tensor, "task entry"]) -> Tensor:
    return magnitudes(taus).view(torch.int32)


def _upper_counts(thetas: Float[Tensor, " task *shape"], base: Float[Tensor, " *shape"]) -> Int64[Tensor, "task bin"]:
    counts = torch.zeros(len(thetas), _BINS, dtype=torch.int64, device=double_home(base.device))
    for taus, _ in chunks_of(thetas, base):
        for row, bits in zip(counts, _patterns(taus), strict=True):
            if bits.device.type == "cpu":
                row += (bits >> _LOW_BITS).bincount(minlength=_BINS)
            else:
                row += _counts_on_device(bits, 0, 1 << _LOW_BITS, _BINS)
    return counts.cpu()


def _lower_counts(
    thetas: Float[Tensor, " task *shape"], base: Float[Tensor, " *shape"], bins: Sequence[int]
) -> Int64[Tensor, "task value"]:
    size = 1 << _LOW_BITS
    counts = torch.zeros(len(thetas), size, dtype=torch.int64, device=double_home(base.device))
    for taus, _ in chunks_of(thetas, base):
        for row, bits, place in zip(counts, _patterns(taus), bins, strict=True):
            if bits.device.type == "cpu":
                row += (bits[bits >> _LOW_BITS == place] & (size - 1)).bincount(minlength=size)
            else:
                row += _counts_on_device(bits, place << _LOW_BITS, 1, size)
    return counts.cpu()


def _counts_on_device(bits: Int32[Tensor, " entry"], first: int, width: int, bins: int) -> Int64[Tensor, " bin"]:
    """How many patterns lie in each of so many bins, each of `width` patterns, the first beginning at `first`.

    By sorting: a device counts slowly where many fall into few bins, and would have to be waited for.
    """
    edges = first + width * torch.arange(bins + 1, device=bits.device)
    edges = edges.clamp(max=torch.iinfo(torch.int32).max).int()  # no magnitude has that pattern
    return torch.searchsorted(bits.sort().values, edges).diff()


def _sign_sum(
    thetas: Float[Tensor, " task *shape"],
    base: Float[Tensor, " *shape"],
    thresholds: Sequence[float] | None,
    density: float,
) -> Int64[Tensor, ""]:
    least = thresholds if thresholds is not None else _own_thresholds(thetas, base, density)
    total = torch.zeros((), dtype=torch.int64, device=double_home(base.device))
    for taus, _ in chunks_of(thetas, base):
        total += _trimmed(taus, least).sum(0).sign().sum().long()
    return total.cpu()


def _own_thresholds(
    thetas: Float[Tensor, " task *shape"], base: Float[Tensor, " *shape"], density: float
) -> Float[Tensor, " task"]:
    return torch.stack([kth_largest(magnitudes_of(theta, base), density) for theta in thetas])


def _elected(
    taus: Float64[Tensor, "task entry"], least: Sequence[float] | Float[Tensor, " task"], majority: int
) -> Float64[Tensor, "task entry"]:
    kept = _trimmed(taus, least)
    sign = kept.sum(0).sign()
    return agreeing(kept, torch.where(sign == 0, float(majority), sign))


def _trimmed(
    taus: Float64[Tensor, "task entry"], least: Sequence[float] | Float[Tensor, " task"]
) -> Float64[Tensor, "task entry"]:
    edges = least
    if not isinstance(edges, Tensor):
        edges = torch.tensor(edges, dtype=torch.float32, device=taus.device)
    return taus * (magnitudes(taus) >= edges[:, None])
