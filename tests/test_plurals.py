"""Numbers and what they count: one tower, two towers, no towers, everywhere by one rule."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from running import ROOT
from towers import TINY, write_tower
from typer.testing import CliRunner

from hfcart.cli import app
from hfcart.cli._shared.output import Output
from hfcart.quoting import plural

# What messages count. Bytes, characters and pixels are of files and limits, which are never one.
COUNTED = re.compile(
    r"^ (?:\w+ )?(towers|sources|tasks|images|steps|matrices|groups|files|workers|tensors|rows|merges|points|processes|"
    r"classes|class names|values|numbers|directions|prompts|differences)\b"
)


@pytest.mark.parametrize(
    ("count", "words", "said"),
    [
        (0, ("tower",), "0 towers"),
        (1, ("tower",), "1 tower"),
        (2, ("tower",), "2 towers"),
        (0, ("matrix", "matrices"), "0 matrices"),
        (1, ("matrix", "matrices"), "1 matrix"),
        (2000, ("class name",), "2,000 class names"),
    ],
)
def test_plural(count: int, words: tuple[str, ...], said: str) -> None:
    assert plural(count, *words) == said


def lengths(tree: ast.AST) -> list[str]:
    """Texts that put a length before a noun in the plural, whatever it is."""
    found = []
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)):
        for value, text in zip(node.values, node.values[1:], strict=False):
            called = (
                value.value.func
                if isinstance(value, ast.FormattedValue) and isinstance(value.value, ast.Call)
                else None
            )
            if isinstance(called, ast.Name) and called.id in ("len", "sum") and isinstance(text, ast.Constant):
                found += [ast.unparse(node)] if COUNTED.match(str(text.value)) else []
    return found


def test_no_message_counts_by_itself() -> None:
    """By `plural`, or by a word that fits every number; the figures' labels say "mean of" where there are several."""
    assert lengths(ast.parse('f"{len(x)} towers"')) and not lengths(ast.parse('f"{len(x)} of 3"'))
    for path in sorted((ROOT / "hfcart").rglob("*.py")):
        text = path.read_text()
        assert "(s)" not in text.replace("re.fullmatch", "").replace("os.fspath(s)", "").replace("prod(s)", ""), path
        assert not re.search(r"'s' \*|\"s\" if", text), path
        if path.parts[-3:-1] not in (("report", "plots"), ("hfcart", "records")):
            assert not lengths(ast.parse(text)), path


@pytest.mark.parametrize(
    ("count", "unit", "said"),
    [
        (0, "images", "0 images"),
        (1, "images", "1 image"),
        (2, "prompts", "2 prompts"),
        (1, "steps", "1 step"),
        (1, "bytes", "1 bytes"),
    ],
)
def test_stages(count: int, unit: str, said: str) -> None:
    output = Output()
    output._unit = unit
    assert output._amount(count) == said


def test_a_plan_of_one_tower_and_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate("abc"):
        write_tower(tmp_path / name, i, {**TINY, "num_hidden_layers": 1})
    run = CliRunner()
    for sources in (["a"], ["a", "b"], ["a", "b", "c"]):
        done = run.invoke(app, ["merge", *sources, "--dry-run", "--workers", str(len(sources))])
        text = " ".join(done.output.split())
        assert f"with {plural(len(sources), 'worker')} " in text + " " and "(1 file)" in text, text
    merged = run.invoke(app, ["merge", "a", "--out", "one"])
    assert "Merged 1 tower with cart" in merged.output
    assert "2 sources their plain average" in " ".join(run.invoke(app, ["merge", "a", "b", "--dry-run"]).output.split())
