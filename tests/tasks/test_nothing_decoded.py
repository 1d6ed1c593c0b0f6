"""Nothing measured or learned is no success: if no image of a task can be decoded, every command ends with 1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clips import image, parquet, png
from running import Commands
from three_towers import COLOURS, TOWERS, card

from hfcart.demo.embedded_hub.hub import EmbeddedHub

Zoo = tuple[EmbeddedHub, Path]


@pytest.fixture(scope="module")
def spoilt(zoo: Zoo) -> Zoo:
    """Beside the zoo's data sets: one without an image in it, and one with no more than that of its first row."""
    hub, root = zoo
    some = [png(image(0, 0)), *[b"no image"] * 19]
    for name, files in (("ruin", [png(image(0, 0))[:300]] * 20), ("rest", some)):
        hub.create(f"user/{name}", repo_type="dataset")
        data = {f"data/{part}-0.parquet": parquet(files, [0] * 20, COLOURS) for part in ("test", "train")}
        hub.commit(f"user/{name}", data, repo_type="dataset")
        (root / f"{name}.yaml").write_text(json.dumps(card(f"user/{name}", name) | {"title": name.title()}))
    return zoo


def test_every_command_that_measures_or_learns(spoilt: Zoo, commands: Commands, tmp_path: Path) -> None:
    hub, root = spoilt
    good, ruin = f"{root}/images1.yaml", f"{root}/ruin.yaml"
    before = {name: hub.commits(name) for name in TOWERS}
    own = ",".join(f"{tower}={ruin}" for tower in TOWERS)
    merge, tune = ["merge", *TOWERS], ["finetune", "user/clip", "--task"]
    lines = [
        ["eval", "user/t1", "--tasks", ruin, "--push"],
        ["eval", "user/t1", "--tasks", f"{good},{ruin}", "--push"],
        ["eval", "user/t1", "--tasks", ruin, "--limit", "3", "--no-streaming", "--references", "measured"],
        ["eval", "user/t1", "--tasks", ruin, "--part", "validation", "--json"],
        [*merge, "--eval", ruin, "--push-to", "user/ruined", "--out", "merged"],
        ["sweep", *TOWERS, "--tasks", ruin, "--rank", "0.5", "--scale", "1"],
        ["compare", *TOWERS, "--tasks", ruin, "--methods", "average"],
        *([*merge, "--method", name, "--tasks", own, "--out", name] for name in ("fisher", "regmean", "consensus")),
        [*merge, "--adapt", ruin, "--steps", "2", "--out", "adapted"],
        [*tune, ruin, "--steps", "3", "--batch-size", "4", "--push-to", "user/tuned"],
        [*tune, good, "--task", ruin, "--steps", "4", "--batch-size", "16", "--out", "both"],
    ]
    rest = ["eval", "user/t1", "--tasks", f"{root}/rest.yaml", "--out", "rest"]
    *ended, one, sample = commands(hub, [*lines, rest, [*rest, "--limit", "1", "--out", "sample"]])
    for line, done in zip(lines, ended, strict=True):
        told = " ".join(done.stderr.split())
        assert done.returncode == 1 and "Traceback" not in told, (line, done.stdout, done.stderr)
        assert "image" in told and "of Ruin none could be decoded (the t" in told and "split of user/ruin)." in told, (
            told
        )
        assert "Of the first, row " in told and ": OSError: image file is truncated" in told, told
        assert not done.stdout.strip(), (line, done.stdout)
    assert {name: hub.commits(name) for name in TOWERS} == before
    assert not hub.exists("user/ruined") and not hub.exists("user/tuned")
    left = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".partial")}
    assert left == {"hf-home", "merged", "rest"}, left  # the merge itself is whole
    assert not (tmp_path / "merged" / "results.json").exists()
    # One image is something; and of a sample, what was drawn counts.
    assert one.returncode == 0 and "19 images of Rest cannot be decoded" in one.stderr, one.stderr
    told = " ".join(sample.stderr.split())
    assert sample.returncode == 1 and "Of 1 image of Rest none could be decoded" in told, told
    assert ": it is no image file of a known kind." in told
