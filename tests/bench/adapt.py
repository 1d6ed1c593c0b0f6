"""A step of adaptation against the plain way: time and peak memory for 2 and 8 towers, as ratios of one run.

    python tests/bench/adapt.py [--layers 12] [--towers 2,8] [--device cpu] [--precision float32]

The plain way is functional_call over anchor + Σ λ component, every tower's component in memory and every task's graph
held until one backward pass. Both learn CART++'s coefficients on ViT-B/32 (of 12 layers by default), one task a tower,
16 images a task, each in a process of its own. The first step, which pays for the first pages, is not counted.
CPU time is this process's with all its threads, those that decode images too (the plain way has none to decode).
On a GPU the memory is the device's, TF32 is off, and more steps are counted: they are short.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from measuring import options, say_ratio, say_table

STEPS, BATCH, CLASSES = {"cpu": 3, "cuda": 20}, 16, 4


def now() -> tuple[float, float]:
    """Seconds of wall time and of CPU."""
    return time.perf_counter(), time.process_time()


def peak(device: str) -> int:
    """Bytes of memory at this process's peak: of the device, or resident."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated()
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return next(1024 * int(words[1]) for words in lines if words[0] == "VmHWM:")


def ours(towers: list[str], tasks: list[str], device: str, precision: str) -> list[tuple[float, float]]:
    """When each step of hfcart's own loop ended, from the first on."""
    from hfcart.engine.planning import make_plan
    from hfcart.learning.adapt.loop import adapt
    from hfcart.progress import Progress
    from hfcart.recipes.merge_recipe import make
    from hfcart.sources.towers import fetch_all

    class Clock(Progress):
        at: list[tuple[float, float]] = []
        counting = False

        def start(self, label: str, total: int, unit: str) -> None:
            self.counting = unit == "steps"

        def advance(self, amount: int) -> None:
            if self.counting:
                self.at.append(now())

    fields: dict[str, Any] = {"sources": tuple(towers), "adapt": ",".join(tasks), "base": "user/clip"}
    fields |= {"steps": STEPS[device], "batch_size": BATCH, "device": device, "precision": precision, "out": "ours"}
    plan = make_plan(make(fields), Path("c"), Progress())
    fetch_all(plan.towers_and_base, Progress(), stream=False)
    clock = Clock()
    adapt(plan, Path("ours"), None, clock)  # a step ends when its gradients are here
    return clock.at[1:]  # without the moment before the first


def plain(towers: list[str], tasks: list[str], device: str, precision: str) -> list[tuple[float, float]]:
    """When each step of the plain way ended."""
    import torch
    from safetensors.torch import load_file
    from torch.func import functional_call
    from transformers import CLIPVisionModel

    torch.backends.cudnn.allow_tf32 = False
    states = [load_file(Path(tower) / "model.safetensors", device) for tower in towers]
    model = CLIPVisionModel.from_pretrained(towers[0]).eval().requires_grad_(False).to(device)
    prefix = "" if "embeddings.class_embedding" in dict(model.named_parameters()) else "vision_model."
    anchors = {n.removeprefix("vision_model."): torch.stack([s[n] for s in states]).mean(0) for n in states[0]}
    names = [n for n in anchors if ".layers." in n and anchors[n].ndim == 2]
    components = {n: torch.stack([s[f"vision_model.{n}"] - anchors[n] for s in states]) for n in names}
    del states
    raw = torch.ones(len(towers), len(names), device=device, requires_grad=True)
    adam = torch.optim.Adam([raw], lr=1e-3)
    generator = torch.Generator(device).manual_seed(0)
    normal = functools.partial(torch.randn, generator=generator, device=device)
    head, projection = torch.nn.functional.normalize(normal(CLASSES, 512), dim=-1), normal(512, 768) * 0.02
    ends = []
    for _ in range(STEPS[device]):
        weights = {prefix + name: anchor for name, anchor in anchors.items()}
        for i, name in enumerate(names):
            weights[prefix + name] = anchors[name] + torch.tensordot(raw[:, i], components[name], 1)
        total = torch.zeros((), device=device)
        for _ in tasks:
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
                found = functional_call(model, weights, kwargs={"pixel_values": normal(BATCH, 3, 224, 224)})
            features = found.pooler_output.float() @ projection.T
            log_p = torch.log_softmax(100 * torch.nn.functional.normalize(features, dim=-1) @ head.T, dim=-1)
            total = total - (log_p.exp() * log_p).sum(-1).mean()
        adam.zero_grad()
        total.backward()
        adam.step()
        raw.tolist()  # which waits for the device
        ends.append(now())
    return ends


