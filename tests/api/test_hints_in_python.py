"""What messages say to type is told in Python to who called a function."""

from __future__ import annotations

import ast
from pathlib import Path

import hints
import pytest
import running
from hints import faults_in_python
from test_hints import texts

from hfcart.cli._shared.as_python import as_call, hint_in_python, in_python

PACKAGE = running.ROOT / "hfcart"
# What the command line alone says: how it prints, and what its own help is.
SAID = sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in ("cli", "demo"))


@pytest.mark.parametrize("path", SAID, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_message_of_the_source_has_words_for_python(path: Path) -> None:
    assert not [wrong for text in texts(ast.parse(path.read_text())) for wrong in faults_in_python(text)]


@pytest.mark.parametrize(
    ("typed", "call"),
    [
        ("hfcart merge", "hfcart.merge"),
        ("hfcart eval --help", "help(hfcart.evaluate)"),
        ("hfcart merge a 'my b' --rank 0.08 --full-clip", "hfcart.merge(['a', 'my b'], rank=0.08, full_clip=True)"),
        ("hfcart merge a --rank 3 --threshold 0.1,0.2", "hfcart.merge(['a'], rank=3, threshold=[0.1, 0.2])"),
        ("hfcart merge --recipe FILE --eval 8,dtd", "hfcart.merge(eval=['8', 'dtd'], recipe='FILE')"),
        ("hfcart eval m --tasks a.yaml --no-streaming", "hfcart.evaluate('m', ['a.yaml'], streaming=False)"),
        ("hfcart sweep a b --tasks 8 --rank 0.1:0.2", "hfcart.sweep(['a', 'b'], ['8'], rank='0.1:0.2')"),
        ("hfcart compare a b --tasks 8 --methods all", "hfcart.compare(['a', 'b'], ['8'], methods=['all'])"),
        ("hfcart finetune b --tasks x --steps 3 --lr 1e-5", "hfcart.finetune('b', ['x'], lr=1e-05, steps=3)"),
        ("hfcart push m --push-to user/m --private --quiet", "hfcart.push('m', 'user/m', private=True)"),
        ("hfcart verify user/m@refs/pr/1", "hfcart.verify('user/m@refs/pr/1')"),
        ("hfcart methods", None),
        ("hfcart merge a --nowhere", None),
        ("hfcart push 'm", None),
    ],
)  # fmt: skip
def test_a_command_is_a_call(typed: str, call: str | None) -> None:
    assert as_call(typed) == call
    if call:
        ast.parse(call)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Give --device auto, or --device cpu.", "Give `device='auto'`, or `device='cpu'`."),
        ("Try a lower --lr than 0.1, with --overwrite.", "Try a lower `lr` than 0.1, with `overwrite=True`."),
        ("Run the same command with --no-streaming.", "Make the same call with `streaming=False`."),
        ("Say it, such as --tasks 'user/a=my tasks/b.yaml'", "Say it, such as `tasks=['user/a=my tasks/b.yaml']`"),
        ("`hfcart methods` lists them.", "`hfcart methods` lists them."),
        ("Log in: hf auth login", "Log in: hf auth login"),
        ("`pip install -U hfcart`, or `hf auth login --force`", "`pip install -U hfcart`, or `hf auth login --force`"),
        ("Fetch it: hf download user/m --local-dir FOLDER", "Fetch it: hf download user/m --local-dir FOLDER"),
        ("First: hfcart eval m --tasks 8\nThen wait.", "First: hfcart.evaluate('m', ['8'])\nThen wait."),
    ],
)  # fmt: skip
def test_prose(text: str, told: str) -> None:
    assert in_python(text) == told and in_python(told) == told


def test_a_hint_says_nothing_of_what_the_function_has_not() -> None:
    hint = "Name it: --base user/name\nGive --out, or wait. Or free some space."
    assert hint_in_python(hint, "verify") == "Or free some space."
    assert hint_in_python("Give --base.", "verify") == "`help(hfcart.verify)` lists what it takes."
    assert hint_in_python(hint, "merge") == "Name it: `base='user/name'`\nGive `out`, or wait. Or free some space."


def test_the_check_sees_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints, "in_python", lambda text: text.replace("x", "y"))
    for text in (
        "`hfcart merge x`",
        "Give --out x",
        "`hfcart.merge(x`",
        "`hfcart.merge([], rnak=x)`",
        "`hfcart.push(x, y=1)`",
    ):
        assert faults_in_python(text), text
