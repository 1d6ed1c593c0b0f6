"""Milliseconds and worst contract errors of the low-rank solvers, against torch.linalg.svd in the same run.

    python tests/bench/solvers.py [--repeats 7] [--rank 0.08]

One BLAS thread. The matrices timed are low rank plus noise, as fine-tuning leaves them, cut inside the noise. Solvers
take turns, so that a busy machine slows all alike. The worst error is over every family of tests/helpers/spectra.py,
as a share of what the contract allows (1 is the limit).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1] / "helpers"), str(Path(__file__).parents[2])]

from spectra import FAMILIES, SQUARE, TALL, WIDE, errors, matrix, reference  # noqa: E402

from hfcart.maths.low_rank import SOLVERS, rank_of, truncated_svd  # noqa: E402
from hfcart.system.device import one_blas_thread  # noqa: E402

SHAPES = ((768, 768), (3072, 768), (768, 3072), (1024, 1024), (4096, 1024))
PLAIN = "torch.linalg.svd"


def milliseconds(m: int, n: int, rank: float, repeats: int) -> dict[str, float]:
    """Median processor milliseconds of every way."""
    a, k = matrix("low rank + noise", m, n), rank_of(rank, m, n)
    ways = {name: lambda name=name: truncated_svd(a, k, solver=name) for name in SOLVERS}
    ways[PLAIN] = lambda: torch.linalg.svd(a, full_matrices=False)
    taken = defaultdict(list)
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if turn:  # the first is for warming up
                taken[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def worst_errors(rank: float) -> dict[str, float]:
    """The largest share of either bound of the contract, over all families, shapes and ranks 1, k, full."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="measurements per number, of which the median")
    parser.add_argument("--rank", type=float, default=0.08, help="share of full rank")
    arguments = parser.parse_args()
    with one_blas_thread():
        table = {shape: milliseconds(*shape, arguments.rank, arguments.repeats) for shape in SHAPES}
        worst = worst_errors(arguments.rank)
    print("| solver | " + " | ".join(f"{m}×{n}" for m, n in SHAPES) + " | worst error |")
    print("|---" * (len(SHAPES) + 2) + "|")
    for name in (*SOLVERS, PLAIN):
        cells = [f"{row[name]:.0f} ms ({row[PLAIN] / row[name]:.1f}×)" for row in table.values()]
        print(f"| {name} | " + " | ".join(cells) + f" | {f'{worst[name]:.2f}' if name in worst else '–'} |")


if __name__ == "__main__":
    main()
