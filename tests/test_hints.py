"""Every next step that a message names works when typed."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import hints
import pytest
import running
from clips import write_clip, write_images
from hints import ROOT, commands_in, faults
from running import Commands, Run
from towers import write_tower

from hfcart.cli._shared.output import typed_here
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.errors import together

PACKAGE = running.ROOT / "hfcart"
COLOURS = ["red", "green", "blue", "yellow"]
CARD = (
    '{id: mine, title: Mine, dataset: {repo: user/images}, templates: ["{}"], classnames: [red, green, blue, yellow]}'
)


def texts(tree: ast.Module) -> Iterator[str]:
    """Every text of a file but its docstrings; what is put into an f-string is X."""
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inner = {id(sub) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for sub in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(p.value) if isinstance(p, ast.Constant) else "X" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs | inner:
            yield node.value


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_command_in_the_source_is_one(path: Path) -> None:
    assert not [wrong for text in texts(ast.parse(path.read_text())) for wrong in faults(text)]


def test_every_command_in_the_helps_and_the_documents_is_one() -> None:
    for command in hints.every(ROOT):
        assert not faults(command.help or "", command)
    read = "\n".join((PACKAGE.parent / name).read_text() for name in ("README.md", ".github/GUIDE.md"))
    blocks = [line.removeprefix("$ ").partition("  ")[0] for line in read.splitlines() if "hfcart " in line]
    typed = [line for line in blocks if line.startswith("hfcart ") and "…" not in line]
    assert len(typed) > 20 and not [wrong for line in typed for wrong in faults(line.partition("   ")[0].rstrip())]
    prose = re.sub(r"^```.*?^```", "", read, flags=re.MULTILINE | re.DOTALL)
    shown = [line for line in prose.splitlines() if not line.startswith("| `hfcart ")]  # words in capitals stand there
    assert not [wrong for line in shown for wrong in faults(line)]


@pytest.mark.parametrize(
    ("hint", "wrong"),
    [
        ("Run `hfcart push m --push-to user/m`, or wait.", False),
        ("To go on: hfcart push m --push-to user/m", False),
        ("To go on: hfcart push m --push-to user/m. The folder is intact.", True),
        ("To go on: hfcart push 'a b' --push-to user/m", False),
        ("To go on: hfcart push a b --push-to user/m", True),
        ("Run `hfcart push m`.", True),
        ("Give --nowhere.", True),
        ("Try hfcart evaluate or `hfcart evaluate`.", True),
        ("hfcart methods lists all.", True),
    ],
)
def test_the_check_sees_what_does_not_work(hint: str, wrong: bool) -> None:
    assert bool(faults(hint)) == wrong


def test_hints_are_joined_line_by_line() -> None:
    assert together("Do this.", None, "To go on: hfcart demo", "") == "Do this.\nTo go on: hfcart demo"
    assert together(None) is None


def test_an_option_that_a_command_lacks_is_not_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    hint = "Name it: --base user/name\nGive --out, or wait. Or free some space.\nThen: hfcart merge a --base b"
    monkeypatch.setattr("hfcart.cli._shared.output.running", {})
    assert typed_here(hint) == hint.splitlines()  # from Python
    running = {"name": "hfcart verify", "options": {"--device"}}
    monkeypatch.setattr("hfcart.cli._shared.output.running", running)
    assert typed_here(hint) == ["Or free some space.", "Then: hfcart merge a --base b"]
    assert typed_here("Give --base.") == ["What can be said here: hfcart verify --help"]
    assert typed_here("") == []


@pytest.fixture
def zoo(hub: EmbeddedHub, tmp_path: Path) -> EmbeddedHub:
    """A Hub with a CLIP model, and towers of its shape and a task's card in folders whose names need quotes."""
    write_clip(tmp_path / "clip", 0)
    hub.create("user/clip")
    hub.commit("user/clip", {path.name: path for path in (tmp_path / "clip").iterdir()})
    for i in (1, 2, 3):
        tower = write_tower(tmp_path / "my towers" / f"t {i}", i, card="---\nbase_model: user/clip\n---\n")
        (tower / "config.json").write_text((tower / "config.json").read_text())
    (tmp_path / "my tasks").mkdir()
    (tmp_path / "my tasks" / "mine.yaml").write_text(CARD)
    return hub


def proposed(text: str) -> list[list[str]]:
    """The commands that a message names, as words, with names in the place of what stands for one."""
    return [shlex.split(line)[1:] for line in commands_in(text)]


