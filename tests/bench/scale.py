"""Large merges: how time and memory grow with the number of ViT-L/14 towers, and three of ViT-bigG's size.

    python tests/bench/scale.py [--full] [--towers 4,8,16,20] [--folder FOLDER]

CART at rank 0.08, two workers, whole processes; every tower is a file of its own. By default towers have two layers of
their 24 and 48: the matrices, and so the peak of memory, are those of whole towers. `--full` takes all layers: 25 GB of
disk, and half an hour or more. Processor time is what is fitted: it depends least on what else the machine does.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from measuring import Cost, folder_for, measure, options, say_ratio, say_table

SHARDS = 6
COLUMNS = ("towers", "read", "wall", "CPU", "peak memory", "said before")


def merged(sources: list[Path], out: Path) -> tuple[Cost, int]:
    """What a merge costs, and the bytes of memory that --dry-run says it takes."""
    command = ["-m", "hfcart", "merge", *map(str, sources), "--workers", "2", "--out", str(out)]
    told = subprocess.run([sys.executable, *command, "--dry-run", "--json"], capture_output=True, check=True)
    cost = measure([*command, "--quiet"])
    shutil.rmtree(out)
    return cost, json.loads(told.stdout)["memory_bytes"]


def row(sources: list[Path], cost: Cost, told: int) -> list[str]:
    """Of a table whose columns are COLUMNS."""
    read = sum(path.stat().st_size for tower in sources for path in tower.glob("*.safetensors"))
    gigabytes = [f"{x / 1e9:.2f} GB" for x in (read, cost.memory, told)]
    cells = [str(len(sources)), gigabytes[0], f"{cost.wall:.1f} s", f"{cost.cpu:.1f} s", *gigabytes[1:]]
    print(*cells, sep="  ", file=sys.stderr, flush=True)  # --full takes long
    return cells


def fit(towers: Sequence[int], values: Sequence[float]) -> tuple[float, float, float]:
    """Intercept and slope of the least squares line, and its largest distance from a value as a share of that."""
    import numpy as np

    slope, intercept = np.polyfit(towers, values, 1)
    off = max(abs(intercept + slope * x - y) / y for x, y in zip(towers, values, strict=True))
    return float(intercept), float(slope), float(off)


def main() -> None:
    parser = options(__doc__, towers=True)
    parser.add_argument("--full", action="store_true", help="all layers of the towers")
    parser.add_argument("--towers", default="4,8,16,20", help="how many ViT-L/14, in turn")
    asked = parser.parse_args()
    from models import BIGG, L14, build

    counts = sorted(int(x) for x in asked.towers.split(","))
    layers = {} if asked.full else {"num_hidden_layers": 2}
    large, huge = {**L14, **layers}, {**BIGG, **layers}
    with folder_for(asked.folder) as folder:
        needed = 26e9 if asked.full else 3e9
        if shutil.disk_usage(folder).free < needed:
            raise SystemExit(f"{folder} has less than {needed / 1e9:.0f} GB free: give --folder")
        towers = build(folder, max(counts), large)
        found, rows = {}, []
        for count in counts:
            found[count] = merged(towers[:count], folder / "out")
            rows.append(row(towers[:count], *found[count]))
        if asked.folder is None:
            shutil.rmtree(towers[0].parent)  # to have room for the others
        three = build(folder, 3, huge, dtype="bfloat16", shards=SHARDS)
        largest = row(three, *merged(three, folder / "out"))
        parameters = sum(path.stat().st_size for path in three[0].glob("*.safetensors")) / 2
    least, most = found[counts[0]][0], found[counts[-1]][0]
    say_ratio(most.cpu / least.cpu, f"CPU: {counts[-1]} ViT-L/14 / {counts[0]}")
    say_ratio(most.memory / least.memory, f"peak memory: {counts[-1]} ViT-L/14 / {counts[0]}")
    print(f"\nViT-L/14 in float32, {large['num_hidden_layers']} layers.")
    say_table(COLUMNS, rows)
    if len(counts) > 1:
        a, b, off = fit(counts, [cost.cpu for cost, _ in found.values()])
        print(f"CPU: {a:.1f} s + {b:.2f} s a tower, every merge within {100 * off:.1f} % of that.")
        a, b, off = fit(counts, [cost.memory / 1e9 for cost, _ in found.values()])
        print(f"Peak memory: {a:.2f} GB + {b:.3f} GB a tower, within {100 * off:.1f} %.")
    what = f"{huge['num_hidden_layers']} layers, {parameters / 1e9:.2f} billion parameters in {SHARDS} shards each"
    print(f"\nViT-bigG in bfloat16, {what}.")
    say_table(COLUMNS, [largest])


if __name__ == "__main__":
    main()