def child() -> None:
    """One way, in this process: its seconds of wall time and of CPU a step, and its peak, as JSON."""
    way, *asked, device, precision = json.loads(sys.argv[2])
    ends = {"ours": ours, "plain": plain}[way](*asked, device, precision)
    steps = [[after[i] - before[i] for before, after in zip(ends, ends[1:], strict=False)] for i in (0, 1)]
    print(json.dumps([*map(statistics.median, steps), peak(device)]))


def main() -> None:
    """Make towers and data on a Hub of this machine, and measure both ways in turn."""
    parser = options(__doc__)
    parser.add_argument("--layers", type=int, default=12, help="of the towers")
    parser.add_argument("--towers", default="2,8", help="how many, in turn")
    parser.add_argument("--device", default="cpu", choices=STEPS)
    parser.add_argument("--precision", default="float32", help="float32, bfloat16 or both, in turn")
    asked = parser.parse_args()
    from clips import write_clip, write_images
    from models import B32
    from towers import write_tower

    from hfcart.demo.embedded_hub.hub import EmbeddedHub
    from hfcart.system.threads import default_workers

    counts = [int(x) for x in asked.towers.split(",")]
    config = {**B32, "num_hidden_layers": asked.layers}
    with tempfile.TemporaryDirectory() as folder, EmbeddedHub(Path(folder) / "hub") as hub:
        root = Path(folder)
        hub.add_user("user", token="hf_user")
        hub.create("user/clip")
        clip = write_clip(root / "clip", 0, config)
        hub.commit("user/clip", {path.name: path for path in clip.iterdir()})
        with ThreadPoolExecutor(default_workers()) as pool:
            made = [pool.submit(write_tower, root / f"t{i}", i, config, delta=1e-4) for i in range(1, max(counts) + 1)]
            towers = [str(job.result()) for job in made]
        names = [f"class {i}" for i in range(CLASSES)]
        files = {f"data/{part}-00000-of-00001.parquet": write_images(200, CLASSES, 1, names=names)
                 for part in ("train", "test")}  # fmt: skip
        tasks = []
        for i in range(1, max(counts) + 1):
            hub.create(f"user/data{i}", repo_type="dataset")
            hub.commit(f"user/data{i}", files, repo_type="dataset")
            card = {"id": f"data{i}", "title": f"Data {i}", "dataset": {"repo": f"user/data{i}"}}
            (root / f"data{i}.yaml").write_text(json.dumps(card | {"templates": ["a {}."], "classnames": names}))
            tasks.append(str(root / f"data{i}.yaml"))
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(root / "home"), "HF_HUB_DISABLE_XET": "1"}
        env["PYTHONPATH"] = str(Path(__file__).parents[2])
        there = " on a GPU" if asked.device != "cpu" else ""
        print(f"CART++ on ViT-B/32 of {asked.layers} layers{there}, {BATCH} images of each task a step.", flush=True)
        rows = []
        for count, precision in itertools.product(counts, asked.precision.split(",")):
            found: list[tuple[float, float, float]] = []
            for way in ("plain", "ours"):
                argument = json.dumps([way, towers[:count], tasks[:count], asked.device, precision])
                command = [sys.executable, __file__, "child", argument]
                done = subprocess.run(command, cwd=root, env=env, stdout=subprocess.PIPE, text=True, check=True)
                found.append(tuple(json.loads(done.stdout.splitlines()[-1])))
            subprocess.run(["rm", "-rf", str(root / "ours.partial")], check=True)
            theirs, own = found
            for i, what in enumerate(("wall time a step", "CPU time a step", "peak memory")):
                say_ratio(theirs[i] / own[i], f"{what}, {count} towers, {precision}: plain / hfcart")
            each = (f"{one[i]:.3f} s" for i in (0, 1) for one in found)
            rows.append([f"{count}, {precision}", *each, *(f"{one[2] / 1e9:.2f} GB" for one in found)])
    kinds = ("a step", "CPU of a step", "peak memory")
    say_table(("towers", *(f"{kind}, {way}" for kind in kinds for way in ("plain", "hfcart"))), rows)


if __name__ == "__main__":
    child() if sys.argv[1:2] == ["child"] else main()
