"""Memory for a thread's largest temporaries, taken once and used again.

Fresh memory costs a page fault every 4 KiB; large blocks that are freed and taken in turns leave holes in a heap.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

_own = threading.local()


def workspace(name: str, like: Tensor) -> Tensor:
    """A tensor of this shape, dtype and device, with anything in it, in memory that the calling thread keeps.

    On the CPU it is the same memory at every call of that name: what was there before is lost. On a device it is new:
    torch keeps a device's memory by itself.

    Args:
        name: of the purpose; what must be there at the same time has different ones.
        like: whose shape, dtype and device it has.
    """
    if like.device.type != "cpu":
        return torch.empty_like(like)
    held: Tensor | None = getattr(_own, name, None)
    if held is None or held.dtype != like.dtype or held.numel() < like.numel():
        held = torch.empty(like.numel(), dtype=like.dtype)
        setattr(_own, name, held)
    return held[: like.numel()].view(like.shape)
