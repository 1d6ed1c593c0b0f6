"""Where the seconds of a merge go, phase by phase, and how far it is from what nothing of its kind can go below.

    python tests/bench/phases.py [--towers 8] [--layers 12] [--folder FOLDER]

CART at rank 0.08 with two workers, from Python, in a process of its own; hfcart's own functions are wrapped, so what a
change moves from one phase to another shows. What the workers do at the same time has no wall time of its own: all of
it is "merging". The floor is moving the bytes, the Gram products at the machine's matrix rate, and the partial
eigenproblems, each measured on its own at one thread.
"""

from __future__ import annotations

import functools
import inspect
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import folder_for, options, say_ratio, say_table

BEGUN = time.perf_counter()
LOCK = threading.Lock()
COSTS: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)
RANK = 0.08


def spent(who: int) -> list[float]:
    """Wall, user and system seconds, and page faults, of this process or of this thread."""
    used = resource.getrusage(who)
    return [time.perf_counter(), used.ru_utime, used.ru_stime, used.ru_minflt]


def add(phase: str, before: list[float], who: int) -> None:
    """Count what was spent since then."""
    with LOCK:
        COSTS[phase] = [x + now - then for x, now, then in zip(COSTS[phase], spent(who), before, strict=True)]


def timed(owner: Any, name: str, phase: str, who: int) -> None:
    """Count what a function of a module, or a method of a class, takes."""
    function: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(function)
    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        before = spent(who)
        try:
            found = function(*arguments, **keywords)
            return list(found) if inspect.isgenerator(found) else found
        finally:
            add(phase, before, who)

    setattr(owner, name, wrapped)


def child(out: str, *sources: str) -> None:
    """Merge in this process; print what each phase took, as JSON."""
    process, thread = resource.RUSAGE_SELF, resource.RUSAGE_THREAD
    before = [BEGUN, 0.0, 0.0, 0.0]
    import hfcart
    from hfcart.commands import merge
    from hfcart.engine import merging

    add("imports", before, process)
    timed(merge, "make_plan", "pins and headers", process)
    timed(merge, "fetch_all", "digests of the sources", process)
    timed(merging, "merge_groups", "merging", process)
    timed(merging.GroupReader, "read", "– reading", thread)
    timed(merging.GroupRules, "merged", "– algebra", thread)
    timed(merging.GroupWriter, "write", "– casting, writing", thread)
    timed(merge, "read_back", "reading back, figures drawn beside", process)
    timed(merge, "render_card", "card", process)
    hfcart.merge(list(sources), out=out, rank=RANK, workers=2, overwrite=True)
    whole = spent(process)
    whole[0] -= BEGUN
    known = [sum(cost[i] for phase, cost in COSTS.items() if phase[0] != "–") for i in range(4)]
    COSTS["the rest"] = [x - y for x, y in zip(whole, known, strict=True)]
    COSTS["in all"] = whole
    print(json.dumps(COSTS))


def floor(sources: list[Path], out: Path, layers: int) -> dict[str, float]:
    """CPU seconds that no program of this kind can go below here."""
    import torch

    from hfcart.maths.low_rank import rank_of, truncated_svd

    torch.set_num_threads(1)
    data, buffer = bytes(1 << 20), bytearray(1 << 20)
    size = (out / "model.safetensors").stat().st_size

    def seconds(work: Callable[[], object], times: int) -> float:
        work()
        taken = []
        for _ in range(times):
            start = time.process_time()
            work()
            taken.append(time.process_time() - start)
        return statistics.median(taken)

    def read() -> None:
        for source in sources:
            with (source / "model.safetensors").open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def write() -> None:
        with tempfile.TemporaryFile(dir=out.parent, buffering=0) as file:
            for _ in range(size >> 20):
                file.write(data)

    square, k = torch.randn(768, 768), rank_of(RANK, 768, 768)
    rate = 2 * 768**3 / seconds(lambda: square @ square, 5)
    # What truncated_svd takes of a matrix beyond its own products is the eigenproblem. A symmetric product needs half
    # the multiplications of a general one.
    eigen = max(0.0, seconds(lambda: truncated_svd(square, k), 5) - (768**3 + 4 * 768 * 768 * k) / rate)
    return {
        "reading": seconds(read, 3),
        "writing": seconds(write, 3),
        "Gram products": len(sources) * layers * (4 * 768**3 + 2 * 3072 * 768**2) / rate,
        "partial eigenproblems": len(sources) * layers * 6 * eigen,
    }


def main() -> None:
    parser = options(__doc__, towers=True)
    parser.add_argument("--towers", type=int, default=8)
    parser.add_argument("--layers", type=int, default=12, help="of the towers")
    asked = parser.parse_args()
    from models import B32, build

    with folder_for(asked.folder) as folder:
        sources, out = build(folder, asked.towers, {**B32, "num_hidden_layers": asked.layers}), folder / "merged"
        command = [sys.executable, __file__, "child", str(out), *map(str, sources)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        costs: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
        least = floor(sources, out, asked.layers)
    cpu = costs["in all"][1] + costs["in all"][2]
    print(f"{asked.towers} ViT-B/32 towers of {asked.layers} layers, float32, CART at rank {RANK}, two workers.")
    say_ratio(cpu / sum(least.values()), "CPU: hfcart / the floor (imports, means and checks included)")
    rows = [
        [phase, "" if phase[0] == "–" else f"{wall:.2f} s", f"{user:.2f} s", f"{system:.2f} s", f"{faults:,.0f}"]
        for phase, (wall, user, system, faults) in costs.items()
    ]
    say_table(("phase", "wall", "user", "system", "page faults"), rows)
    say_table(("of the floor", "CPU"), [[name, f"{value:.2f} s"] for name, value in least.items()])


if __name__ == "__main__":
    child(*sys.argv[2:]) if sys.argv[1:2] == ["child"] else main()
