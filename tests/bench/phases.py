"""Where the seconds of a merge go: wall and processor time, and page faults, of each of its phases.

    python tests/bench/phases.py OUT SOURCE...

CART at rank 0.08 with two workers, from Python; hfcart's own functions are wrapped, so what a change moves from one
phase to another shows. What the workers do at the same time has no wall time of its own: all of it is "merging".
"""

from __future__ import annotations

import functools
import resource
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

BEGUN = time.perf_counter()
LOCK = threading.Lock()
COSTS: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)


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
            return list(found) if name == "read_back" else found  # which is a generator
        finally:
            add(phase, before, who)

    setattr(owner, name, wrapped)


def main() -> None:
    out, *sources = sys.argv[1:]
    process, thread = resource.RUSAGE_SELF, resource.RUSAGE_THREAD
    before = [BEGUN, 0.0, 0.0, 0.0]
    import hfcart
    from hfcart.commands import merge
    from hfcart.engine import merging
    from hfcart.report import plots

    add("imports", before, process)
    timed(merge, "make_plan", "pins and headers", process)
    timed(merge, "fetch_all", "digests of the sources", process)
    timed(merging, "merge_groups", "merging", process)
    timed(merging.GroupReader, "read", "  reading", thread)
    timed(merging.GroupRules, "merged", "  algebra", thread)
    timed(merging.GroupWriter, "write", "  casting, writing", thread)
    timed(merge, "read_back", "reading the output back", process)
    timed(plots, "draw_figures", "figures", process)
    timed(merge, "render_card", "card", process)
    hfcart.merge(sources, out=out, rank=0.08, workers=2, overwrite=True)
    whole = spent(process)
    whole[0] -= BEGUN
    known = [sum(cost[i] for phase, cost in COSTS.items() if phase[0] != " ") for i in range(4)]
    COSTS["the rest"] = [x - y for x, y in zip(whole, known, strict=True)]
    COSTS["in all"] = whole
    print(f"{'phase':<26}{'wall':>8}{'user':>8}{'system':>8}{'page faults':>13}")
    for phase, (wall, user, system, faults) in COSTS.items():
        shown = " " * 8 if phase[0] == " " else f"{wall:8.2f}"
        print(f"{phase:<26}{shown}{user:8.2f}{system:8.2f}{faults:13,.0f}")
    print(f"peak of resident memory: {resource.getrusage(process).ru_maxrss * 1024 / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
