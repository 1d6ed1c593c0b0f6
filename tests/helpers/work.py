"""How much work a piece of code does, whatever the machine: products, decompositions, bytes read and written."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hfcart.maths import low_rank

_DECOMPOSITIONS = {"_linalg_eigh", "_linalg_svd", "linalg_qr", "linalg_cholesky_ex"}


class _Count(TorchDispatchMode):
    def __init__(self, add: Callable[[str, int], None]) -> None:
        super().__init__()
        self.add = add

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.partition("::")[2].rstrip("_")
        if name in ("mm", "bmm", "addmm", "mv"):
            left, right = args[-2:]
            self.add("multiplications", left.numel() * (right.shape[-1] if right.ndim > 1 else 1))
        if name == "_linear_pointwise":
            self.add("multiplications", args[0].numel() * len(args[1]))
        if name in _DECOMPOSITIONS:
            self.add("decompositions", 1)
        return function(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Yields what is done for as long as this lasts, in this thread and in those that are started meanwhile.

    Multiplications are of matrix products, decompositions torch's and LAPACK's own, bytes those of weight files.
    """
    work: Counter[str] = Counter()
    run, read, write = threading.Thread.run, os.preadv, os.pwrite
    sytrd, *others = low_rank.LAPACK[torch.float32]
    lock = threading.Lock()

    def add(kind: str, amount: int) -> None:
        with lock:
            work[kind] += amount

    def watched(thread: threading.Thread) -> None:
        with _Count(add):
            run(thread)

    def tridiagonal(*arguments: Any) -> int:
        add("decompositions", 1)
        return sytrd(*arguments)

    def reading(*arguments: Any) -> int:
        got = read(*arguments)
        add("read", got)
        return got

    def writing(*arguments: Any) -> int:
        put = write(*arguments)
        add("written", put)
        return put

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "run", watched)
        patch.setattr(os, "preadv", reading)
        patch.setattr(os, "pwrite", writing)
        patch.setitem(low_rank.LAPACK, torch.float32, [tridiagonal, *others])
        with _Count(add):
            yield work
