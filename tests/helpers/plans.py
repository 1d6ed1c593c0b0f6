"""Plans of merges whose towers are there to be read."""

from __future__ import annotations

from pathlib import Path

from hfcart.engine.plan import Plan
from hfcart.engine.planning import make_plan
from hfcart.progress import Progress
from hfcart.recipes.merge_recipe import make
from hfcart.sources.towers import fetch_all


def fetched_plan(sources: list[Path], **fields: object) -> Plan:
    """A plan with its towers fetched, still in the order given. Close it."""
    plan = make_plan(make({"sources": list(map(str, sources)), **fields}), sources[0].parent / "converted", Progress())
    fetch_all(plan.towers_and_base, Progress(), stream=False)
    return plan
