"""First and second moments over tasks: the mean, and how far apart the towers are.

Both run over flat chunks, so that their temporaries stay in cache and do not grow with the tensor.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def run_of(device: torch.device) -> int:
    """Entries of a tensor to take at once: on the CPU what stays in second-level cache, elsewhere few steps."""
    return 1 << (16 if device.type == "cpu" else 20)


def double_home(device: torch.device) -> torch.device:
    """Where float64 lives for tensors on this device: mps has none, the CPU does its sums."""
    return torch.device("cpu") if device.type == "mps" else device


def mean_of(
    thetas: Float[Tensor, " task *shape"], *, low: Float[Tensor, " *shape"] | None = None
) -> tuple[Float[Tensor, " *shape"], Float[Tensor, " *shape"]]:
    """The mean over tasks, taken in float64, as two tensors of the input's dtype whose sum is that mean.

    Args:
        thetas: T versions of one tensor, T >= 1.
        low: contiguous memory for the second of the results; new memory if None.

    Returns:
        (high, low): high is the mean rounded once; low is what the rounding lost. Subtracting both from a
        θ_t keeps a small task vector exact to float32 where subtracting high alone would not.
    """
    home = double_home(thetas.device)
    flat = thetas.reshape(len(thetas), -1)
    high, rest = torch.empty_like(flat[0]), torch.empty_like(flat[0]) if low is None else low.view(-1)
    run = run_of(thetas.device)
    for start in range(0, flat.shape[1], run):
        part = flat[:, start : start + run].to(home)
        # The first row starts the sum, not a zero: 0.0 + -0.0 would lose a sign and one source its bytes.
        total = part[0].to(torch.float64, copy=True)
        for row in part[1:]:
            total.add_(row)
        total.div_(len(part))
        high[start : start + run] = total
        total.sub_(total.to(flat.dtype))
        rest[start : start + run] = total
    return high.reshape(thetas.shape[1:]), rest.reshape(thetas.shape[1:])


def spread_of(
    thetas: Float[Tensor, " task *shape"], base: Float[Tensor, " *shape"] | None
) -> Float64[Tensor, "row row"]:
    """Inner products of a reference and of every tower's difference from it.

    The reference is the base, or the first tower. Differences are formed before they are multiplied: the
    products of whole weights would cancel to nothing in float32.

    Returns:
        Gram matrix of the rows (θ_ref, θ_t − θ_ref for every other t), on the CPU. Summed over tensors it
        holds every distance and every angle between towers, whatever they are then centred on.
    """
    flat = thetas.reshape(len(thetas), -1)
    reference = flat[0] if base is None else base.reshape(-1)
    others = flat[1:] if base is None else flat
    run, home = run_of(thetas.device), double_home(thetas.device)
    if home.type != "cpu":  # float64 is as fast there, and needs no look at each product
        return _spread_in_float64(reference, others, run)
    total = torch.zeros(len(others) + 1, len(others) + 1, dtype=torch.float64)
    for start in range(0, flat.shape[1], run):
        part = reference[start : start + run]
        rows = torch.cat([part[None], others[:, start : start + run] - part])
        products = rows @ rows.T
        if not bool(torch.isfinite(products).all()):  # squares beyond float32, of weights beyond 1e19
            products = rows.to("cpu", torch.float64) @ rows.to("cpu", torch.float64).T
        total += products.to("cpu", torch.float64)
    return total


def _spread_in_float64(
    reference: Float[Tensor, " entry"], others: Float[Tensor, "other entry"], run: int
) -> Float64[Tensor, "row row"]:
    total = torch.zeros(len(others) + 1, len(others) + 1, dtype=torch.float64, device=others.device)
    for start in range(0, len(reference), run):
        part = reference[start : start + run].double()
        rows = torch.cat([part[None], others[:, start : start + run] - part])
        total.addmm_(rows, rows.T)
    return total.cpu()
