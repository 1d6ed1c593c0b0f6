"""What is quoted from a file in an error or on the terminal is cut and printable, whatever the file holds."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from towers import TINY, config, shapes, write_tower
from typer.testing import CliRunner

from hfcart.cli import app
from hfcart.engine.planning import make_plan
from hfcart.errors import HfcartError, MismatchError
from hfcart.progress import Progress
from hfcart.quoting import MOST, MOST_ROWS, printable, quoted, some
from hfcart.recipes import merge_recipe as recipe
from hfcart.recipes import recipe_files
from hfcart.sources.preprocessor import clip_default, read_preprocessor
from hfcart.sources.stores import LocalStore
from hfcart.tasks.task_cards import read_card

LONG = "x" * 300_000
HOSTILE: list[Any] = [
    LONG,
    "\x1b[31mred\x1b]0;title\x07" * 20_000,
    "\U000e0001\u202e" * 20_000,
    "a\nError: b\rc\u2028d" * 5_000,
    [LONG],
    {LONG: LONG},
    [str(i) for i in range(20_000)],
    {str(i): i for i in range(20_000)},
    -(10**400),
    1e308,
]


def check(action: Callable[[], object], *, fails: bool = True) -> None:
    """What is read may be refused, with a whole sentence of ours that is printable and no longer than a screen."""
    try:
        action()
    except HfcartError as error:
        text = str(error)
        assert text.isprintable() and len(text) < MOST and text.endswith("."), text[:MOST]
        assert all(line.isprintable() and len(line) <= MOST for line in (error.hint or "").split("\n"))
        if isinstance(error, MismatchError):
            assert len(error.rows) <= MOST_ROWS
            assert all(len(cell) <= 200 and (not cell or cell.isprintable()) for row in error.rows for cell in row)
    else:
        assert not fails


def check_command(*args: str) -> None:
    """What a command prints that it quotes is printable and cut, too."""
    done = CliRunner().invoke(app, [*args])
    printed = done.stdout + done.stderr
    assert done.exit_code in (0, 1, 2) and "did not expect" not in printed, printed[:MOST]
    assert all(c.isprintable() or c == "\n" for c in printed)
    assert len(printed) < 15_000 and printed.count("\n") < 90


def header(folder: Path, entries: dict[str, Any], body: bytes = b"") -> None:
    text = json.dumps(entries).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)


def plan(fields: dict[str, Any]) -> None:
    make_plan(recipe.make(fields), Path("converted"), Progress()).close()


def merge(*folders: Path) -> object:
    return plan({"sources": [*map(str, folders)]})


@pytest.fixture
def towers(tmp_path: Path) -> tuple[Path, Path]:
    return write_tower(tmp_path / "a", 1), write_tower(tmp_path / "b", 2)


def test_fields_of_a_config(towers: tuple[Path, Path]) -> None:
    one, other = towers
    for name in ("model_type", *TINY):
        for value in HOSTILE:
            (other / "config.json").write_text(json.dumps({**config(), name: value}))
            check(lambda: merge(one, other))
    for wrong in ({**config(), "model_type": "clip", "vision_config": HOSTILE[4]}, LONG, HOSTILE[6], {LONG: 1}):
        (other / "config.json").write_text(json.dumps(wrong))
        check(lambda: merge(one, other))
    (other / "config.json").write_text(f'{{"{LONG}": 1, "{LONG}": 2}}')
    check(lambda: merge(one, other))
    check_command("merge", str(one), str(other), "--dry-run")


def test_names_in_a_header(towers: tuple[Path, Path]) -> None:
    one, other = towers
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    texts = [value for value in HOSTILE if isinstance(value, str)]
    cases = [
        {text: entry} for text in texts for entry in (empty, {}, {**empty, "dtype": text}, {**empty, "shape": [1]})
    ]
    cases += [
        {**empty, "x": 1},
        dict.fromkeys(texts, empty),
        {f"foreign.{i}.{LONG[:200]}": empty for i in range(20_000)},
    ]
    cases += [{text: {**empty, "data_offsets": [4, 4]}} for text in texts] + [{f"a.{'9' * 5_000}.b": empty}]
    for case in cases:
        header(other, case)
        check(lambda: merge(one, other))
    header(other, next(case for case in cases if len(case) > 1_000))
    check_command("merge", str(one), str(other), "--dry-run")
    header(other, cases[0])
    check_command("merge", str(one), str(other), "--dry-run")


def test_names_in_an_index(towers: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = towers[0], write_tower(tmp_path / "c", 3, shards=2)
    path = other / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    file = next(iter(index["weight_map"].values()))
    for text in [value for value in HOSTILE if isinstance(value, str)]:
        for more in ({"x": text}, {"x": f"{text}.safetensors"}, {text: file}, {"x": f"../{text}"}):
            path.write_text(json.dumps({"weight_map": {**index["weight_map"], **more}}))
            check(lambda: merge(one, other))
    path.write_text(json.dumps({"weight_map": {**index["weight_map"], **{f"y{i}": file for i in range(20_000)}}}))
    check(lambda: merge(one, other))
    check_command("merge", str(one), str(other), "--dry-run")


def test_what_a_card_states(towers: tuple[Path, Path]) -> None:
    one, other = towers
    for value in HOSTILE:
        fields = dict.fromkeys(("license", "license_name", "license_link", "datasets", "language", "base_model"), value)
        (other / "README.md").write_text(f"---\n{yaml.safe_dump({**fields, 'license': 'other'})}---\n")
        check(lambda: merge(one, other), fails=False)
        check(lambda: plan({"sources": [str(other)], "full_clip": True}))
    check_command("merge", str(one), str(other), "--dry-run")


def test_values_of_a_preprocessor(towers: tuple[Path, Path]) -> None:
    one, _ = towers
    path = one / "preprocessor_config.json"
    for name in (*clip_default(16), "feature_extractor_type", LONG):
        for value in HOSTILE:
            path.write_text(json.dumps({**clip_default(16), name: value}))
            check(lambda: read_preprocessor(LocalStore(one), 16), fails=False)


def broken_yaml() -> Iterator[str]:
    for text in (value for value in HOSTILE if isinstance(value, str)):
        short = text[:100_000]
        yield from (
            f"{short}: [",
            f"a: {short}\n b: {{",
            f"- {short}",
            f'"{short}',
            f"a: !!{short} b",
            f"? {short}\n: : :",
        )
    yield from (f"a: &{LONG[:1000]} b", f"a: *{LONG[:1000]}", "a: b\n\tc: d", "[" * 50_000, "a: 0x" + "f" * 20_000)


@pytest.mark.parametrize("read", [recipe_files.read, read_card])
def test_broken_yaml(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for text in broken_yaml():
        path.write_text(text)
        check(lambda: read(path), fails=read is read_card)


def test_fields_of_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    good = {"sources": ["a/x", "b/y"]}
    for name in (*recipe.Recipe.model_fields, LONG[:1_000], "\x1b[31mred"):
        for value in (*HOSTILE, 16**20_000, float("nan")):
            check(partial(recipe.make, {**good, name: value}, "r.yaml"), fails=False)
    check(lambda: recipe.make({**good, **{f"{LONG[:500]}{i}": 1 for i in range(20_000)}}, "r.yaml"))
    for value in HOSTILE[:4]:
        path.write_text(yaml.safe_dump({**good, "method": value[:90_000]}))
        check_command("merge", "--recipe", str(path), "--dry-run")
    path.write_text("sources: [a/x, b/y]\nagree: 0x" + "f" * 20_000)
    check_command("merge", "--recipe", str(path), "--dry-run")


def test_fields_of_a_task_card(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    good = {
        "id": "own", "title": "Own", "dataset": {"repo": "user/own"}, "templates": ["a {}."], "classnames": ["a", "b"],
    }  # fmt: skip
    fields = (*good, "fine_tuned", "published", "note", "license", "citation", "\x1b[31m")
    inner = ("repo", "config", "revision", "test_split", "image_column", "test_size", "z")
    values = [
        value if isinstance(value, int | float) else value[:5_000] for value in HOSTILE if not isinstance(value, dict)
    ]
    values += [{text: text} for text in values[:4]] + HOSTILE[-2:]
    cases = [{**good, name: value} for name in fields for value in values]
    cases += [{**good, "dataset": {"repo": "user/own", name: value}} for name in inner for value in values]
    cases += [{**good, "fine_tuned": {"a/b": value}} for value in values] + [{**good, "classnames": values[:4]}]
    for case in cases:
        path.write_text(json.dumps(case))
        check(lambda: read_card(path), fails=False)
    check_command("tasks", "show", str(path))


def test_the_helpers() -> None:
    assert printable("a\x1b[1m\nb") == "a�[1m b" and len(printable(LONG)) == MOST
    assert quoted("a\nb") == r"'a\nb'" and quoted(7) == "7" and len(quoted(LONG)) < 90 and len(quoted([LONG])) < 90
    assert quoted(16**20_000) == "a number of thousands of digits"
    assert some(["a", "b"]) == "a, b" and some(range(20_000), 2) == "0, 1 and 19,998 more"
    assert str(HfcartError(LONG)).endswith("…") and shapes()
