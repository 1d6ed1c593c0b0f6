"""Large merges: how time and memory grow with the number of ViT-L/14 towers, and three of ViT-bigG's size.

    python tests/bench/scale.py [--full] [--towers 4,8,16,20] [--folder FOLDER]

CART at rank 0.08, two workers, whole processes, files in the page cache as far as it reaches. Four towers are generated
and linked again under other names, so twenty take the disk of four. By default the towers have two layers of their
24 and 48: the matrices, and so the peak of memory, are those of whole towers. `--full` takes all layers: 16 GB of disk.
Processor time is what is fitted: it does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from merge import Cost, measure
from safetensors.torch import save_file

sys.path[:0] = [str(Path(__file__).parents[1] / "helpers")]

from towers import config, shapes  # noqa: E402

COMMON = {"num_channels": 3, "image_size": 224, "patch_size": 14, "num_attention_heads": 16, "layer_norm_eps": 1e-5}
L14 = {**COMMON, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "projection_dim": 768,
       "hidden_act": "quick_gelu"}  # fmt: skip
BIGG = {**COMMON, "hidden_size": 1664, "intermediate_size": 8192, "num_hidden_layers": 48, "projection_dim": 1280,
        "hidden_act": "gelu"}  # fmt: skip
DISTINCT, SHARDS = 4, 6


def build(folder: Path, seed: int, sizes: dict, dtype: torch.dtype, shards: int) -> Path:
    """A tower, generated and written shard by shard: a shared base, and noise of its own beside three directions."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(sizes)))
    base, own = torch.Generator().manual_seed(1), torch.Generator().manual_seed(100 + seed)
    every = shapes(sizes)
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
             for i in range(shards)]  # fmt: skip
    held = {name: names[i * shards // len(every)] for i, name in enumerate(every)}
    for file in names:
        part = {}
        for name in (name for name, where in held.items() if where == file):
            theta = torch.randn(every[name], generator=base).mul_(0.1)
            tau = torch.randn(every[name], generator=own).mul_(1e-3)
            if tau.ndim == 2:
                low = torch.randn(tau.shape[0], 3, generator=own) @ torch.randn(3, tau.shape[1], generator=own)
                tau.add_(low, alpha=3e-3)
            part[name] = theta.add_(tau).to(dtype)
        save_file(part, folder / file)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": held}))
    return folder


def again(tower: Path, folder: Path) -> Path:
    """The same tower under another name, without another copy of it."""
    shutil.copytree(tower, folder, copy_function=os.link)
    return folder


def merged(sources: list[Path], out: Path) -> tuple[Cost, int]:
    """What a merge costs, and the bytes of memory that --dry-run says it takes."""
    command = [sys.executable, "-m", "hfcart", "merge", *map(str, sources), "--workers", "2", "--out", str(out)]
    told = subprocess.run([*command, "--dry-run", "--json"], capture_output=True, text=True, check=True)
    cost = measure([*command, "--quiet"])
    shutil.rmtree(out)
    return cost, json.loads(told.stdout)["memory_bytes"]


def row(towers: int, read: float, cost: Cost, told: int) -> None:
    print(
        f"{towers:>6}{read / 1e9:>9.2f} GB{cost.wall:>9.1f} s{cost.cpu:>9.1f} s{cost.memory / 1e9:>9.2f} GB"
        f"{told / 1e9:>9.2f} GB",
        flush=True,
    )


def fit(towers: list[int], values: list[float]) -> tuple[float, float, float]:
    """Intercept and slope of the least squares line, and its largest distance from a value as a share of that."""
    x = torch.stack([torch.ones(len(towers)), torch.tensor(towers)], 1).double()
    y = torch.tensor(values).double()
    line = torch.linalg.lstsq(x, y[:, None]).solution
    off = ((x @ line)[:, 0] - y).abs() / y
    return line[0].item(), line[1].item(), off.max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all layers of the towers")
    parser.add_argument("--towers", default="4,8,16,20", help="how many ViT-L/14, in turn")
    parser.add_argument("--folder", type=Path, help="where the towers go for as long as this runs")
    arguments = parser.parse_args()
    counts = [int(x) for x in arguments.towers.split(",")]
    layers = {} if arguments.full else {"num_hidden_layers": 2}
    needed = 18e9 if arguments.full else 2e9
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        if shutil.disk_usage(folder).free < needed:
            raise SystemExit(f"{folder} has less than {needed / 1e9:.0f} GB free: give --folder")
        large = {**L14, **layers}
        towers = [build(folder / f"large{i}", i, large, torch.float32, 1) for i in range(DISTINCT)]
        towers += [again(towers[i % DISTINCT], folder / f"large{i}") for i in range(DISTINCT, max(counts))]
        size = (towers[0] / "model.safetensors").stat().st_size
        head = f"{'towers':>6}{'read':>12}{'wall':>11}{'CPU':>11}{'peak memory':>12}{'said before':>12}"
        print(f"ViT-L/14, float32, {large['num_hidden_layers']} layers\n{head}", flush=True)
        costs = []
        for count in counts:
            cost, told = merged(towers[:count], folder / "out")
            costs.append(cost)
            row(count, count * size, cost, told)
        if len(counts) > 1:
            a, b, off = fit(counts, [cost.cpu for cost in costs])
            print(f"CPU seconds: {a:.1f} + {b:.2f} a tower, every merge within {off:.1%} of that")
            a, b, off = fit(counts, [cost.memory / 1e9 for cost in costs])
            print(f"peak of memory in GB: {a:.2f} + {b:.3f} a tower, within {off:.1%}")
        for tower in towers:
            shutil.rmtree(tower)
        huge = {**BIGG, **layers}
        print(f"\nViT-bigG, bfloat16, {huge['num_hidden_layers']} layers, {SHARDS} shards each\n{head}", flush=True)
        three = [build(folder / f"huge{i}", i, huge, torch.bfloat16, SHARDS) for i in range(3)]
        read = sum(path.stat().st_size for tower in three for path in tower.glob("*.safetensors"))
        row(3, read, *merged(three, folder / "out"))


if __name__ == "__main__":
    main()
