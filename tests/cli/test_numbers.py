"""Numbers as they are typed: per cent, shares and whole numbers, and what the plan says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from towers import TINY, write_tower
from typer.testing import CliRunner

from hfcart.cli import app
from hfcart.cli._shared.merge_output import _percent
from hfcart.errors import UsageError
from hfcart.recipes.fields import number
from hfcart.recipes.grid import numbers
from hfcart.recipes.merge_recipe import make

THREE = {"sources": ("a", "b", "c")}


@pytest.mark.parametrize(
    ("typed", "value"),
    [("8%", 0.08), ("8 %", 0.08), (" 8% ", 0.08), ("12.3%", 0.123), ("100%", 1.0), ("0.5%", 0.005), ("0.08", 0.08),
     ("1", 1), ("1.0", 1.0), ("15", 15), ("1e-3", 0.001), ("-2", -2)],
)  # fmt: skip
def test_a_number_as_it_is_typed(typed: str, value: float) -> None:
    assert number(typed) == value and type(number(typed)) is type(value)


@pytest.mark.parametrize("typed", ["", "%", "8%%", "eight", "8%8", "--1", "1e9%", "0x8"])
def test_what_is_no_number(typed: str) -> None:
    with pytest.raises(ValueError, match="could not convert|invalid"):
        number(typed)
    done = CliRunner().invoke(app, ["merge", "a", "b", "--rank", typed])
    assert done.exit_code == 2 and "is not a number" in done.output


def test_per_cent_in_a_recipe_and_in_python() -> None:
    """In YAML `rank: 8%` is a text; so it is in Python. What is no share takes none."""
    assert make({**THREE, "rank": "8%"}).rank == 0.08  # type: ignore[attr-defined]
    fields = yaml.safe_load("{method: ties, density: 20 %, scale: 150%}")
    assert make({**THREE, **fields}).parameters == {"density": 0.2, "trim": "global", "combine": "mean", "scale": 1.5}
    assert make({**THREE, "method": "linear", "weights": ["50%", 1, 0.5]}).parameters == {"weights": (0.5, 1.0, 0.5)}
    for wrong in ({"rank": "800%"}, {"rank": "0%"}, {"rank": "8"}, {"out": "50%", "rank": "x%"}, {"workers": "8%"}):
        with pytest.raises(UsageError):
            make({**THREE, **wrong})
    assert make({**THREE, "out": "50%"}).out == "50%"


def test_per_cent_in_a_grid() -> None:
    assert numbers("2%,0.08,1.0,15", ratios=True) == [0.02, 0.08, 1.0, 15]
    assert numbers("2%:50%:3", ratios=True) == numbers("0.02:0.5:3", ratios=True) == [0.02, 0.1, 0.5]


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for i, name in enumerate("abc", start=1):
        write_tower(tmp_path / name, i, {**TINY, "num_hidden_layers": 1})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(*typed: str) -> str:
    done = CliRunner().invoke(app, ["merge", "a", "b", "c", "--dry-run", *typed])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_plan_says_what_a_rank_means(three: Path) -> None:
    """32 directions: 8 % are 2 of them, whatever was typed."""
    for typed in ("8%", "0.08", "2", "0.0625"):
        assert " rank 2 of 32 directions (6 %) through the SVD" in " ".join(planned("--rank", typed).split()), typed
    assert "32 of 32 directions (100 %)" in planned("--rank", "1.0")
    assert "1 of 32 directions (3 %)" in planned("--rank", "1")
    assert "directions (" not in planned("--method", "average")
    facts = json.loads(planned("--rank", "8%", "--json"))
    assert facts["parameters"]["rank"] == 0.08 and facts["directions"] == [{"kept": 2, "of": 32, "matrices": 6}]
    two = " ".join(planned("--rank", "8%", "--matrices", "all-2d").split())
    assert "rank 2 of 32 directions (6 %); 1 of 5 directions (20 %) through" in two


@pytest.mark.parametrize(
    ("share", "said"), [(15 / 192, "8 %"), (0.08, "8 %"), (1.0, "100 %"), (1 / 768, "0.1 %"), (0.0099, "1 %")]
)
def test_a_share_in_words(share: float, said: str) -> None:
    assert _percent(share) == said
