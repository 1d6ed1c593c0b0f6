"""What a merge costs: hfcart against the plain way, and how it grows with the number of towers.

    python tests/bench/merge.py [--towers 8] [--rounds 1] [--layers 12] [--folder FOLDER]

ViT-B/32 towers in float32, CART at rank 0.08; whole processes. The plain way loads every model with from_pretrained and
takes torch.linalg.svd of each matrix: once with one BLAS thread and once with torch's default, since two threads can
fight over two cores. After each, hfcart runs; ratios are to the better of them, number by number.
"""

from __future__ import annotations

from pathlib import Path

from measuring import COLUMNS, Cost, folder_for, measure, median_cost, options, say_ratio, say_table

RANK = 0.08
PLAIN = """
import sys, torch
from transformers import CLIPVisionModel
*sources, out = sys.argv[1:]
models = [CLIPVisionModel.from_pretrained(s) for s in sources]
states = [m.state_dict() for m in models]
merged = {}
with torch.no_grad():
    for name in states[0]:
        stack = torch.stack([s[name] for s in states])
        mean = stack.mean(0)
        if stack.ndim == 3 and "encoder.layers" in name:
            k = max(1, int(0.08 * min(mean.shape)))
            for theta in stack - mean:
                u, s, vt = torch.linalg.svd(theta, full_matrices=False)
                mean = mean + (u[:, :k] * s[:k]) @ vt[:k]
        merged[name] = mean
models[0].load_state_dict(merged)
models[0].save_pretrained(out)
"""
PLAIN_WAYS = {"plain, one BLAS thread": {"OMP_NUM_THREADS": "1"}, "plain, torch's own threads": {}}


def hfcart(sources: list[Path], out: Path, *more: str) -> Cost:
    """A merge by the command line, with as many workers as it chooses."""
    command = ["-m", "hfcart", "merge", *sources, "--rank", RANK, "--out", out, "--overwrite", "--quiet"]
    return measure([*command, *more])


def main() -> None:
    parser = options(__doc__, towers=True)
    parser.add_argument("--towers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1, help="of both plain ways, each followed by hfcart")
    parser.add_argument("--layers", type=int, default=12, help="of the towers")
    asked = parser.parse_args()
    from models import B32, build

    with folder_for(asked.folder) as folder:
        every = build(folder, 2 * asked.towers, {**B32, "num_hidden_layers": asked.layers})
        some, out = every[: asked.towers], folder / "merged"
        hfcart(some, out)  # has the files in memory for all that follow
        taken: dict[str, list[Cost]] = {name: [] for name in PLAIN_WAYS}
        ours: list[Cost] = []
        for _ in range(asked.rounds):
            for name, env in PLAIN_WAYS.items():
                taken[name].append(measure(["-c", PLAIN, *some, folder / "plain"], **env))
                ours.append(hfcart(some, out))
        plain, one = {name: median_cost(costs) for name, costs in taken.items()}, median_cost(ours)
        counts = sorted({2, asked.towers // 2, asked.towers, 2 * asked.towers})
        grown = {n: one if n == asked.towers else hfcart(every[:n], out) for n in counts}
    print(f"{asked.towers} ViT-B/32 towers of {asked.layers} layers, float32, CART at rank {RANK}.")
    for field, what in (("wall", "wall time"), ("cpu", "CPU"), ("system", "system time"), ("faults", "page faults"),
                        ("memory", "peak memory")):  # fmt: skip
        better = min(getattr(cost, field) for cost in plain.values())
        say_ratio(better / getattr(one, field), f"{what}: the better plain way / hfcart")
    rows = [[name, *cost.cells()] for name, cost in plain.items()]
    say_table(("", *COLUMNS), [*rows, [f"hfcart, median of {len(ours)}", *one.cells()]])
    say_table(("towers", *COLUMNS), [[str(n), *cost.cells()] for n, cost in grown.items()])


if __name__ == "__main__":
    main()
