"""The table that the demo ends with: every kind of tower on one line, of what its folders hold."""

from __future__ import annotations

from pathlib import Path

from records import make_result, make_results

from hfcart.demo.tour import _table
from hfcart.records import Reference


def test_the_table_sets_adapters_between_the_merge_and_the_towers(tmp_path: Path) -> None:
    def beside(**others: float) -> dict[str, Reference]:
        return {name: Reference("x", value, measured=True) for name, value in others.items()}

    rows = {
        "merged": beside(pretrained=0.1, average=0.4, individual=0.9),
        "task-arithmetic": {},
        "average": beside(adapter=0.8),
    }
    for name, others in rows.items():
        counts = [(10, 6 if name == "merged" else 5)]
        results = make_results(None, make_result("a", counts, **others), make_result("b", counts, **others))
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(results.to_json())
    _, found = _table(tmp_path)
    assert [(row[0], row[-1]) for row in found] == [
        ("pretrained", "10.0"), ("average", "40.0"), ("task arithmetic", "50.0"), ("CART", "60.0"),
        ("average + adapters", "80.0"), ("individual", "90.0"),
    ]  # fmt: skip
    assert found[4] == ("average + adapters", "80.0", "80.0", "80.0")
