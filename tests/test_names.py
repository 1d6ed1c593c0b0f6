"""Names as they are typed: one rule for methods, recipes, tasks, fields and kinds of numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfcart.commands.compared_methods import _named
from hfcart.errors import UsageError
from hfcart.learning.finetune import recipe as finetuning
from hfcart.methods import METHODS, method_of
from hfcart.names import dtype, meant, near, spelled
from hfcart.recipes.merge_recipe import make
from hfcart.recipes.recipe_files import names, read
from hfcart.tasks.task_cards import read_tasks, shipped
from hfcart.zero_shot.measurement import Measurement

TWO = {"sources": ("user/a", "user/b")}


def spellings(name: str) -> list[str]:
    return [name, name.upper(), name.title(), name.replace("_", "-"), name.replace("-", "_"), f" {name} "]


def test_case_hyphens_and_underscores_do_not_matter() -> None:
    for method in METHODS:
        for typed in spellings(method):
            assert method_of(typed).name == _named(typed) == method
        need = {"tasks": ("8",)} if METHODS[method].statistics else {}
        assert make({**TWO, "method": method.upper().replace("_", "-"), **need}).method == method
    for task in shipped():
        assert all(read_tasks([typed])[0].id == task for typed in spellings(task))
    for name in names():
        assert all(read(Path(typed.strip())) == read(Path(name)) for typed in spellings(name))
    assert _named("CART++") == "cart++"


def test_no_two_names_are_spelled_alike() -> None:
    for known in (list(METHODS), list(shipped()), names()):
        assert [spelled(name, known) for name in known] == known
        assert [spelled(name.upper(), known) for name in known] == known


def test_an_exact_name_goes_first() -> None:
    assert spelled("a_b", ["A-B", "a_b"]) == "a_b" and spelled("AB", ["A-B", "c"]) == "A-B"
    assert spelled("c", ["A-B"]) is None and spelled("", []) is None


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("tie", "Did you mean ties?"),
        ("TaskArithmatic", "Did you mean task_arithmetic?"),
        ("iso", "Did you mean iso_c or iso_cts?"),
        ("zzzz", f"Known: {', '.join(METHODS)}."),
    ],
)
def test_what_was_meant(typed: str, said: str) -> None:
    assert meant(typed, METHODS) == said
    assert near(typed, METHODS) == ("" if said.startswith("Known") else said)


def test_every_place_answers_alike() -> None:
    """A method, a task, a recipe, a field: of a merge, of a fine-tuning, of a comparison."""
    asked = [
        (lambda: method_of("tie"), "There is no method 'tie'. Did you mean ties?"),
        (lambda: _named("tie"), "There is no method 'tie'. Did you mean ties?"),
        (lambda: make({**TWO, "method": "tie"}), "method: unknown method 'tie'. Did you mean ties?"),
        (lambda: read_tasks(["eurosatt"]), "There is no task 'eurosatt'. Did you mean eurosat?"),
        (lambda: read(Path("vit-b-32-8-wudy")), "no recipe of that name. Did you mean vit-b-32-8-wudi"),
        (lambda: make({**TWO, "rnak": 3}), "unknown field 'rnak'. Did you mean rank?"),
        (lambda: finetuning.make({"base": "b", "tasks": ("8",), "stpes": 3}), "'stpes'. Did you mean steps?"),
        (lambda: make({**TWO, "zzzz": 3}), "unknown field 'zzzz'."),
        (lambda: make({**TWO, "method": "cart++"}), "cart++ is what --adapt makes of cart"),
    ]
    for call, said in asked:
        with pytest.raises(UsageError) as caught:
            call()
        assert said in caught.value.message, caught.value.message


@pytest.mark.parametrize(
    ("typed", "full"),
    [("bf16", "bfloat16"), ("BF16", "bfloat16"), ("fp16", "float16"), ("half", "float16"), ("fp32", "float32"),
     ("f32", "float32"), ("Float32", "float32"), ("bfloat16", "bfloat16"), ("auto", "auto"), ("int8", "int8")],
)  # fmt: skip
def test_kinds_of_numbers_have_several_names(typed: str, full: str) -> None:
    assert dtype(typed) == full
    if full == "int8":
        for field in ("dtype", "precision"):
            with pytest.raises(UsageError, match=field):
                make({**TWO, field: typed})
        return
    if full != "auto":
        assert make({**TWO, "dtype": typed}).dtype == full
    if full != "float16":
        assert make({**TWO, "precision": typed}).precision == full
        assert finetuning.make({"base": "b", "tasks": ("8",), "precision": typed}).precision == full
        assert Measurement(read_tasks(["mnist"]), precision=typed).precision == full
