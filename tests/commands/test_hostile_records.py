"""A stranger's record that verify is asked about: whatever it holds, one sentence that names file and field, exit 1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from json_places import at, changed
from running import contents
from towers import TINY, shapes, write_tower

from hfcart.clip.tensor_names import is_matrix
from hfcart.commands.merge import merge_folder
from hfcart.commands.verify import Verdict, run_verify
from hfcart.errors import HfcartError, VerifyError
from hfcart.methods.shared.directions import as_hex
from hfcart.progress import Progress
from hfcart.recipes.merge_recipe import make

SMALL = {**TINY, "num_hidden_layers": 1}
DEEP: Any = "deep"  # lists in lists, deeper than any parser goes
LONG = "9" * 5_000
# Of each kind of value; what is a text here and no number there is of the wrong type for one of them.
VALUES: list[Any] = [None, True, "", "x", "x" * 30_000, [], ["x"], {}, {"x": {"x": [1]}}]
VALUES += [-1, 0, 0.5, 10**30, 1e300, LONG, float("nan"), float("-inf"), DEEP]


@pytest.fixture(scope="module")
def merge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge as AdaRank leaves one, its coefficients and directions given."""
    root = tmp_path_factory.mktemp("merge")
    sources = tuple(str(write_tower(root / f"t{i}", i, SMALL)) for i in (1, 2))
    full = {name: min(shape) for name, shape in shapes(SMALL).items() if is_matrix(name)}
    recipe = {
        "sources": sources,
        "method": "cart",
        "out": str(root / "m"),
        "adapt_ranks": 1.0,
        "coefficients": {name: [1.0, 0.5] for name in full},
        "directions": {name: [as_hex([True, False] * (count // 2))] * 2 for name, count in full.items()},
    }
    merge_folder(make(recipe), Progress())
    return root / "m"


def written(tree: Any) -> str:
    text = json.dumps(tree)
    return text.replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000).replace(f'"{LONG}"', LONG)


def verified(merge: Path, tree: Any) -> Verdict | HfcartError:
    """What comes of it where the record is this one."""
    path = merge / "hfcart.json"
    true = path.read_bytes()
    path.write_text(written(tree))
    try:
        return run_verify(str(merge), device="cpu", stream=False, progress=Progress())
    except HfcartError as error:
        return error
    finally:
        path.write_bytes(true)


def cases(tree: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The record with something else in a field of its recipe, and the names that lead to it.

    Of the other fields, which are read in the same way, tests/records/test_strangers.py tries more.
    """
    for path in [("recipe", name) for name in tree["recipe"]]:
        for value in VALUES:
            yield path, changed(tree, path, value)
    for part in ("coefficients", "directions"):
        given = tree["recipe"][part]
        first = next(iter(given))
        for other in (dict(list(given.items())[1:]), {**given, "vision_model.none.weight": given[first]}):
            yield ("recipe", part), changed(tree, ("recipe", part), other)
        for values in ([], given[first][:1], given[first] * 2, "x", None, [None, None], [DEEP, DEEP]):
            yield ("recipe", part), changed(tree, ("recipe", part, first), values)
    for text in ("", "0", given[first][0][:-1], given[first][0] * 2, "zz", "f" * 6_000, "x" * 30_000, -1):
        yield ("recipe", "directions"), changed(tree, ("recipe", "directions", first, 1), text)
    for name, value in (("sources", []), ("architecture", {}), ("similarity", float("nan")), ("format", 10**30)):
        yield (name,), changed(tree, (name,), value)


def test_whatever_its_recipe_holds(merge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(merge.parent)
    tree = json.loads((merge / "hfcart.json").read_text())
    before, refused, ran = contents(merge.parent), 0, set[tuple[Any, ...]]()
    for path, hostile in cases(tree):
        found = verified(merge, hostile)
        if isinstance(found, Verdict):  # another value that makes sense: the weights are not what it makes
            assert not found.identical or at(hostile, path) == at(tree, path), path
            ran.add(path)
            continue
        refused += 1
        assert isinstance(found, VerifyError) and found.exit_code == 1, (path, found)
        said = found.message.removeprefix("m/hfcart.json")
        assert len(said) < len(found.message) and said.endswith("."), (path, found)
        named = path[-1].removesuffix("s").replace("_", " ") in said.replace("_", " ")
        assert named or said == " is not a merge record of hfcart: it is nested too deeply.", (path, found)
    assert refused > 180 and contents(merge.parent) == before
    assert ran <= {("recipe", name) for name in ("max_shard_size", "allow_distant", "adapt_ranks")}, ran