def test_a_source_without_a_task_is_told_what_to_type(zoo: EmbeddedHub, commands: Commands) -> None:
    sources = [f"my towers/t {i}" for i in (1, 2, 3)]
    merge = ["merge", *sources, "--method", "regmean", "--dry-run", "--tasks"]
    (lost,) = commands(zoo, [[*merge, "my tasks/mine.yaml"]])
    assert lost.returncode == 2
    options = shlex.split(lost.stderr.partition("such as --tasks ")[2])
    assert len(options) == 1
    (found,) = commands(zoo, [[*merge, *options]])
    assert found.returncode == 0 and "t 3 on mine" in found.stdout, found.stderr


def test_what_is_left_to_do_is_done_by_what_was_printed(zoo: EmbeddedHub, commands: Commands) -> None:
    sources = [f"my towers/t {i}" for i in (1, 2, 3)]
    to_the_end = [
        "--eval",
        "my tasks/mine.yaml",
        "--base",
        "user/clip",
        "--push-to",
        "user/merged",
        "--out",
        "my merge",
    ]
    (failed,) = commands(zoo, [["merge", *sources, *to_the_end, "--allow-distant"]])
    assert failed.returncode == 1 and "The merge is complete" in failed.stderr, failed.stderr
    measure, push = proposed(failed.stderr)
    assert measure[0] == "eval" and push[0] == "push"
    zoo.create("user/images", repo_type="dataset")
    zoo.commit("user/images", {"data/test-00000-of-00001.parquet": write_images(8, 4, 1)}, repo_type="dataset")
    done = commands(zoo, [measure, push])
    assert [each.returncode for each in done] == [0, 0], done
    assert "results.json" in zoo.files("user/merged")


def test_a_push_that_failed_can_be_typed_again(zoo: EmbeddedHub, commands: Commands) -> None:
    sources = [f"my towers/t {i}" for i in (1, 2, 3)]
    zoo.fail("POST .*/commit/", status=400)
    publish = ["--push-to", "user/merged", "--out", "my merge", "--private"]
    (failed,) = commands(zoo, [["merge", *sources, *publish]])
    assert failed.returncode == 1 and "The folder is intact" in failed.stderr, failed.stderr
    (push,) = proposed(failed.stderr)
    (done,) = commands(zoo, [push])
    assert done.returncode == 0 and "model.safetensors" in zoo.files("user/merged"), done.stderr


def test_other_messages(zoo: EmbeddedHub, commands: Commands, hfcart: Run, tmp_path: Path) -> None:
    """A card of one's own that does not fit its dataset, a folder that was changed, a base that is none, a draft."""
    zoo.create("user/images", repo_type="dataset")
    zoo.commit(
        "user/images", {"data/train-00000-of-00001.parquet": write_images(8, 4, 1, names=COLOURS)}, repo_type="dataset"
    )
    sources = [f"my towers/t {i}" for i in (1, 2, 3)]
    no_split, merged, drafted, no_base, to_pr = commands(
        zoo,
        [
            ["eval", "user/clip", "--tasks", "my tasks/mine.yaml"],
            ["merge", *sources, "--out", "my merge"],
            ["tasks", "new", "user/images", "--out", "my tasks/draft.yaml"],
            ["finetune", sources[0], "--task", "my tasks/mine.yaml"],
            ["merge", "user/clip", "--push-to", "user/clip", "--create-pr", "--out", "again"],
        ],
    )
    assert no_split.returncode == 1 and no_base.returncode == 1 and "--base" not in no_base.stderr
    assert merged.returncode == drafted.returncode == to_pr.returncode == 0, (merged.stderr, to_pr.stderr)
    card = tmp_path / "my merge" / "recipe.yaml"
    card.write_text(card.read_text() + "\n")
    (changed,) = commands(zoo, [["push", "my merge", "--push-to", "user/merged"]])
    assert changed.returncode == 1
    typed = [line for each in (no_split, drafted, to_pr, changed) for line in proposed(each.stdout + each.stderr)]
    assert [line[0] for line in typed] == ["tasks", "tasks", "verify", "merge"]
    assert typed[2] == ["verify", "user/clip@refs/pr/1"]
    shown, draft, verified, _ = commands(zoo, typed)
    assert [shown.returncode, draft.returncode, verified.returncode] == [0, 0, 0], verified.stderr
