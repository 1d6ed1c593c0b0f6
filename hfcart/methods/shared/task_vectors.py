"""Task vectors τ_t = θ_t − θ_0 for the rules that need them: exact, one or a run of entries at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from hfcart.maths.moments import double_home, run_of
from hfcart.system.threads import in_parallel


def task_vector(theta: Float[Tensor, " *shape"], base: Float[Tensor, " *shape"]) -> Float64[Tensor, " *shape"]:
    """θ_t − θ_0 in float64, where float32 weights have an exact difference."""
    home = double_home(theta.device)
    return theta.to(home, torch.float64, copy=True).sub_(base.to(home))


def summed(thetas: Float[Tensor, " task *shape"], base: Float[Tensor, " *shape"]) -> Float64[Tensor, " *shape"]:
    """Σ_t τ_t in float64."""
    total = task_vector(thetas[0], base)
    for theta in thetas[1:]:
        total.add_(task_vector(theta, base))
    return total


def onto(base: Float[Tensor, " *shape"], update: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """θ_0 + update, rounded once. Where the update is zero the base keeps its very bits: -0.0 + 0.0 is +0.0."""
    exact = base.to(update.device).to(update.dtype) + update
    return torch.where((update == 0).to(base.device), base, exact.to(base.dtype).to(base.device))


def merge_chunks(
    thetas: Float[Tensor, " task *shape"], base: Float[Tensor, " *shape"], rule: Callable[[Tensor, slice], Tensor]
) -> Float[Tensor, " *shape"]:
    """θ_0 plus what a rule makes of the task vectors, entry by entry.

    Args:
        thetas: the T towers' versions of one tensor.
        base: the pretrained version.
        rule: (task vectors, where in the flat tensor they lie) -> update; task × entry and entry, float64.
    """
    start, out = base.reshape(-1), torch.empty_like(base).reshape(-1)
    for taus, part in chunks_of(thetas, base):
        out[part] = onto(start[part], rule(taus, part))
    return out.reshape(base.shape)


def chunks_of(
    thetas: Float[Tensor, " task *shape"], base: Float[Tensor, " *shape"]
) -> Iterator[tuple[Float64[Tensor, "task entry"], slice]]:
    """The task vectors of one tensor, a run of entries at a time."""
    home = double_home(base.device)
    flat, start = thetas.reshape(len(thetas), -1), base.reshape(-1)
    run = run_of(base.device)
    for begin in range(0, len(start), run):
        part = slice(begin, min(begin + run, len(start)))
        yield flat[:, part].to(home, torch.float64, copy=True).sub_(start[part].to(home)), part


def magnitudes(taus: Float64[Tensor, "task entry"]) -> Float32[Tensor, "task entry"]:
    """|τ| rounded to float32: what entries are ranked by, here and in a first pass over all of them."""
    return taus.float().abs_()


def magnitudes_of(theta: Float[Tensor, " *shape"], base: Float[Tensor, " *shape"]) -> Float32[Tensor, " entry"]:
    """The magnitudes of one tower's task vector over a whole tensor, flat."""
    return torch.cat([magnitudes(taus)[0] for taus, _ in chunks_of(theta[None], base)])


def ranked(values: Float[Tensor, " entry"], *ranks: int) -> Float[Tensor, " rank"]:
    """The entries of these ranks, 0 is the smallest; left on their device."""
    if values.device.type == "cpu":
        return torch.stack([values.kthvalue(rank + 1).values for rank in ranks])
    ordered = values.sort().values  # once for all ranks; and CUDA's kthvalue keeps one of its many processors busy
    return torch.stack([ordered[rank] for rank in ranks])


def kth_largest(values: Float[Tensor, " entry"], share: float) -> Float[Tensor, ""]:
    """The smallest of the share of the entries that are largest: max(1, ⌊share · n⌋ of them). On its device."""
    keep = max(1, int(share * len(values)))
    return ranked(values, len(values) - keep)[0]


def generator_of(seed: int, key: str, task: int) -> torch.Generator:
    """A stream of random numbers that depends on the seed, the group's name and the tower's place, and nothing else."""
    digest = hashlib.sha256(f"{seed}:{task}:{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def draws(streams: Sequence[torch.Generator], count: int, device: torch.device) -> Float32[Tensor, "stream entry"]:
    """The next numbers of each stream, uniform in [0, 1). The CPU draws them: every device drops the same entries.

    On the CPU the worker threads draw for a group each; with a device its one thread would, a stream after another.
    """
    out = torch.empty(len(streams), count, pin_memory=device.type == "cuda")

    def draw(place: int) -> None:
        torch.rand(count, generator=streams[place], out=out[place])

    if device.type == "cpu":
        for place in range(len(streams)):
            draw(place)
    else:
        in_parallel(draw, range(len(streams)))
    return out.to(device, non_blocking=True)


def agreeing(taus: Float64[Tensor, "task entry"], signs: Float64[Tensor, " entry"]) -> Float64[Tensor, "task entry"]:
    """The entries that have the elected sign; zero elsewhere, and everywhere where no sign is elected."""
    return taus * (taus.sign() == signs) * (signs != 0)


def disjoint_mean(taus: Float64[Tensor, "task entry"]) -> Float64[Tensor, " entry"]:
    """Mean over the tasks whose entry is not zero."""
    return taus.sum(0) / (taus != 0).sum(0).clamp(min=1)
