"""The help as it is read in a terminal: a line an option, panels in one order, examples last; `hfcart help`."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from hints import ROOT, every, faults
from running import Run
from typer.testing import CliRunner

from hfcart.cli import app
from hfcart.cli._shared.command import as_shown
from hfcart.cli.eval import _same_repo
from hfcart.recipes.options import PANELS

FIRST = ["--method METHOD", "--rank RANK", "--scale X", "--base SOURCE", "--out FOLDER", "--push-to USER/NAME"]


def paths(command: Any = ROOT, name: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = [path for word, one in getattr(command, "commands", {}).items() for path in paths(one, (*name, word))]
    return [name, *below]


def helped(path: tuple[str, ...], columns: int) -> str:
    env = {"COLUMNS": str(columns), "TERM": "dumb", **dict.fromkeys(("FORCE_COLOR", "GITHUB_ACTIONS"))}
    done = CliRunner().invoke(app, [*path, "--help"], env=env, prog_name="hfcart")
    assert done.exit_code == 0, done.output
    return done.stdout


def panels(text: str) -> dict[str, list[str]]:
    """Title -> the lines within."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if title := re.match(r"╭─ (.+?) ─", line):
            found[title[1]] = []
        elif line.startswith("│"):
            [*found.values()][-1].append(line.strip("│").strip())
    return found


@pytest.mark.parametrize("path", paths(), ids=" ".join)
@pytest.mark.parametrize("columns", [100, 120])
def test_a_line_an_option_panels_in_one_order_examples_last(path: tuple[str, ...], columns: int) -> None:
    text = helped(path, columns)
    shown = panels(text)
    for title, lines in shown.items():
        rows = [line for line in lines if re.match(r"--|[A-Z]{3}" if title != "Commands" else r"[a-z]+  ", line)]
        assert rows == lines, f"{title}: more than a line"
    order = ["Arguments", "Commands", *PANELS, "Options"]
    assert list(shown) == sorted(shown, key=order.index)
    assert "<bool>" not in text and "<" not in text
    examples = text.partition("\nExamples:\n")[2].strip().splitlines()
    assert examples and not [wrong for line in examples for wrong in faults(line.strip())]
    assert all("hfcart" in shlex.split(line) for line in examples)


@pytest.mark.parametrize("path", paths(), ids=" ".join)
def test_a_narrow_terminal_loses_nothing(path: tuple[str, ...]) -> None:
    narrow, wide = panels(helped(path, 80)), panels(helped(path, 200))
    assert all(len(line) <= 80 for line in helped(path, 80).partition("Examples:")[0].splitlines())
    joined = {title: " ".join(" ".join(lines).split()) for title, lines in narrow.items()}
    assert joined == {title: " ".join(" ".join(lines).split()) for title, lines in wide.items()}


def test_merge_begins_with_what_is_needed_first() -> None:
    shown = panels(helped(("merge",), 100))
    assert [line.split("  ")[0] for line in shown["Basics"]][:6] == FIRST
    wanted = [
        "Basics",
        "What is merged",
        "Adaptation",
        "Output",
        "Publishing",
        "Machine",
        "Parameters of single methods",
    ]
    assert list(shown) == ["Arguments", *wanted]
    assert all(re.match(r"--\S+ .*  [a-z_, ]+: [a-zλ]", line) for line in shown[wanted[-1]])


def test_one_word_for_one_thing() -> None:
    """The same options are called and explained alike wherever they stand, and the older words are still taken."""
    said: dict[str, set[str]] = {}
    for command in every(ROOT):
        for param in command.params:
            if param.name in ("tasks", "push_to", "quiet", "json", "debug", "private", "create_pr", "device", "limit"):
                said.setdefault(param.name, set()).update(param.opts)
    assert said["tasks"] == {"--tasks", "TASKS", "tasks"} & said["tasks"] | {"--tasks"}
    assert said["push_to"] == {"--push-to"}
    assert (as_shown("task"), as_shown("to"), as_shown("Push_To")) == ("tasks", "push-to", "push-to")
    for words in (
        ["push", "none", "--to", "a/b"],
        ["push", "none", "--push-to", "a/b"],
        ["push", "none", "--Push_To", "a/b"],
    ):
        assert "There is no folder none" in " ".join(CliRunner().invoke(app, words).output.split())
    for option in ("--task", "--tasks"):
        for command in ("finetune", "eval", "sweep", "compare"):
            done = CliRunner().invoke(app, [command, "a", option, "nothing-like-it"])
            assert done.exit_code == 2 and "There is no task 'nothing-like-it'" in done.output, (command, option)


def test_results_are_pushed_by_either_word() -> None:
    """Of another repo than the tower's they are not results: `--push-to` can name no other."""
    done = CliRunner().invoke(app, ["eval", "user/a@v1", "--tasks", "mnist", "--push-to", "user/b"])
    assert done.exit_code == 2 and "user/b is not that of user/a@v1" in " ".join(done.output.split())
    assert _same_repo("user/a", "user/a@v1") and not _same_repo(None, "user/a")
    assert "--push-to" not in helped(("eval",), 100) and "--push " in helped(("eval",), 100)


@pytest.mark.parametrize("path", [p for p in paths() if p], ids=" ".join)
def test_help_of_any_command(path: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, ["help", *path], env={"COLUMNS": "100", "TERM": "dumb"}, prog_name="hfcart")
    assert done.exit_code == 0 and done.stdout == helped(path, 100)


def test_help_alone_and_of_nothing(hfcart: Run) -> None:
    assert "Commands" in hfcart("help").stdout
    lost = hfcart("help", "mrege")
    assert lost.returncode == 2 and "No such command 'mrege'. Did you mean merge?" in " ".join(lost.stderr.split())


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["mrege"], "No such command 'mrege'. Did you mean merge?"),
        (["tasks", "shwo"], "No such command 'shwo'. Did you mean show?"),
        (["qqqqq"], "No such command 'qqqqq'."),
        (["merge", "a", "--rnak", "3"], "No such option: --rnak. Did you mean --rank?"),
        (["merge", "a", "--qqqqqq"], "No such option: --qqqqqq"),
        (["finetune", "a", "--taks", "b"], "No such option: --taks. Did you mean --tasks"),
    ],
)
def test_a_misspelt_word_is_told_what_was_meant(typed: list[str], said: str) -> None:
    done = CliRunner().invoke(app, typed, env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exit_code == 2 and said in " ".join(done.output.split())


def test_tasks_and_methods_are_listed_by_that_word(hfcart: Run) -> None:
    listed, plain = hfcart("tasks", "list"), hfcart("tasks")
    assert listed.returncode == 0 and listed.stdout == plain.stdout and "eurosat" in listed.stdout
    assert hfcart("tasks", "list", "--json").stdout == hfcart("tasks", "--json").stdout
    assert hfcart("methods", "list").stdout == hfcart("methods").stdout
    assert hfcart("task", "show", "EuroSAT").returncode == 0
