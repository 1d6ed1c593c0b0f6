"""Folders of images in every command that takes tasks: what is measured, learned, copied, published and repeated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from clips import image
from running import Commands, Run, contents
from three_towers import COLOURS, TOWERS

from hfcart.progress import Progress
from hfcart.sources.own_tasks import known, match, own_task
from hfcart.sources.places import pin
from hfcart.tasks.task_cards import read_card, read_tasks

pytestmark = pytest.mark.usefixtures("own_cache")


def write_photos(folder: Path, seed: int = 0) -> Path:
    for part, count in (("train", 12), ("test", 6)):
        for label, name in enumerate(COLOURS):
            (folder / part / f"{name}_one").mkdir(parents=True)
            for i in range(count):
                picture = image(label, 1000 * seed + 100 * label + i + (50 if part == "test" else 0))
                picture.save(folder / part / f"{name}_one" / f"{i}.PNG", "PNG")
    return folder


def no_path_in(folder: Path, *paths: Path) -> None:
    for name, data in contents(folder).items():
        assert not [path for path in paths if str(path).encode() in data], name


def test_measured_published_and_measured_again(zoo, hfcart: Run, tmp_path: Path) -> None:
    hub, _ = zoo
    photos = write_photos(tmp_path / "data" / "photos")
    (photos / "test" / "red_one" / "9.png").write_bytes(b"no image")
    before = contents(photos)
    merged = hfcart("merge", *TOWERS, "--push-to", "user/mine", "--eval", photos, hub=hub)
    assert merged.returncode == 0, merged.stderr
    told = " ".join(merged.stderr.split())
    assert "an underscore read as a space" in told
    assert "1 image of photos cannot be decoded: left out (photos/test/red_one/9.png)." in told
    assert contents(photos) == before
    no_path_in(tmp_path / "mine", tmp_path)
    there = hub.files("user/mine")
    card = yaml.safe_load(there["tasks/photos.yaml"])
    (result,) = json.loads(there["results.json"])["results"]
    assert result["dataset"] == {"folder": "photos", "split": "test", "sha256": card["dataset"]["sha256"]}
    assert f"folder `photos` with sha256 `{card['dataset']['sha256'][:12]}`" in there["README.md"].decode()
    assert "model-index" not in there["README.md"].decode()  # nobody else has these images
    # Anybody with the same images repeats the numbers, by the card that is published.
    other = tmp_path / "other"
    (other / "tasks").mkdir(parents=True)
    shutil.copytree(photos, other / "photos")
    (other / "tasks" / "photos.yaml").write_bytes(there["tasks/photos.yaml"])
    lines = ["eval", "user/mine", "--tasks", "tasks/photos.yaml", "--push", "--json"]
    again = hfcart(*lines, hub=hub, cwd=other)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["results"] == [result]
    assert hub.files("user/mine")["tasks/photos.yaml"] == there["tasks/photos.yaml"]
    (other / "photos" / "test" / "red_one" / "9.png").unlink()
    refused = hfcart(*lines, hub=hub, cwd=other)
    assert refused.returncode == 1 and "holds other images than the task photos is about" in refused.stderr


def test_a_merge_that_looks_at_photos_is_repeated_where_they_are(zoo, hfcart: Run, tmp_path: Path) -> None:
    hub, root = zoo
    photos = [write_photos(tmp_path / "data" / f"photos{i}", i) for i in (1, 2, 3)]
    own = ",".join(f"{tower}={folder}" for tower, folder in zip(TOWERS, photos, strict=True))
    line = ["merge", *TOWERS, "--method", "regmean", "--tasks", own, "--examples", "20", "--out", "merged"]
    done = hfcart(*line, "--push-to", "user/regmean", hub=hub)
    assert done.returncode == 0, done.stderr
    no_path_in(tmp_path / "merged", tmp_path)
    record = json.loads((tmp_path / "merged" / "hfcart.json").read_text())
    assert len({data["dataset"]["sha256"] for data in record["data"]}) == 3  # alike as cards, and other images
    for data, task in zip(record["data"], record["recipe"]["tasks"], strict=True):
        copied = read_card(tmp_path / "merged" / "tasks" / f"{data['task']}.yaml")
        assert copied.sha256 == data["card_sha256"] and copied.dataset.sha256 == data["dataset"]["sha256"]
        assert task["card"]["dataset"]["sha256"] == data["dataset"]["sha256"]
    assert {f"tasks/photos{i}.yaml" for i in (1, 2, 3)} <= hub.files("user/regmean").keys()
    away = hfcart("verify", "user/regmean", hub=hub)
    assert away.returncode == 1 and "are in a folder photos" in away.stderr, away.stderr
    assert "Run the same command where photos" in " ".join(away.stderr.split())
    here = hfcart("verify", "user/regmean", hub=hub, cwd=tmp_path / "data")
    assert here.returncode == 0 and "Identical" in here.stdout + here.stderr, here.stderr


def test_sweep_and_compare_copy_the_cards(zoo, commands: Commands, tmp_path: Path) -> None:
    hub, root = zoo
    photos, tasks = write_photos(tmp_path / "photos"), f"photos,{root}/images1.yaml"
    sweep = ["sweep", *TOWERS, "--rank", "0.5", "--scale", "1", "--tasks"]
    compare = ["compare", *TOWERS, "--tasks", tasks, "--methods", "average,cart++", "--out", "compared"]
    lines = [[*sweep, tasks, "--out", "swept"], compare, [*sweep, str(photos / "test")]]
    swept, compared, single = commands(hub, lines, apart=False)
    assert swept.returncode == 0, swept.stderr
    assert compared.returncode == 0 and "failed" not in compared.stderr, compared.stderr
    for name in ("swept", "compared"):
        no_path_in(tmp_path / name, tmp_path)
        assert {path.name for path in (tmp_path / name / "tasks").iterdir()} == {"photos.yaml", "images1.yaml"}
    assert single.returncode == 2 and "has no train split" in single.stderr, single.stderr


def test_fine_tuned_on_photos(zoo, hfcart: Run, tmp_path: Path) -> None:
    hub, _ = zoo
    write_photos(tmp_path / "photos")
    line = ["finetune", "user/clip", "--task", "photos", "--steps", "4", "--batch-size", "8", "--push-to", "user/own"]
    done = hfcart(*line, hub=hub)
    assert done.returncode == 0, done.stderr
    record, there = json.loads((tmp_path / "own" / "hfcart.json").read_text()), hub.files("user/own")
    assert record["tasks"][0]["dataset"]["split"] == "train" and record["tasks"][0]["images"] == 44
    assert yaml.safe_load(there["tasks/photos.yaml"])["dataset"]["folder"] == "photos"
    assert "a folder `photos` with sha256" in there["README.md"].decode()
    assert "tasks/photos.yaml" in there["README.md"].decode()
    no_path_in(tmp_path / "own", tmp_path)
    # It is known as this task's own, for its record names the task; not if the card is of other files, or other words.
    tower, (task,) = pin(str(tmp_path / "own"), Progress()), read_tasks([str(tmp_path / "photos")])
    assert match([tower], ["own"], [str(tmp_path / "photos"), "mnist"]) == (task,)
    sha256 = record["tasks"][0]["dataset"]["sha256"]
    for other, fits in (
        (task.pinned(sha256), True),
        (task.pinned(sha256[::-1]), False),
        (task.model_copy(update={"templates": ("{}",)}), False),
        (task.model_copy(update={"id": "others"}), False),
    ):
        assert (own_task(known(tower, [other]), [other]) == other) is fits
    # And so beside a merge of it.
    merged = hfcart("merge", "user/own", "user/t1", "--method", "average", "--out", "both", hub=hub)
    assert merged.returncode == 0, merged.stderr
    beside = hfcart("eval", "both", "--tasks", "photos", "--references", "measured", "--json", hub=hub)
    assert beside.returncode == 0 and "None of the towers merged" not in beside.stderr, beside.stderr
    (measured,) = json.loads(beside.stdout)["results"]
    assert measured["individual"]["tower"].startswith("user/own")
    space = hfcart("space", "user/own", "--tasks", "photos", hub=hub)
    assert space.returncode == 0, space.stderr
