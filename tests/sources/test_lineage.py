"""The base of a merge of merges is the one that records and cards lead to, or it is said who names which."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import Commands
from towers import write_tower

from hfcart.demo.embedded_hub.hub import EmbeddedHub

ADD = ("--method", "task_arithmetic", "--scale", "0.3")
MEAN = ("--method", "average")


@pytest.fixture
def towers(hub: EmbeddedHub, tmp_path: Path) -> EmbeddedHub:
    """Two bases, and towers whose cards say nothing; but that of t5."""
    for name, seed, card in [("base", 0, None), ("other", 9, None), *((f"t{i}", i, None) for i in (1, 2, 3, 4))]:
        hub.create(f"user/{name}")
        hub.commit(
            f"user/{name}", {path.name: path for path in write_tower(tmp_path / name, seed, card=card).iterdir()}
        )
    write_tower(tmp_path / "t5", 5, card="---\nbase_model: User/Base\n---\n")
    return hub


def test_records_are_followed_to_the_base(towers: EmbeddedHub, commands: Commands) -> None:
    pinned = f"user/base@{towers.head('user/base')}"
    made = commands(
        towers,
        [
            ["merge", "user/t1", "user/t2", *ADD, "--base", "user/base", "--push-to", "user/m1"],
            ["merge", "user/m1", "user/t3", *MEAN, "--push-to", "user/m2"],
            ["merge", "user/m2", "user/t4", *MEAN, "--out", "m3"],
        ],
    )
    assert [each.returncode for each in made] == [0, 0, 0], made
    towers.commit("user/base", {"NOTES": b"moved on"})
    found, mixed, unknown, other = commands(
        towers,
        [
            ["merge", "m3", *ADD, "--dry-run"],
            ["merge", "user/m2", "m3", "t5", "user/t4", *ADD, "--dry-run"],
            ["merge", "user/t3", "user/t4", *ADD, "--dry-run"],
            ["merge", "m3", *ADD, "--base", "user/other", "--dry-run"],
        ],
    )
    assert f"Base model: {pinned} " in found.stderr and found.returncode == 0, found.stderr
    assert f"Base model: {pinned} " in mixed.stderr and mixed.returncode == 0, mixed.stderr
    assert unknown.returncode == 2 and "records and cards" in unknown.stderr
    assert other.returncode == 0 and "user/other" in other.stdout


def test_those_who_disagree_are_listed(towers: EmbeddedHub, commands: Commands, tmp_path: Path) -> None:
    made = commands(
        towers,
        [
            ["merge", "user/t1", "user/t2", *ADD, "--base", "user/base", "--push-to", "user/m1"],
            ["merge", "user/t3", *ADD, "--base", "user/other", "--allow-distant", "--push-to", "user/m2"],
            ["merge", "user/m1", "user/m2", *MEAN, "--allow-distant", "--out", "m3"],
            ["merge", "user/t3", *ADD, "--base", "base", "--out", "m4"],
        ],
    )
    assert [each.returncode for each in made] == [0, 0, 0, 0], made
    broken = write_tower(tmp_path / "broken", 3, card="---\nbase_model: user/base\n---\n")
    (broken / "hfcart.json").write_text("{}")
    listed, folder, same, believed = commands(
        towers,
        [
            ["merge", "m3", "t5", *ADD, "--dry-run"],
            ["merge", "m4", *ADD, "--dry-run"],
            ["merge", "m4", "user/m1", *ADD, "--dry-run"],
            ["merge", "broken", *ADD, "--dry-run"],
        ],
    )
    assert listed.returncode == 2 and "--base user/name" in listed.stderr
    assert "the record of user/m1, a source of m3 says user/base@" in listed.stderr
    assert "the card of t5 says User/Base" in listed.stderr
    assert "the record of user/m2, a source of m3 says user/other@" in listed.stderr
    assert folder.returncode == 2 and "is the folder base, as the record of m4 says" in folder.stderr
    assert same.returncode == 0 and "Base model: user/base@" in same.stderr  # the same weights, which the Hub has
    assert believed.returncode == 0 and "is not taken from its hfcart.json" in believed.stderr


def test_folders_remember(towers: EmbeddedHub, commands: Commands) -> None:
    """A merge of local merges of local merges, of towers whose cards, or records, name the base."""
    made = commands(
        towers,
        [
            ["merge", "t1", "t5", *MEAN, "--out", "m1"],
            ["merge", "t2", "t3", *ADD, "--base", "user/base", "--out", "m2"],
            ["merge", "m1", "m2", *MEAN, "--out", "m3"],
            ["merge", "m3", "t4", *MEAN, "--out", "m4"],
            ["merge", "m4", *ADD, "--dry-run"],
        ],
    )
    assert [each.returncode for each in made] == [0] * 5, made
    assert "Base model: " in made[4].stderr and "base" in made[4].stderr.lower()


def test_a_long_chain_of_records_ends(towers: EmbeddedHub, commands: Commands, tmp_path: Path) -> None:
    (made,) = commands(towers, [["merge", "user/t1", "user/t2", *MEAN, "--push-to", "user/m"]])
    assert made.returncode == 0, made.stderr
    for _ in range(20):
        record = json.loads(towers.files("user/m")["hfcart.json"])
        commit = towers.head("user/m")
        record["sources"] = [
            {**record["sources"][0], "repo": "user/m", "label": "user/m", "commit": commit},
            record["sources"][1],
        ]
        record["recipe"]["sources"][0] = f"user/m@{commit}"
        towers.commit("user/m", {"hfcart.json": json.dumps(record).encode()})
    towers.clear()
    (done,) = commands(towers, [["merge", "user/m", *ADD, "--dry-run"]])
    assert done.returncode == 2 and "records and cards" in done.stderr, done.stderr
    asked = {
        request.path for request in towers.requests if "/resolve/" in request.path and "hfcart.json" in request.path
    }
    assert 2 < len(asked) < 12
