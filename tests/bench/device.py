"""What a GPU makes of a merge: CART's decompositions against the plain way, and whole merges, with where seconds go.

    python tests/bench/device.py [--seconds 280] [--folder FOLDER] [--stages solvers,methods,…] [--device cuda]

Towers are made on the device: a shared base, and task vectors whose singular values fall like i^-0.6 beside noise. Each
stage prints as soon as it is done, ratios first, and no merge begins for which too little time is left; a failure
ends its stage alone. Ratios are of the same card in the same run; the plain way is `torch.linalg.svd` of each matrix in
float32, timed on some matrices of each shape and counted for all, which is how the table says it.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import statistics
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from device_methods import decomposing, measured
from measuring import say_ratio
from models import B32, L14
from safetensors.torch import save_file
from spectra import errors
from towers import config, shapes

from hfcart.maths import block_iteration, low_rank_batch
from hfcart.maths.low_rank import LowRank, rank_of, truncated_svd
from hfcart.maths.low_rank_batch import truncated_svds
from hfcart.methods.cart import rule as cart_rule
from hfcart.progress import Progress
from hfcart.system.threads import default_workers

TOWERS = {"ViT-B/32": B32, "ViT-L/14": L14}
# Kind, towers, way, merges, and the seconds that they and making their towers take on an H200, not too few.
MERGES = (
    ("ViT-B/32", 8, "batch", 2, 15),
    ("ViT-L/14", 8, "batch", 1, 18),
    ("ViT-L/14", 20, "batch", 1, 36),
    ("ViT-L/14", 8, "one at a time", 1, 31),
    ("ViT-B/32", 8, "one at a time", 1, 14),
)
RANK, PLAIN = 0.08, "torch.linalg.svd"
BEGUN = time.perf_counter()


def say(text: str) -> None:
    print(f"{text}", flush=True)


def task_vector(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """What fine-tuning leaves, or something like it: a spectrum that falls, and noise."""
    device = generator.device
    out = torch.randn(shape, generator=generator, device=device) * 2e-4
    if len(shape) == 2:
        weights = torch.arange(1.0, 129, device=device) ** -0.6
        left = torch.randn(shape[0], 128, generator=generator, device=device) * weights
        out += left @ torch.randn(128, shape[1], generator=generator, device=device) * 4e-4
    return out


def build(folder: Path, kind: str, count: int, device: torch.device) -> list[Path]:
    """Towers on disk; those that are there already are kept."""
    cfg = TOWERS[kind]
    base = torch.Generator(device).manual_seed(0)
    start = {name: torch.randn(shape, generator=base, device=device) * 0.02 for name, shape in shapes(cfg).items()}
    folders = [folder / f"{kind.replace('/', '')}-{i}" for i in range(count)]
    with ThreadPoolExecutor(12) as pool:
        jobs = []
        for i, path in enumerate(folders):
            if (path / "config.json").exists():
                continue
            path.mkdir(parents=True)
            own = torch.Generator(device).manual_seed(i + 1)
            tower = {name: (theta + task_vector(tuple(theta.shape), own)).cpu() for name, theta in start.items()}
            jobs.append(pool.submit(save_file, tower, path / "model.safetensors"))
            (path / "config.json").write_text(json.dumps(config(cfg)))
        for job in jobs:
            job.result()
    return folders


def milliseconds(work: Callable[[], object], device: torch.device, times: int) -> float:
    """The median, after one that warms up."""
    taken = []
    for _ in range(times + 1):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken[1:])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def counting_redone() -> Iterator[list[int]]:
    found: list[int] = []
    direct = low_rank_batch._direct

    def counted(grams: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        found.append(len(grams))
        return direct(grams, k)

    low_rank_batch._direct = counted
    try:
        yield found
    finally:
        low_rank_batch._direct = direct


def solvers(device: torch.device) -> None:
    """Milliseconds a matrix, and what a whole merge's decompositions take, by every way considered."""
    for kind, count in (("ViT-B/32", 8), ("ViT-L/14", 8), ("ViT-L/14", 20)):
        d, f, layers = (TOWERS[kind][key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
        whole: dict[str, float] = defaultdict(float)
        rows: list[str] = []
        for shape, times in (((d, d), 4), ((f, d), 1), ((d, f), 1)):
            generator = torch.Generator(device).manual_seed(7)
            stack = torch.stack([task_vector(shape, generator) for _ in range(count)])
            for name, each in compared(stack - stack.mean(0), rank_of(RANK, d, d), device, rows).items():
                whole[name] += times * layers * count * each / 1e3
        for name, s in whole.items():
            say_ratio(whole[PLAIN] / s, f"all decompositions of {count} {kind}: {PLAIN} / {name} ({s:.1f} s)")
        say("\nAll decompositions are counted from these medians.\n")
        say("| shape | way | plain / this | ms a matrix | redone of a batch | worst error, 1 is allowed |")
        say("|---" * 6 + "|\n" + "\n".join(rows) + "\n")


def compared(stack: torch.Tensor, k: int, device: torch.device, rows: list[str]) -> dict[str, float]:
    """Milliseconds a matrix by every way; a row of the table is added for each."""
    m, n = stack.shape[1:]

    def whole_gram() -> object:
        exact = stack[:4].double()
        return low_rank_batch._direct(exact.mT @ exact if m >= n else exact @ exact.mT, k)

    ways: dict[str, tuple[Callable[[], object], int, int]] = {
        PLAIN: (lambda: [torch.linalg.svd(a, full_matrices=False) for a in stack[:2]], 2, 2),
        "batch": (lambda: truncated_svds(stack, k), len(stack), 5),
        "one at a time": (lambda: [truncated_svd(a, k, solver="gram-torch") for a in stack[:4]], 4, 2),
        "float64 Gram, eigh": (whole_gram, 4, 2),
    }
    found: dict[str, float] = {}
    for name, (work, of, repeats) in ways.items():
        with counting_redone() as redone:
            found[name] = milliseconds(work, device, repeats) / of
        more = f"{sum(redone) / (repeats + 1):.1f} | {worst_error(stack[:2], k):.3f}" if name == "batch" else "|"
        ratio = found[PLAIN] / found[name]
        rows.append(f"| {m}×{n} | {name} | {ratio:.1f}× | {found[name]:.2f} | {more} |")
    return found


def worst_error(stack: torch.Tensor, k: int) -> float:
    """The larger share of what the contract allows, of the first matrices, against float64 SVD."""
    found = truncated_svds(stack, k)
    out = []
    for a, low in zip(stack, found, strict=True):
        svd = tuple(x.cpu() for x in torch.linalg.svd(a.double(), full_matrices=False))
        here = LowRank(low.left.cpu(), low.right.cpu(), low.energy, low.solver, low.fallback)
        out.append(max(errors(a.cpu(), k, here, svd)))
    return max(out)


def stages_of_one(device: torch.device) -> None:
    """Where the milliseconds of one batch go."""
    for count, d, k in ((8, 768, 61), (20, 1024, 81)):
        generator = torch.Generator(device).manual_seed(7)
        stack = torch.stack([task_vector((d, d), generator) for _ in range(count)])
        tall = stack.double()
        grams = tall.mT @ tall
        p = k + d // 8
        start = block_iteration.start(d, p, device)
        block = block_iteration.orthonormal(grams @ start)
        small = block.mT @ (grams @ block)
        low, _ = block_iteration.ends(small)
        degrees = torch.full_like(low, float(block_iteration.DEGREE))
        parts = {
            "Gram": lambda tall=tall: tall.mT @ tall,
            "one filter": lambda g=grams, b=block, n=degrees, s=low: block_iteration.filtered(g, b, n, s),
            "one orthogonalisation": lambda b=block: block_iteration.orthonormal(b),
            "the ends": lambda s=small: block_iteration.ends(s),
            "small eigh": lambda s=small: torch.linalg.eigh(s),
            "all": lambda stack=stack, k=k: truncated_svds(stack, k),
            "mean": lambda stack=stack: cart_rule.mean_of(stack),
            "whole rule": lambda stack=stack: cart_rule.cart(stack, rank=RANK),
        }
        told = ", ".join(f"{name} {milliseconds(work, device, 3):.1f}" for name, work in parts.items())
        say(f"Milliseconds for {count} matrices {d}×{d}, rank {k}, block {p}: {told}")


def waits(device: torch.device) -> None:
    """How often the host waits for the device in one group of CART, as torch counts it."""
    generator = torch.Generator(device).manual_seed(7)
    stack = torch.stack([task_vector((768, 768), generator) for _ in range(8)])
    for name, batched in (("batch", True), ("one at a time", False)):
        with decomposing(batched), warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                cart_rule.cart(stack, rank=RANK)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        seen = [w for w in found if "synchroniz" in str(w.message)]
        say(f"Waits in CART on eight 768×768, {name}: {len(seen)} (cuSOLVER's own are not seen)")


def methods(device: torch.device) -> None:
    """Every method without statistics; in small where it is only tried out."""
    shape = (B32["hidden_size"], B32["intermediate_size"]) if device.type == "cuda" else (160, 320)
    rows = []
    for row in measured(*shape, device, task_vector):
        if isinstance(row, str):
            say(row)
            continue
        ratio, before, difference = "–", "–", "–"
        if row.before is not None:
            ratio, before, difference = f"{row.before / row.now:.1f}×", f"{row.before:.2f}", f"{row.difference:.0e}"
            say_ratio(row.before / row.now, f"a group by {row.name}: one matrix at a time / now ({row.now:.1f} ms)")
        rows.append(f"| {row.name} | {ratio} | {before} | {row.now:.2f} | {difference} | {row.peak / 1e6:.0f} MB |")
    say(f"\nEight towers, one block of width {shape[0]} and {shape[1]}: the mean over its six matrices.\n")
    say("| method | one at a time / now | ms a group, one at a time | ms a group, now | difference | peak memory now |")
    say("|---" * 6 + "|\n" + "\n".join(rows))


class Seconds:
    """Adds up how long functions take, over all threads."""

    def __init__(self) -> None:
        self.of: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._undo: list[tuple[Any, str, Any]] = []

    def watch(self, label: str, where: Any, name: str) -> None:
        function = getattr(where, name)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            try:
                found = function(*arguments, **keywords)
                return list(found) if inspect.isgenerator(found) else found
            finally:
                with self._lock:
                    self.of[label] += time.perf_counter() - start

        self._undo.append((where, name, function))
        setattr(where, name, timed)

    def undo(self) -> None:
        for where, name, function in self._undo:
            setattr(where, name, function)


def one_merge(sources: list[Path], out: Path, device: torch.device, workers: int) -> tuple[float, dict[str, float]]:
    """Seconds of a merge in this process, and of its parts: of the first and the last on the clock, else of threads."""
    from hfcart.commands import merge as command
    from hfcart.engine.merging import GroupRules
    from hfcart.engine.reading import GroupReader
    from hfcart.engine.writing import GroupWriter
    from hfcart.recipes.merge_recipe import make
    from hfcart.report import plots

    seconds = Seconds()
    seconds.watch("digests", command, "fetch_all")
    seconds.watch("reading (threads)", GroupReader, "read")
    seconds.watch("device thread", GroupRules, "merged")
    seconds.watch("writing (threads)", GroupWriter, "write")
    seconds.watch("reading back", command, "read_back")
    seconds.watch("figures", plots, "draw_figures")
    seconds.watch("all after the last group", command, "_finish")
    fields = {"sources": list(map(str, sources)), "method": "cart", "rank": RANK, "out": str(out), "overwrite": True}
    try:
        start = time.perf_counter()
        command.merge_folder(make({**fields, "device": device.type, "workers": workers}), Progress())
        return time.perf_counter() - start, dict(seconds.of)
    finally:
        seconds.undo()


def mere_reading(sources: list[Path]) -> float:
    def read(source: Path) -> None:
        buffer = bytearray(1 << 22)
        with (source / "model.safetensors").open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    start = time.perf_counter()
    with ThreadPoolExecutor(default_workers()) as pool:
        list(pool.map(read, sources))
    return time.perf_counter() - start


def merges(device: torch.device, folder: Path, seconds: float) -> None:
    """Whole merges, in this process: what a first one pays for the device comes in the first line."""
    workers = default_workers()
    say(f"{workers} workers; files in {folder}")
    say("| towers | way | this / batch | whole / reading | whole | reading alone | peak on the device | where |")
    say("|---" * 8 + "|")
    batch: dict[tuple[str, int], float] = {}
    for kind, count, way, runs, needed in MERGES:
        if time.perf_counter() - BEGUN > seconds - needed:
            say(f"| {count} {kind} | {way} | not measured: the time is up | | | | | |")
            continue
        sources = build(folder, kind, count, device)
        size = sum((source / "model.safetensors").stat().st_size for source in sources)
        reading = mere_reading(sources)
        for _ in range(runs):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            with decomposing(way == "batch"):
                whole, parts = one_merge(sources, folder / "merged", device, workers)
            peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
            where = ", ".join(f"{name} {value:.1f}" for name, value in parts.items())
            if way == "batch":
                batch[kind, count] = whole
            ratio = f"{whole / batch[kind, count]:.1f}×" if (kind, count) in batch else ""
            say(
                f"| {count} {kind} ({size / 1e9:.1f} GB) | {way} | {ratio} | {whole / reading:.1f}× | {whole:.1f} s | "
                f"{reading:.1f} s | {peak:.2f} GB | {where} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=280, help="begin nothing after this long")
    parser.add_argument("--folder", type=Path, help="where the towers go, 30 GB; a temporary folder by default")
    parser.add_argument("--stages", default="solvers,stages,methods,waits,merges")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        say("device: unmeasured, there is no GPU here")
        return
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    say(f"{name}, torch {torch.__version__}, CART at rank {RANK}")
    with tempfile.TemporaryDirectory() as temporary:
        stages: dict[str, Callable[[], None]] = {
            "solvers": lambda: solvers(device),
            "stages": lambda: stages_of_one(device),
            "methods": lambda: methods(device),
            "waits": lambda: waits(device),
            "merges": lambda: merges(device, arguments.folder or Path(temporary), arguments.seconds),
        }
        failed = False
        for stage in arguments.stages.split(","):
            say(f"\n### {stage} (after {time.perf_counter() - BEGUN:.0f} s)\n")
            try:
                stages[stage]()
            except Exception as error:  # the other stages are worth their time
                traceback.print_exc()  # not onto the page, which names no place
                say(f"{stage}: unmeasured, {type(error).__name__}")
                failed = True
    say(f"\ndone after {time.perf_counter() - BEGUN:.0f} s")
    sys.exit(failed)


if __name__ == "__main__":
    main()
