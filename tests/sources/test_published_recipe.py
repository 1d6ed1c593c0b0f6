"""`merge --recipe user/merged`: the recipe of a merge on the Hub, at a revision, or in a folder; a stranger's file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from running import Commands, contents
from towers import TINY, write_tower

from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.errors import UsageError, VerifyError
from hfcart.progress import Progress
from hfcart.recipes.asked import asked_for
from hfcart.recipes.recipe_files import names
from hfcart.sources.published_recipe import is_place, recipe_of

T = ["user/t1", "user/t2", "user/t3"]
SMALL = {**TINY, "num_hidden_layers": 1}


@pytest.fixture
def zoo(hub: EmbeddedHub, tmp_path: Path) -> EmbeddedHub:
    for i, repo in enumerate([*T, "user/t4"], start=1):
        hub.create(repo)
        folder = write_tower(tmp_path / "src" / f"t{i}", i, SMALL)
        hub.commit(repo, {path.name: path for path in folder.iterdir()})
    return hub


class Told(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_the_recipe_of_a_published_merge(zoo: EmbeddedHub, commands: Commands, tmp_path: Path) -> None:
    """Its sources stay pinned, at any revision of the merge, and what is typed beside it goes before it."""
    publish = ["--push-to", "user/merged", "--overwrite"]
    (first,) = commands(zoo, [["merge", *T, "--rank", "3", "--scale", "1.5", *publish, "--out", "a"]])
    older = zoo.head("user/merged")
    (second,) = commands(zoo, [["merge", *T, "--rank", "5", *publish, "--out", "b"]])
    assert first.returncode == second.returncode == 0, (first.stderr, second.stderr)
    for i, repo in enumerate(T, start=1):  # the sources move on
        moved = write_tower(tmp_path / "moved" / f"t{i}", 10 + i, SMALL)
        zoo.commit(repo, {"model.safetensors": moved / "model.safetensors"})
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "ab"}
    done = commands(
        zoo,
        [["merge", "--recipe", "user/merged", "--out", "again"],
         ["merge", "--recipe", f"user/merged@{older}", "--out", "at"],
         ["merge", "--recipe", "a", "--out", "folder"],
         ["merge", "--recipe", "user/merged", "--rank", "3", "--scale", "1.5", "--out", "typed"],
         ["merge", "user/t4", *T[:2], "--recipe", "user/merged", "--out", "others"],
         ["merge", "--recipe", "user/merged", "--method", "average", "--dry-run"]],
    )  # fmt: skip
    assert [each.returncode for each in done] == [0] * 6, [each.stderr for each in done]
    again, at, folder, typed, others = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("again", "at", "folder", "typed", "others")
    )
    assert again == weights["b"] and at == folder == typed == weights["a"] != weights["b"]
    recipe = yaml.safe_load((tmp_path / "others" / "recipe.yaml").read_text())
    assert recipe["rank"] == 5 and recipe["sources"][0].startswith("user/t4@") and others != weights["b"]
    commit = zoo.head("user/merged")[:12]
    assert f"The recipe is that of user/merged at {commit}: cart of 3 towers." in " ".join(done[0].stderr.split())
    assert "average takes no rank: the one in user/merged is left out." in done[5].stderr


def test_what_has_no_recipe(zoo: EmbeddedHub, commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    lines = [["merge", "--recipe", place] for place in ("user/t1", "empty", "user/none", "user/none.yaml", "./none")]
    plain, empty, none, file, path = commands(zoo, lines)
    assert [each.returncode for each in (plain, empty, none, file, path)] == [2, 2, 1, 2, 2]
    assert "user/t1 has no hfcart.json" in plain.stderr and "empty has no hfcart.json" in empty.stderr
    assert "cannot be read" in file.stderr


@pytest.fixture
def merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands: Commands, hub: EmbeddedHub) -> Path:
    sources = [str(write_tower(tmp_path / name, i, SMALL)) for i, name in enumerate("xyz", start=1)]
    (done,) = commands(hub, [["merge", *sources, "--out", "m"]])
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    return tmp_path / "m"


def test_a_stranger_s_record_is_checked(merged: Path) -> None:
    """It can choose no path of ours, no repo to publish in, and no number that no merge has."""
    good = json.loads((merged / "hfcart.json").read_text())
    told = Told()
    assert recipe_of("m", told) == good["recipe"] and told.notes == ["The recipe is that of m: cart of 3 towers."]
    wrong = [
        {"push_to": "user/theirs"},
        {"out": "/etc"},
        {"sources": ["../../secret", *good["recipe"]["sources"][1:]]},
        {"sources": ["user/a", "user/b", "user/c"]},
        {"rank": 1e9},
        {"rank": "800%"},
        {"method": "magic"},
        {"method": {}},
    ]
    for change in wrong:
        (merged / "hfcart.json").write_text(json.dumps({**good, "recipe": {**good["recipe"], **change}}))
        with pytest.raises(VerifyError):
            recipe_of("m", Progress())
    for text in ("", "[]", '{"format": 99}', '{"kind": "finetune"}', "\x1b[2J"):
        (merged / "hfcart.json").write_text(text)
        with pytest.raises((VerifyError, UsageError)):
            recipe_of("m", Progress())
    assert sorted(contents(merged)) and not (merged.parent / "merged").exists()


def test_what_is_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / names()[0]).mkdir()
    assert all(is_place(text) for text in ("folder", "user/name", "user/name@v1", "user/name@refs/pr/3", "./folder"))
    assert not any(
        is_place(text) for text in (names()[0], "user/file", "user/r.yaml", "r.yaml", "a/b/c", "", "\0", "~none/x")
    )
    (tmp_path / names()[0] / "hfcart.json").write_text("{}")
    assert is_place(names()[0])


@pytest.mark.parametrize("given", [{"scale": 2.0}, {"adapt": "8"}, {"sources": ("a", "b")}, {"method": "ties"}])
def test_coefficients_were_learned_for_what_was_merged(given: dict[str, object]) -> None:
    recorded = {"sources": ["a", "b", "c"], "method": "cart", "rank": 0.08, "coefficients": {"x": [1.0, 1.0, 1.0]}}
    told = Told()
    assert asked_for(Path("m"), dict(given), told, recorded=recorded).coefficients is None
    assert "The coefficients in m were learned for what it merges: they are left out." in told.notes
    assert asked_for(Path("m"), {"out": "o"}, told, recorded=recorded).coefficients is not None


def test_directions_go_with_their_coefficients(tmp_path: Path) -> None:
    """Where another rank or a sweep says what is merged, or other directions than those there were to choose from."""
    recorded = {"sources": ["a", "b", "c"], "method": "cart", "coefficients": {"x": [1.0, 1.0, 1.0]}}
    recorded |= {"adapt_ranks": 1.0, "directions": {"x": ["f", "0", "1"]}}
    note = "The coefficients in m were learned for what it merges: they are left out."
    assert asked_for(Path("m"), {}, Told(), recorded=recorded).directions is not None
    told = Told()
    found = asked_for(Path("m"), {"rank": 5}, told, recorded=recorded)
    assert told.notes == [note] and (found.directions, found.adapt_ranks, found.rank) == (None, None, 5)
    for given, words in (({"adapt_ranks": 0.5}, "give adapt too"), ({"sweep": str(tmp_path)}, "holds no sweep.json")):
        told = Told()
        with pytest.raises(UsageError, match=words):
            asked_for(Path("m"), given, told, recorded=recorded)
        assert told.notes == [note]
