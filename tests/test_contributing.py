"""The worked examples of CONTRIBUTING.md, as they stand there: each is put into a copy of the package, and used."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from running import ROOT, ended
from towers import write_tower

GUIDE = ROOT / ".github" / "CONTRIBUTING.md"
PLACED = re.compile(r"```\w+\n# ((?:hfcart|cards)/\S+)\n(.*?)```", re.DOTALL)
FIELD = re.compile(r"```python\n# in class Settings\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with every example of the guide in its place."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("hfcart", "cards"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    text = GUIDE.read_text()
    examples = PLACED.findall(text)
    assert [Path(name).suffix for name, _ in examples] == [".py", ".py", ".yaml", ".py"]
    for name, body in examples:
        (folder / name).parent.mkdir(exist_ok=True)
        assert not (folder / name).exists()
        (folder / name).write_text(body)
    settings = folder / "hfcart" / "recipes" / "merge_recipe.py"
    (field,) = FIELD.findall(text)
    before, mark, after = settings.read_text().partition("    out: Annotated[")
    assert mark
    settings.write_text(before + field + mark + after)
    for i in (1, 2, 3):
        write_tower(folder / f"t{i}", i)
    return folder


def run(copy: Path, env: dict[str, str], *args: str) -> str:
    own = env | {"PYTHONPATH": str(copy), "COLUMNS": "200"}
    done = ended(
        [sys.executable, "-m", "hfcart", *args],
        cwd=copy,
        env=own,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_method_and_an_option(copy: Path, clean_env: dict[str, str]) -> None:
    """A folder, and a field: merge, help, recipe, record, card, methods and verify know them."""
    run(copy, clean_env, "merge", "t1", "t2", "t3", "--method", "median", "--blend", "0.5", "--purpose", "research",
        "--out", "m")  # fmt: skip
    record = json.loads((copy / "m" / "hfcart.json").read_text())
    assert record["method"]["name"] == "median" and record["method"]["parameters"] == {"blend": 0.5}
    recipe = yaml.safe_load((copy / "m" / "recipe.yaml").read_text())
    assert recipe["purpose"] == "research" and recipe["blend"] == 0.5
    card = (copy / "m" / "README.md").read_text()
    assert "`blend`, β" in card and "@misc{median" in card
    assert "Identical" in run(copy, clean_env, "verify", "m")
    assert "How far towards the average" in run(copy, clean_env, "methods", "median")
    shown = run(copy, clean_env, "merge", "--help")
    assert "--blend" in shown and "research|production" in shown


def test_a_command_and_a_task(copy: Path, clean_env: dict[str, str]) -> None:
    assert run(copy, clean_env, "hello", "you") == "Hello, you.\n"
    assert "hello" in run(copy, clean_env, "--help")
    assert "Colours of pets" in run(copy, clean_env, "tasks", "show", "pets-colours")
    assert "pets-colours" in run(copy, clean_env, "tasks")


def test_what_it_says_of_the_project_is_so() -> None:
    text = GUIDE.read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", text):
        assert f"\n{target}:" in makefile or target in makefile.partition(".PHONY:")[2].split("\n")[0], target
    for path in re.findall(r"`((?:hfcart|cards|tests)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    for path, word in re.findall(r"pytest -n 0 (\S+) -k (\w+)", text):
        assert re.search(rf"def test_\w*{word}", (ROOT / path).read_text()), f"{path} has no test of {word}"
