"""What a push replaces: an earlier state of the same thing, and nothing else unless it is told to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fine_tuned import fine_tuned
from running import Commands
from towers import write_tower

from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.errors import PublishError
from hfcart.hub import Target
from hfcart.progress import Progress
from hfcart.sources.replacing import Artefact, Origin, refuse_replacing

MERGE = ["--method", "average"]


def upload(hub: EmbeddedHub, repo: str, folder: Path) -> str:
    if not hub.exists(repo):
        hub.create(repo)
    return hub.commit(repo, {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()})


@pytest.fixture
def towers(hub: EmbeddedHub, tmp_path: Path) -> list[str]:
    for i in (1, 2, 3):
        upload(hub, f"user/t{i}", write_tower(tmp_path / "src" / f"t{i}", i))
    return ["user/t1", "user/t2", "user/t3"]


def said(done: object) -> str:
    return " ".join(done.stderr.split())  # type: ignore[attr-defined]


def test_a_merge_replaces_a_merge_of_the_same_sources_alone(hub, towers, commands: Commands, tmp_path):
    one, two, three = towers
    push = ["--push-to", "user/pub"]
    first, settings, again = commands(hub, [
        ["merge", one, two, *MERGE, *push, "--out", "m1"],
        ["merge", f"{two}@main", one, "--rank", "3", *push, "--out", "m2"],
        ["push", "m2", "--to", "user/pub"],
    ])  # fmt: skip
    assert [done.returncode for done in (first, settings, again)] == [0, 0, 0], said(first) + said(settings)
    assert "nothing was sent" in said(again)
    upload(hub, one, write_tower(tmp_path / "newer", 7))
    head = hub.head("user/pub")
    hub.create("user/odd")
    odd = {"format": 99, "recipe": {}, "method": {}, "sources": ["x"], "tensors": []}
    hub.commit("user/odd", {"hfcart.json": json.dumps(odd).encode()})
    lines = [
        ["merge", one, two, *MERGE, *push, "--out", "newer1", "--dry-run"],  # another commit of the same source
        ["merge", one, three, *MERGE, *push, "--out", "x1"],
        ["merge", one, three, *MERGE, *push, "--out", "x1", "--dry-run"],
        ["merge", *towers, *MERGE, *push, "--out", "x2"],
        ["merge", "user/pub", three, *MERGE, *push, "--out", "x3"],
        ["merge", "user/pub", three, *MERGE, *push, "--out", "x3", "--dry-run"],
        ["merge", one, three, *MERGE, "--push-to", "User/T3", "--out", "x4"],  # one name on the Hub, in any case
        ["merge", one, two, "--method", "task_arithmetic", "--base", "user/pub", *push, "--out", "x5"],
        ["merge", one, two, *MERGE, "--push-to", "user/odd", "--out", "x6"],
        ["merge", one, three, *MERGE, "--out", "other"],
        ["push", "other", "--to", "user/pub"],
    ]  # fmt: skip
    newer, *refused, made, pushed = commands(hub, lines)
    assert newer.returncode == made.returncode == 0, said(newer) + said(made)
    holds = "user/pub holds a merge of user/t"
    for done, reason in zip(
        [*refused, pushed],
        [holds, holds, holds, *["user/pub is one of the sources of this merge"] * 2,
         "User/T3 is one of the sources of this merge", "user/pub is the base of this merge",
         "What user/odd holds is not known", holds],
        strict=True,
    ):  # fmt: skip
        assert done.returncode == 1 and reason in said(done) and "--overwrite" in said(done), said(done)
        assert "Traceback" not in done.stderr
    assert hub.head("user/pub") == head and not hub.exists("User/T3")
    assert not list(tmp_path.glob("x*"))  # refused before the work
    # A pull request replaces nothing by itself; with --overwrite everything may go.
    proposed, over, source = commands(hub, [
        ["push", "other", "--to", "user/pub", "--create-pr"],
        ["push", "other", "--to", "user/pub", "--overwrite"],
        ["merge", "user/pub", two, *MERGE, *push, "--out", "over", "--overwrite"],
    ])  # fmt: skip
    assert [done.returncode for done in (proposed, over, source)] == [0, 0, 0], said(over) + said(source)
    assert "user/pub is one of the sources" in said(source) and len(hub.commits("user/pub")) == 5


def test_what_a_replaced_artefact_leaves_behind_goes_in_the_same_commit(hub, towers, commands, tmp_path):
    (done,) = commands(hub, [["merge", *towers, "--rank", "2", "--push-to", "user/pub", "--out", "m"]])
    assert done.returncode == 0, said(done)
    mine = {"LICENSE": b"mine", "notes.md": b"n", "figures/mine.png": b"p", "results/mine.csv": b"1", "data.yaml": b""}
    ours = {"results/adaptation.csv": b"a", "figures/entropy.png": b"p", ".eval_results/hfcart-x.yaml": b"- 1"}
    hub.commit("user/pub", {**mine, **ours})
    before = hub.files("user/pub")
    assert {"recipe.yaml", "figures/energy.png", "figures/similarity.png"} < before.keys()
    tuned = fine_tuned(tmp_path / "m", tmp_path / "tuned")
    other = fine_tuned(tmp_path / "m", tmp_path / "other", task="letters")
    push = ["push", str(tuned), "--to", "user/pub"]
    upload(hub, "user/theirs", write_tower(tmp_path / "theirs", 8))
    hub.commit("user/theirs", {"recipe.yaml": b"bread", "figures/energy.png": b"mine", "vocab.json": b"{}"})
    refused, over, again, letters, back, theirs = commands(hub, [
        push, [*push, "--overwrite"], push, ["push", str(other), "--to", "user/pub"], ["push", "m", "--to", "user/pub"],
        ["push", str(other), "--to", "user/theirs", "--overwrite"],
    ])  # fmt: skip
    assert refused.returncode == 1
    assert "user/pub holds a merge of user/t" in said(refused)
    assert "and this is a fine-tuning of user/base on digits" in said(refused)
    assert over.returncode == again.returncode == 0, said(over) + said(again)
    assert letters.returncode == 1 and "on digits, and this is a fine-tuning of user/base on letters" in said(letters)
    assert back.returncode == 1 and "holds a fine-tuning of user/base on digits" in said(back)
    after = hub.files("user/pub")
    own = {path.relative_to(tuned).as_posix() for path in tuned.rglob("*") if path.is_file()}
    assert after.keys() == own | mine.keys() | {".gitattributes"}
    assert all(after[name] == content for name, content in mine.items())
    assert len(hub.commits("user/pub")) == 4
    # What hfcart did not make may be theirs, whatever it is called: only weights, what goes with them, and results go.
    files = hub.files("user/theirs")
    assert theirs.returncode == 0 and files["recipe.yaml"] == b"bread" and files["figures/energy.png"] == b"mine"
    assert "vocab.json" not in files


def test_sources_are_known_by_their_weights_too(hub, towers, commands, tmp_path):
    """A folder that was published since is the same source; a folder that holds what was published is a source."""
    local = str(tmp_path / "src" / "t3")
    (made,) = commands(hub, [["merge", towers[0], local, *MERGE, "--push-to", "user/pub", "--out", "t1"]])
    assert made.returncode == 0, said(made)
    record = json.loads((tmp_path / "t1" / "hfcart.json").read_text())
    assert sorted(source["label"] for source in record["sources"]) == ["t3", "user/t1"]
    copies = tmp_path / "copies"
    copies.mkdir()
    # Of the labels that the target's own sources have, but one of them holds the target's very weights.
    write_tower(copies / "t3", 3)
    (copies / "t3" / "model.safetensors").write_bytes((tmp_path / "t1" / "model.safetensors").read_bytes())
    published, copied, single, twice = commands(hub, [
        ["merge", towers[0], towers[2], *MERGE, "--push-to", "user/pub", "--out", "x", "--dry-run"],
        ["merge", towers[0], str(copies / "t3"), *MERGE, "--push-to", "user/pub", "--out", "y", "--dry-run"],
        ["merge", towers[0], *MERGE, "--push-to", "user/one", "--out", "one"],
        ["merge", towers[0], *MERGE, "--push-to", "user/one", "--out", "two"],
    ])  # fmt: skip
    assert published.returncode == 0, said(published)
    assert copied.returncode == 1 and "user/pub is one of the sources of this merge" in said(copied)
    assert single.returncode == twice.returncode == 0, said(twice)


def test_a_target_that_changes_between_the_check_and_the_commit_is_not_replaced(hub, towers, commands, tmp_path):
    """Somebody else's merge arrives while ours is under way: the commit is made on the head that was checked."""
    (made,) = commands(hub, [["merge", *towers[:2], *MERGE, "--push-to", "user/pub", "--out", "m"]])
    assert made.returncode == 0
    head = hub.commit("user/pub", {"notes.md": b"theirs"})
    hub.fail("POST .*/commit/", status=412)
    (done,) = commands(hub, [["merge", *towers[:2], "--rank", "2", "--push-to", "user/pub", "--out", "n"]])
    assert done.returncode == 1 and hub.head("user/pub") == head, said(done)


@pytest.mark.parametrize(("repo", "name"), [("user/old", "user/T1"), ("User/t1", "User/t1"), ("user/T1", "")])
def test_a_repo_goes_by_what_the_hub_calls_it_now(repo: str, name: str) -> None:
    target = Target(repo, True, "0" * 40, (), None, name)
    new = Artefact("merge", (Origin("user/t1", frozenset({"user/t1"})), Origin("user/t2", frozenset({"user/t2"}))))
    with pytest.raises(PublishError, match=f"{repo} is one of the sources of this merge"):
        refuse_replacing(target, new, overwrite=False, progress=Progress())
