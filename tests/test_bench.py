"""The benches as `make bench` runs them: each ends in time or is stopped, and the page has ratios first."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from running import ROOT

BENCH = ROOT / "tests" / "bench"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tests/bench/__main__.py, as a module."""
    monkeypatch.syspath_prepend(str(BENCH))
    spec = importlib.util.spec_from_file_location("bench_driver", BENCH / "__main__.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # which dataclasses look themselves up in
    spec.loader.exec_module(module)
    return module


def test_all_benches_are_run_within_twenty_minutes(driver: ModuleType) -> None:
    assert sum(bench.budget for bench in driver.BENCHES) <= 20 * 60
    measuring = {path.stem for path in BENCH.glob("*.py") if "say_ratio" in path.read_text()} - {"measuring"}
    assert measuring == {bench.name for bench in (*driver.BENCHES, driver.DEVICE)}


def test_the_page_has_ratios_first_and_names_no_place(
    driver: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "gpu", lambda: "")
    monkeypatch.setattr(driver, "BENCHES", [dataclasses.replace(bench, budget=3600) for bench in driver.BENCHES])
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "startup,device", "--short", "--out", str(tmp_path / "page")])
    assert driver.main() == 0
    page = (tmp_path / "page").read_text()
    assert page.index("\n## Ratios") < page.index("\n- **") < page.rindex("\n- **") < page.index("\n## Start-up")
    assert page.index("\n## Start-up") < page.index("| `hfcart --help` |") < page.index("\n## On a GPU")
    assert "device: unmeasured, there is no GPU here" in page and "cores" in page and "torch 2." in page
    assert str(ROOT) not in page and str(tmp_path) not in page and sys.prefix not in page


@pytest.mark.parametrize(
    ("script", "budget", "said"),
    [
        ("import time; time.sleep(3600)", 1, "stopped after its 1 s"),
        ("print('- **2×** first'); raise SystemExit(3)", 3600, "it ended with 3"),
    ],
)
def test_a_bench_that_does_not_end_well_is_named(
    driver: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, budget: int, said: str
) -> None:
    (tmp_path / "one.py").write_text(script)
    monkeypatch.setattr(driver, "HERE", tmp_path)
    text, well = driver.run(driver.Bench("one", "One", budget), (), tmp_path)
    assert not well and f"one: unmeasured, {said}" in text
    assert ("first" in text) == ("first" in script)
