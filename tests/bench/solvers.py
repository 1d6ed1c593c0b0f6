"""Milliseconds and worst contract errors of the low-rank solvers, against torch.linalg.svd in the same run.

    python tests/bench/solvers.py [--rounds 7] [--rank 0.08] [--size 768]

One BLAS thread. The matrices timed are low rank plus noise, as fine-tuning leaves them, cut inside the noise. Solvers
take turns. The worst error is over every family of tests/helpers/spectra.py, as a share of what the contract allows
(1 is the limit).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from measuring import in_turns, median_ratio, options, say_ratio, say_table

PLAIN = "torch.linalg.svd"


def milliseconds(m: int, n: int, rank: float, rounds: int) -> dict[str, list[float]]:
    """Processor time of every way, round by round."""
    import torch
    from spectra import matrix

    from hfcart.maths.low_rank import SOLVERS, rank_of, truncated_svd

    a, k = matrix("low rank + noise", m, n), rank_of(rank, m, n)

    def taken(way: Callable[[], object]) -> float:
        start = time.process_time()
        way()
        return 1e3 * (time.process_time() - start)

    ways: dict[str, Callable[[], object]] = {
        **{name: lambda name=name: truncated_svd(a, k, solver=name) for name in SOLVERS},
        PLAIN: lambda: torch.linalg.svd(a, full_matrices=False),
    }
    return in_turns({name: lambda way=way: taken(way) for name, way in ways.items()}, rounds)


def worst_errors(rank: float) -> dict[str, float]:
    """The largest share of either bound of the contract, over all families, shapes and ranks 1, k, full."""
    from spectra import FAMILIES, SQUARE, TALL, WIDE, errors, matrix, reference

    from hfcart.maths.low_rank import SOLVERS, rank_of, truncated_svd

    worst = dict.fromkeys(SOLVERS, 0.0)
    for family in FAMILIES:
        for shape in (TALL, WIDE, SQUARE):
            for k in (1, rank_of(rank, *shape), min(shape)):
                for solver in SOLVERS:
                    low = truncated_svd(matrix(family, *shape), k, solver=solver)
                    found = max(errors(matrix(family, *shape), k, low, reference(family, *shape)))
                    worst[solver] = max(worst[solver], found)
    return worst


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="measurements per number, of which the median")
    parser.add_argument("--rank", type=float, default=0.08, help="share of full rank")
    parser.add_argument("--size", type=int, default=768, help="of the smaller matrices; ViT-B's by default")
    asked = parser.parse_args()
    import torch

    from hfcart.maths.low_rank import default_solver
    from hfcart.system.device import one_blas_thread

    d, e = asked.size, asked.size * 4 // 3  # ViT-L's matrices are a third larger than ViT-B's
    shapes = ((d, d), (4 * d, d), (d, 4 * d), (e, e), (4 * e, e))
    with one_blas_thread():
        table = {shape: milliseconds(*shape, asked.rank, asked.rounds) for shape in shapes}
        worst = worst_errors(asked.rank)
    ratios = {shape: {name: median_ratio(row[PLAIN], row[name]) for name in row} for shape, row in table.items()}
    own = default_solver(torch.device("cpu"))
    print(f"Rank {asked.rank}, medians; rounds: {asked.rounds}; in brackets how much faster than {PLAIN}.")
    say_ratio(min(of[own] for of in ratios.values()), f"CPU, the least over shapes: {PLAIN} / {own}")
    say_ratio(max(of[own] for of in ratios.values()), f"CPU, the most over shapes: {PLAIN} / {own}")
    rows = [
        [name, *(f"{statistics.median(row[name]):.0f} ms ({ratios[shape][name]:.1f}×)" for shape, row in table.items()),
         f"{worst[name]:.2f}" if name in worst else "–"]
        for name in (*worst, PLAIN)
    ]  # fmt: skip
    say_table(("solver", *(f"{m}×{n}" for m, n in shapes), "worst error"), rows)


if __name__ == "__main__":
    main()
