"""What ten ranks cost: one decomposition taken apart ten ways, against one rank, and against ten merges.

    python tests/bench/sweep.py [runs]

Eight towers' versions of a ViT-B/32 block's matrices (float32, low-rank plus noise deltas), one BLAS thread; seconds
of CPU for the block, medians, and ratios of the same run.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

from hfcart.methods.cart.rule import cart, updates
from hfcart.system.device import one_blas_thread

TASKS, SHAPES = 8, [(768, 768)] * 4 + [(3072, 768), (768, 3072)]
RANKS = [0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.17, 0.24, 0.35, 0.5]


def block() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    out = []
    for m, n in SHAPES:
        left = torch.randn(TASKS, m, 8, generator=generator)
        low_rank = left @ torch.randn(TASKS, 8, n, generator=generator)
        noise = torch.randn(TASKS, m, n, generator=generator)
        out.append(torch.randn(m, n, generator=generator) * 0.03 + 0.001 * (noise + 0.3 * low_rank))
    return out


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    matrices = block()
    ways: dict[str, Callable[[torch.Tensor], object]] = {
        "one rank, 50 %": lambda x: updates(x, ranks=[0.5]),
        "ten ranks, 2 to 50 %": lambda x: updates(x, ranks=RANKS),
        "ten merges, one a rank": lambda x: [cart(x, rank=rank) for rank in RANKS],
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with one_blas_thread():
        for _ in range(runs):
            for name, work in ways.items():
                start = time.process_time()
                for thetas in matrices:
                    work(thetas)
                times[name].append(time.process_time() - start)
    one = statistics.median(times["one rank, 50 %"])
    print(f"One block of ViT-B/32, {TASKS} towers, seconds of CPU, medians of {runs}")
    for name, found in times.items():
        middle = statistics.median(found)
        print(f"  {name:<24} {middle:6.2f} s   {middle / one:5.2f} x one rank")


if __name__ == "__main__":
    main()
