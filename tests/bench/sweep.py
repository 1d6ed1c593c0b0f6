"""What ten ranks cost: one decomposition taken apart ten ways, against one rank, and against ten merges.

    python tests/bench/sweep.py [--rounds 3] [--towers 8]

The towers' versions of a ViT-B/32 block's matrices (float32, low-rank plus noise deltas), one BLAS thread; seconds of
CPU for the block, medians, and ratios of the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from measuring import in_turns, median_ratio, options, say_ratio, say_table

SHAPES = [(768, 768)] * 4 + [(3072, 768), (768, 3072)]
RANKS = [0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.17, 0.24, 0.35, 0.5]
ONE, TEN, MERGES = "one rank, 50 %", "ten ranks, 2 to 50 %", "ten merges, one a rank"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--towers", type=int, default=8)
    asked = parser.parse_args()
    import torch

    from hfcart.methods.cart.rule import cart, updates
    from hfcart.system.device import one_blas_thread

    def versions(m: int, n: int) -> torch.Tensor:
        left, right = torch.randn(asked.towers, m, 8), torch.randn(asked.towers, 8, n)
        noise = torch.randn(asked.towers, m, n)
        return torch.randn(m, n) * 0.03 + 0.001 * (noise + 0.3 * left @ right)

    def seconds(work: Callable[[torch.Tensor], object]) -> float:
        start = time.process_time()
        for thetas in matrices:
            work(thetas)
        return time.process_time() - start

    torch.manual_seed(0)
    matrices = [versions(*shape) for shape in SHAPES]
    ways: dict[str, Callable[[torch.Tensor], object]] = {
        ONE: lambda x: updates(x, ranks=[0.5]),
        TEN: lambda x: updates(x, ranks=RANKS),
        MERGES: lambda x: [cart(x, rank=rank) for rank in RANKS],
    }
    with one_blas_thread():
        taken = in_turns({name: lambda w=w: seconds(w) for name, w in ways.items()}, asked.rounds, warm=False)
    print(f"One block of ViT-B/32, {asked.towers} towers, medians; rounds: {asked.rounds}.")
    say_ratio(median_ratio(taken[MERGES], taken[TEN]), "CPU: ten merges / a sweep over ten ranks")
    say_ratio(median_ratio(taken[TEN], taken[ONE]), "CPU: a sweep over ten ranks / the largest alone")
    rows = [[name, f"{statistics.median(found):.2f} s", f"{median_ratio(found, taken[ONE]):.2f}×"]
            for name, found in taken.items()]  # fmt: skip
    say_table(("", "CPU", f"/ {ONE}"), rows)


if __name__ == "__main__":
    main()
