"""A package brings a method: installed into a fresh environment and used; and what is wrong with a declaration."""

from __future__ import annotations

import copy
import json
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, ended, run_commands
from three_towers import TOWERS
from towers import write_tower

from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.methods import ADAPTING, METHODS, Parameter
from hfcart.methods.declaration import TAKEN, check
from hfcart.recipes.merge_recipe import Settings

PLUGIN = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "hfcart-middle"
version = "1.2"
[project.entry-points."hfcart.methods"]
middle = "hfcart_middle:METHOD"
broken = "hfcart_middle:NOTHING"
taken = "hfcart_middle:TAKEN"
raises = "hfcart_middle.gone:METHOD"
""",
    "hfcart_middle/__init__.py": '''
"""The middle of the smallest and the largest entry."""
import dataclasses
from hfcart.methods import Method, Parameter
METHOD = Method(
    name="middle", family="between the towers", title="Middle", summary="Halfway between the extremes.",
    matrices="the middle of the extremes times `stretch`", others="the same as the matrices",
    formula=r"\\theta_m = \\sigma\\, \\frac12 (\\min_t \\theta_t + \\max_t \\theta_t)",
    matrix_rule="hfcart_middle.rule:middle", other_rule="hfcart_middle.rule:middle",
    parameters=(Parameter("stretch", 1.0, "A factor.", least=0.5, most=2.0, symbol="σ"),),
    needs_base=False, arxiv="2203.05482", citation="@misc{middle}",
)
TAKEN = dataclasses.replace(METHOD, name="cart")
''',
    "hfcart_middle/rule.py": """
from hfcart.methods import Merged
def middle(thetas, *, stretch=1.0):
    return Merged(stretch * (thetas.amin(0) + thetas.amax(0)) / 2)
""",
}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, clean_env: dict[str, str]) -> tuple[Path, dict[str, str]]:
    """A Python with hfcart and the package installed from their wheels; the libraries come from this environment."""
    root = tmp_path_factory.mktemp("fresh")
    env = {k: v for k, v in clean_env.items() if k != "PYTHONPATH"}
    for name, text in PLUGIN.items():
        (root / "plugin" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "plugin" / name).write_text(text)
    for source in (ROOT, root / "plugin"):
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(root / "dist")]
        ended(build, cwd=source, env=env).check_returncode()
    ended([sys.executable, "-m", "venv", str(root / "venv")], env=env).check_returncode()
    python = root / "venv" / "bin" / "python"
    wheels = sorted(map(str, (root / "dist").glob("*.whl")))
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", *wheels]
    ended(pip, env=env).check_returncode()
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = ended([str(python), "-c", where], env=env).stdout.strip()
    (Path(site) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python, env


def test_it_is_used_as_if_it_were_hfcarts_own(
    fresh: tuple[Path, dict[str, str]],
    zoo: tuple[EmbeddedHub, Path],
    tmp_path: Path,
) -> None:
    python, env = fresh
    hub, root = zoo
    env = env | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "COLUMNS": "200"}

    wrong = {"broken": "NOTHING", "taken": "there is a method cart already", "raises": "gone"}
    tasks = f"{root}/images1.yaml"
    lines = [
        ["methods"],
        ["merge", *TOWERS, "--method", "middle", "--stretch", "1.5", "--out", "m"],
        ["verify", "m"],
        ["methods", "middle"],
        ["merge", "--help"],
        ["compare", *TOWERS, "--tasks", tasks, "--methods", "middle", "--references", "none", "--out", "c"],
        *(["merge", *TOWERS, "--method", name, "--out", name] for name in wrong),
    ]
    every = run_commands(lines, tmp_path, env, python=python)
    assert [done.returncode for done in every] == [0] * 6 + [2] * 3, every
    assert not [done.stderr for done in every if "Traceback" in done.stderr]
    listed, _, verified, middle, shown, _, *refused = every
    record = json.loads((tmp_path / "m" / "hfcart.json").read_text())
    assert record["method"]["package"] == "hfcart-middle 1.2" and record["method"]["parameters"] == {"stretch": 1.5}
    card = (tmp_path / "m" / "README.md").read_text()
    assert "`hfcart-middle 1.2`" in card and "`stretch`, σ" in card
    assert "Identical" in verified.stdout and "middle" in listed.stdout
    for (name, why), done in zip(wrong.items(), refused, strict=True):
        assert why in " ".join(listed.stderr.split()), name
        assert "hfcart-middle 1.2" in " ".join(done.stderr.split())
    assert "hfcart-middle 1.2" in middle.stdout and "--stretch" in shown.stdout
    rows = json.loads((tmp_path / "c" / "compare.json").read_text())["rows"]
    assert {row["name"]: row["error"] for row in rows} == {"middle": None}


def test_without_the_package_its_merge_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hfcart.commands.merge import merge_folder
    from hfcart.errors import VerifyError
    from hfcart.progress import Progress
    from hfcart.recipes.finished_merge import read_record
    from hfcart.recipes.merge_recipe import make

    monkeypatch.chdir(tmp_path)
    for i in (1, 2):
        write_tower(tmp_path / f"t{i}", i)
    merge_folder(make({"sources": ["t1", "t2"], "method": "average", "out": "m"}), Progress())
    record = json.loads((tmp_path / "m" / "hfcart.json").read_text())
    record["method"] |= {"name": "middle", "package": "hfcart-middle 1.2"}
    record["recipe"]["method"] = "middle"
    with pytest.raises(VerifyError) as caught:
        read_record(json.dumps(record).encode(), "m/hfcart.json")
    assert "hfcart-middle" in f"{caught.value} {caught.value.hint}"


OWN = METHODS["ties"]
WRONG: list[dict[str, Any]] = [
    {"name": "Ties 2"},
    {"name": "cart"},
    {"name": "cart++"},
    {"family": "others"},
    {"title": ""},
    {"formula": "x" * 9999},
    {"summary": "a\x1b[31m"},
    {"arxiv": "http://evil"},
    {"matrix_rule": "os.system"},
    {"fit": "a b:c"},
    {"exactly": -1},
    {"needs_base": 1},
    {"statistics": "labels"},
    {"published": (1.0,)},
    {"published": ("a", "b")},
    {"parameters": ("scale",)},
    {"parameters": (Parameter("out", 1.0, "x"),)},
    {"parameters": (Parameter("rank", 1.0, "x"),)},
    {"parameters": (Parameter("new", 3.0, "x", most=2.0),)},
    {"parameters": (Parameter("new", 1.0, ""),)},
    {"parameters": (Parameter("new", "a", "x", kind="choice"),)},
    {"parameters": (Parameter("new", 1.0, "x"),) * 2},
]


@pytest.mark.parametrize("change", WRONG, ids=lambda c: "-".join(f"{k}-{str(v)[:20]}" for k, v in c.items()))
def test_a_declaration_is_checked(change: dict[str, Any]) -> None:
    changed = copy.copy(OWN)  # not by its constructor, whose types the tests check anyway
    for field, value in {"name": "other", "adaptive": None, **change}.items():
        object.__setattr__(changed, field, value)
    with pytest.raises(ValueError, match=r".{5}"):
        check(changed, list(METHODS.values()), ADAPTING)


def test_ours_are_what_is_asked_of_others() -> None:
    for method in METHODS.values():
        check(method, [other for other in METHODS.values() if other is not method], ADAPTING)
    assert set(Settings.model_fields) <= TAKEN
