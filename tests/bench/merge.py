"""What a merge costs: hfcart against the plain way, and how it grows with the number of towers.

    python tests/bench/merge.py [--towers 8] [--runs 3] [--keep FOLDER]

Builds ViT-B/32-sized float32 towers (a shared base, each with low-rank plus noise deltas), merges them with
CART at rank 0.08, and prints wall time, CPU time and peak resident memory of whole processes, as medians, with
their ratios. The plain way loads every model with from_pretrained and takes torch.linalg.svd of each matrix;
it runs once with one BLAS thread and once with torch's default, since two threads can fight over two cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path

B32 = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "projection_dim": 512,
}  # fmt: skip
RANK = 0.08
HEAD = "{:<34}" + f"{'wall':>11}{'CPU':>12}{'system':>12}{'page faults':>13}{'peak memory':>12}"

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


@dataclass
class Cost:
    """Of one whole process: seconds of wall time, of CPU, of it in the system; page faults; bytes of peak memory."""

    wall: float
    cpu: float
    system: float
    faults: float
    memory: float


def measure(command: list[str], **env: str) -> Cost:
    """Run a command to its end. Raises if it fails."""
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env={**clean, "HF_HUB_OFFLINE": "1", **env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {command[:6]}")
    cpu, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
    return Cost(wall, cpu, usage.ru_stime, usage.ru_minflt, memory)


def median(costs: list[Cost]) -> Cost:
    return Cost(*(statistics.median(getattr(c, field.name) for c in costs) for field in fields(Cost)))


BUILD = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/helpers"]
from towers import write_tower
from bench.merge import B32
for i in range(1, int(sys.argv[3]) + 1):
    folder = Path(sys.argv[2]) / f"t{i}"
    if not (folder / "config.json").exists():
        write_tower(folder, i, B32)
"""


def build(folder: Path, count: int) -> list[Path]:
    """Towers 1..count; those that are there already are kept.

    In a process of its own: a child's peak memory starts from what its parent took, so this one stays small.
    """
    tests = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", BUILD, tests, str(folder), str(count)], check=True)
    return [folder / f"t{i}" for i in range(1, count + 1)]


def hfcart(sources: list[Path], out: Path) -> Cost:
    command = [sys.executable, "-m", "hfcart", "merge", *map(str, sources), "--rank", str(RANK), "--out", str(out)]
    return measure([*command, "--overwrite", "--quiet"])


def floor(sources: list[Path], out: Path) -> tuple[float, dict[str, float]]:
    """CPU seconds that no program of this kind can go below here: moving the bytes, Gram products at the
    machine's matrix rate, and the partial eigenproblems, each measured on its own at one thread."""
    import torch

    from hfcart.maths.low_rank import truncated_svd

    torch.set_num_threads(1)

    def seconds(work, times: int = 5) -> float:
        work()
        took = []
        for _ in range(times):
            start = time.process_time()
            work()
            took.append(time.process_time() - start)
        return statistics.median(took)

    def read() -> None:
        buffer = bytearray(1 << 20)
        for source in sources:
            with (source / "model.safetensors").open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    data = bytes(1 << 20)
    size = (out / "model.safetensors").stat().st_size

    def write() -> None:
        with tempfile.TemporaryFile(dir=out.parent, buffering=0) as file:
            for _ in range(size >> 20):
                file.write(data)

    tasks, layers = len(sources), B32["num_hidden_layers"]
    square, tall = torch.randn(768, 768), torch.randn(3072, 768)
    gemm = 2 * 768**3 / seconds(lambda: square @ square)
    # A symmetric product needs half the multiplications of a general one.
    products = tasks * layers * (4 * 768**3 + 2 * 3072 * 768**2) / gemm
    # What truncated_svd takes of a matrix beyond its own products is the eigenproblem.
    k = int(RANK * 768)
    own = 2 * 768**3 / 2 + 2 * 2 * 768 * 768 * k
    eigen = max(0.0, seconds(lambda: truncated_svd(square, k)) - own / gemm)
    parts = {
        "reading": seconds(read, 3),
        "writing": seconds(write, 3),
        "Gram products": products,
        "partial eigenproblems": tasks * layers * 6 * eigen,
    }
    del tall
    return sum(parts.values()), parts


def row(name: str, cost: Cost) -> str:
    faults = f"{cost.faults:,.0f}"
    seconds = f"{cost.wall:>9.1f} s{cost.cpu:>10.1f} s{cost.system:>10.1f} s"
    return f"{name:<34}{seconds}{faults:>13}{cost.memory / 1e9:>9.2f} GB"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--towers", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="folder to keep the towers in between runs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        sources = build(folder, 16)
        some, out = sources[: arguments.towers], folder / "merged"
        hfcart(some, out)  # warms the page cache for both
        plain_code = [sys.executable, "-c", PLAIN, *map(str, some), str(folder / "plain")]
        plain_one = measure(plain_code, OMP_NUM_THREADS="1")
        plain_all = measure(plain_code)
        ours = median([hfcart(some, out) for _ in range(arguments.runs)])
        print(f"{arguments.towers} ViT-B/32 towers, float32, CART at rank {RANK}; {os.cpu_count()} cores")
        print(HEAD.format(""))
        print(row("plain, one BLAS thread", plain_one))
        print(row("plain, torch's default threads", plain_all))
        print(row(f"hfcart (median of {arguments.runs})", ours))
        best = Cost(*(min(getattr(plain_one, f.name), getattr(plain_all, f.name)) for f in fields(Cost)))
        print(
            f"the better plain way / hfcart: wall {best.wall / ours.wall:.1f}x, CPU {best.cpu / ours.cpu:.1f}x, "
            f"memory {best.memory / ours.memory:.1f}x"
        )
        print("\n" + HEAD.format("towers"))
        for count in (2, 4, 8, 16):
            print(row(str(count), median([hfcart(sources[:count], out) for _ in range(arguments.runs)])))
        print("\nWhere the seconds go:")
        phases = [sys.executable, str(Path(__file__).with_name("phases.py")), str(out), *map(str, some)]
        subprocess.run(phases, check=True)
        total, parts = floor(some, out)
        print("\nFloor, CPU seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in parts.items()))
        print(f"sum {total:.1f} s; hfcart takes {ours.cpu / total:.2f} times that (imports, means and checks included)")


if __name__ == "__main__":
    main()
