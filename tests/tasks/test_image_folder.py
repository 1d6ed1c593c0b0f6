"""Folders of images as tasks: what counts as one, what is read, what is said of the others."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from clips import image

from hfcart.errors import HfcartError, SourceError, UsageError
from hfcart.progress import Progress
from hfcart.records import FolderRecord
from hfcart.tasks.copies import copies
from hfcart.tasks.data import Split, open_split
from hfcart.tasks.drafts import draft_folder
from hfcart.tasks.task_cards import TaskCard, read_card, read_tasks


class Heard(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)

    def note(self, text: str) -> None:
        self.said.append(text)


def fill(folder: Path, *files: str) -> Path:
    """A folder with images, each another one."""
    for i, name in enumerate(files):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image(i % 6, len(name) * 100 + i).save(path, "PNG")
    return folder


SPLITS = tuple(
    f"{split}/{name}/{i}.png" for split in ("train", "test") for name in ("hot_dog", "cat") for i in range(3)
)


def card_of(folder: Path) -> TaskCard:
    (card,) = read_tasks([f"{folder}/"])
    return card


def opened(card: TaskCard, part: Any = "test", heard: Progress | None = None) -> Split:
    return open_split(card, part, progress=heard or Progress())


def seen(split: Split) -> dict[str, int]:
    return {split.where(e.index): e.label for e in split.examples()}


def test_a_folder_with_splits_is_a_task(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", *SPLITS)
    (photos / "test" / "cat" / "0.png").rename(photos / "test" / "cat" / "0.PNG")
    for junk in (".DS_Store", ".git/x.png", "test/cat/._0.png", "test/cat/notes.txt"):
        (photos / junk).parent.mkdir(exist_ok=True)
        (photos / junk).write_bytes(b"x")
    card, heard = card_of(photos), Heard()
    assert (card.id, card.classnames, card.dataset.labels) == ("photos", ("cat", "hot dog"), ("cat", "hot_dog"))
    assert card.templates == ("a photo of a {}.",)
    split = opened(card, heard=heard)
    names = ["cat/0.PNG", "cat/1.png", "cat/2.png", "hot_dog/0.png", "hot_dog/1.png", "hot_dog/2.png"]
    assert seen(split) == {f"photos/test/{name}": int("dog" in name) for name in names}
    assert "an underscore read as a space (cat, hot dog)" in heard.said[0] and "hfcart tasks new" in heard.said[0]
    train, validation = opened(card, "train"), opened(card, "validation")
    assert (len(train), len(validation)) == (5, 1) and all("/train/" in name for name in {**seen(train)})
    assert {p.name for p in photos.iterdir()} == {".DS_Store", ".git", "test", "train"}  # nothing is written there


def test_the_digest_is_of_names_and_bytes_and_of_nothing_else(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", *SPLITS)
    lines = [f"{hashlib.sha256((photos / n).read_bytes()).hexdigest()}  {n}\n" for n in sorted(SPLITS)]
    record = opened(card_of(photos)).dataset
    assert record == FolderRecord("photos", "test", hashlib.sha256("".join(lines).encode()).hexdigest())
    (photos / "test" / ".hidden").write_bytes(b"x")
    os.utime(photos / SPLITS[0], (1, 1))
    assert opened(card_of(photos)).dataset == record
    before = (photos / SPLITS[0]).stat()
    data = (photos / SPLITS[0]).read_bytes()
    (photos / SPLITS[0]).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(photos / SPLITS[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert opened(card_of(photos)).dataset != record  # same length, same time, other bytes
    (photos / SPLITS[0]).write_bytes(data)
    (photos / SPLITS[0]).rename(photos / "train" / "hot_dog" / "other.png")
    assert opened(card_of(photos)).dataset != record


def test_an_image_that_changes_in_between_is_told_by_its_name(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", *SPLITS)
    split = opened(card_of(photos))
    (photos / "test" / "cat" / "1.png").write_bytes(b"another")
    with pytest.raises(SourceError, match=r"photos/test/cat/1.png was changed while it was used"):
        list(split.examples())


def test_links_are_not_followed_out_of_the_folder(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", *SPLITS)
    fill(tmp_path / "secret", "cat/own.png")
    (photos / "test" / "cat" / "out.png").symlink_to(tmp_path / "secret" / "cat" / "own.png")
    (photos / "test" / "dogs").symlink_to(tmp_path / "secret" / "cat")
    (photos / "test" / "cat" / "nowhere.png").symlink_to(tmp_path / "nowhere.png")
    (photos / "test" / "cat" / "in.png").symlink_to("1.png")
    heard = Heard()
    assert set(seen(opened(card_of(photos), heard=heard))) == {
        *(f"photos/test/{name}/{i}.png" for name in ("hot_dog", "cat") for i in range(3)),
        "photos/test/cat/in.png",
    }
    assert any("3 links in photos to folders or out of it: not followed" in text for text in heard.said)
    shutil.rmtree(photos / "test")
    shutil.rmtree(photos / "train")
    (photos / "cats").symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match="holds no images. 1 link to elsewhere is not followed"):
        card_of(photos)


def write_metadata(folder: Path, form: str, columns: dict[str, list[Any]]) -> None:
    if form == "csv":
        rows = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        (folder / "metadata.csv").write_text("\n".join(rows))
    elif form == "jsonl":
        rows = [json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        (folder / "metadata.jsonl").write_text("\n".join(rows))
    else:
        pq.write_table(pa.table(columns), folder / "metadata.parquet")


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_metadata_names_images_and_labels_as_datasets_reads_it(tmp_path: Path, form: str) -> None:
    import datasets

    photos = fill(tmp_path / "photos", "a/deep/1.png", "2.PNG", "b/3.png", "b/extra.png")
    columns = {"file_name": ["b/3.png", "a/deep/1.png", "2.PNG"], "who": ["x", "y", "z"], "label": ["NA", "dog", "NA"]}
    write_metadata(photos, form, columns)
    heard = Heard()
    card = card_of(photos)
    assert card.classnames == ("NA", "dog")
    split = opened(card, heard=heard)
    assert seen(split) == {"photos/b/3.png": 0, "photos/a/deep/1.png": 1, "photos/2.PNG": 0}
    assert any("1 image of photos not in its metadata, left out: b/extra.png" in text for text in heard.said)
    files = {"train": [str(photos / f"metadata.{form}")]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the file open
        theirs = datasets.load_dataset("imagefolder", data_files=files, streaming=True)["train"].decode(False)
        paths = [str(Path(row["image"]["path"]).relative_to(photos)) for row in theirs]
        del theirs
        gc.collect()
    assert [f"photos/{path}" for path in paths] == list(seen(split))


def test_metadata_with_numbers_needs_a_card(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", "test/1.png", "test/2.png", "test/3.png")
    write_metadata(photos / "test", "csv", {"file_name": ["1.png", "2.png", "3.png"], "y": [1, 0, -1]})
    with pytest.raises(SourceError, match="in the column 'y' are numbers, and nothing names the classes") as told:
        card_of(photos)
    assert "hfcart tasks new" in (told.value.hint or "")
    name, text = draft_folder(photos, tmp_path / "card.yaml")
    assert name == "photos" and "label_column: y" in text and "classnames: []" in text
    (tmp_path / "card.yaml").write_text(text.replace("classnames: []", "classnames: [cat, dog]"))
    with pytest.raises(SourceError, match=r"^photos/test/3.png has label -1") as told:
        opened(read_card(tmp_path / "card.yaml"))
    assert "secret" in (told.value.hint or "")
    write_metadata(photos / "test", "csv", {"file_name": ["1.png", "2.png", "3.png"], "y": [1, 0, 1]})
    assert list(seen(opened(read_card(tmp_path / "card.yaml"))).values()) == [1, 0, 1]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"file_name": ["../x.png", "1.png"], "label": ["a", "b"]}, "names '../x.png', which leads out of it"),
        ({"file_name": ["/etc/passwd", "1.png"], "label": ["a", "b"]}, "names '/etc/passwd', which leads out of it"),
        ({"file_name": ["no.png", "1.png"], "label": ["a", "b"]}, "names 'no.png', which is none of its files"),
        (
            {"file_name": ["1.png", "1.png"], "label": ["a", "b"]},
            "says that 1.png is 'b', and elsewhere that it is 'a'",
        ),
        ({"file": ["1.png", "2.png"], "label": ["a", "b"]}, "has no column 'file_name': its columns are file, label"),
        ({"file_name": ["1.png", "2.png"], "text": [0.5, 1.5]}, "has no column of labels"),
        ({"file_name": ["1.png", "2.png"], "label": ["a", "a"]}, "has one label, 'a'"),
        ({"file_name": [], "label": []}, "cannot be read: CSV parse error: Empty CSV file"),
    ],
)
def test_wrong_metadata(tmp_path: Path, columns: dict[str, list[Any]], said: str) -> None:
    photos = fill(tmp_path / "photos", "1.png", "2.png")
    write_metadata(photos, "csv", columns)
    with pytest.raises(SourceError) as told:
        card_of(photos)
    assert said in told.value.message
    assert "no folder of a class" not in said or "metadata.csv" in str(told.value.hint)


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", "1.png", "2.png")
    (photos / "metadata.csv").write_text("file_name,label,label\n1.png,a,b\n2.png,b,a\n")
    with pytest.raises(SourceError, match="metadata.csv has several columns 'label'"):
        card_of(photos)


def test_yaml_of_other_tools_beside_images_is_no_card(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", *SPLITS)
    (photos / "data.yaml").write_text("train: ../train/images\nnc: 2\nnames: [cat, dog]\n")
    assert card_of(photos).classnames == ("cat", "hot dog")
    (photos / "data.yaml").rename(tmp_path / "other.yaml")
    (photos / "mine.yaml").write_text("id: mine\ndataset:\n  repo: user/mine\n")
    with pytest.raises(UsageError, match=r"The task card .*mine\.yaml"):  # which one of ours may be
        card_of(photos)


@pytest.mark.parametrize("typed", ["..", "../..", "."])
def test_a_folder_above_has_its_own_name(tmp_path: Path, typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = fill(tmp_path / "photos", *SPLITS)
    monkeypatch.chdir(photos / {"..": "test", "../..": "test/cat", ".": ""}[typed])
    (card,) = read_tasks([typed])
    assert (card.id, card.dataset.folder) == ("photos", "photos")
    record = opened(card).dataset
    assert isinstance(record, FolderRecord) and record.folder == "photos"


@pytest.mark.parametrize("typed", ["a" * 300, "./" + "a" * 300])
def test_a_name_that_no_path_can_have_is_a_sentence(typed: str) -> None:
    with pytest.raises(UsageError):
        read_tasks([typed])


def links_alone(folder: Path) -> Path:
    folder.mkdir()
    return folder


MAKERS: list[tuple[str, Callable[[Path], Path], str]] = [
    ("empty", links_alone, "holds no images"),
    ("one class", lambda p: fill(p, "cat/1.png"), "has one class, 'cat': expected at least 2"),
    ("flat", lambda p: fill(p, "1.png", "2.png"), "photos/1.png is in no folder of a class"),
    ("deep", lambda p: fill(p, "a/cat/1.png", "b/cat/1.png"), "'cat' is there as a/cat and b/cat"),
    ("uneven", lambda p: fill(p, "cat/1.png", "cat/in/2.png", "dog/3.png"), "lie at different depths"),
    ("mixed", lambda p: fill(p, "train/cat/1.png", "cat/2.png"), "beside other images (cat)"),
    ("twice", lambda p: fill(p, "a_b/1.png", "a b/1.png"), "'a b' is there twice"),
]


@pytest.mark.parametrize(("make", "said"), [m[1:] for m in MAKERS], ids=[m[0] for m in MAKERS])
def test_folders_that_are_no_task(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    folder = make(tmp_path / "photos")
    with pytest.raises(HfcartError) as told:
        card_of(folder)
    assert said in told.value.message


def test_nested_folders_with_one_meaning_are_classes(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", "pets/cat/1.png", "pets/dog/1.png", "wild/fox/1.png")
    assert card_of(photos).classnames == ("cat", "dog", "fox")


def test_one_split_is_for_testing_alone(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", "cat/test-1.png", "cat/2.png", "dog/train.png")  # names of files mean nothing
    card = card_of(photos)
    assert (card.dataset.test_split, card.dataset.train_split) == ("all", None)
    assert len(opened(card)) == 3
    for part in ("train", "validation"):
        with pytest.raises(
            UsageError, match="it has no train split: to learn from the images that are tested on"
        ) as refused:
            opened(card, part)
        assert "photos/train/CLASS/x.jpg and photos/test/CLASS/y.jpg. To measure on all" in str(refused.value.hint)
    only = fill(tmp_path / "only", "train/cat/1.png", "train/dog/2.png")
    assert (card_of(only).dataset.test_split, card_of(only).dataset.train_split) == ("train", None)
    with pytest.raises(UsageError, match="it has no train split beside train, which is tested on: to learn"):
        opened(card_of(only), "train")
    val = fill(tmp_path / "val", *(name.replace("test/", "val/") for name in SPLITS))
    assert (card_of(val).dataset.test_split, card_of(val).dataset.train_split) == ("val", "train")


def test_the_same_images_in_train_and_test(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", *SPLITS)
    shutil.copy(photos / "train" / "cat" / "0.png", photos / "test" / "cat" / "copy.png")
    heard = Heard()
    opened(card_of(photos), heard=heard)
    assert any("1 image of the test split of photos is in train, too" in text for text in heard.said)
    shutil.rmtree(photos / "test")
    shutil.copytree(photos / "train", photos / "test")
    for part in ("test", "train"):
        with pytest.raises(SourceError, match="nothing is held out"):
            opened(card_of(photos), part)


def test_a_draft_can_be_edited(tmp_path: Path) -> None:
    photos = fill(tmp_path / "data" / "photos", *SPLITS)
    out = tmp_path / "cards" / "mine.yaml"
    out.parent.mkdir()
    _, text = draft_folder(photos, out)
    out.write_text(text)
    card = read_card(out)
    assert card.sha256 == card_of(photos).sha256 and card.dataset.folder == "photos"
    assert "../data/photos" in text and str(tmp_path) not in text
    out.write_text(text.replace("- hot dog", "- a sausage"))
    card = read_card(out)
    assert card.classnames == ("cat", "a sausage") and seen(opened(card))["photos/test/hot_dog/1.png"] == 1
    fill(photos, "test/hot_dgo/9.png")
    with pytest.raises(SourceError) as told:
        opened(card)
    assert "photos/test/hot_dgo/9.png has the label 'hot_dgo', which is none of the task photos" in told.value.message
    assert "Did you mean hot_dog?" in told.value.message
    shutil.rmtree(photos / "test" / "hot_dgo")
    shutil.rmtree(photos / "test" / "cat")
    heard = Heard()
    opened(card, heard=heard)
    assert any("has no image of 'cat'" in text for text in heard.said)


def test_a_copy_names_no_path_and_wants_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = fill(tmp_path / "photos", *SPLITS)
    card = card_of(photos)
    split = opened(card)
    ((name, copy),) = copies([(card, split.dataset)]).items()
    assert name == "tasks/photos.yaml" and str(tmp_path).encode() not in copy
    assert yaml.safe_load(copy)["dataset"]["sha256"] == split.dataset.sha256  # type: ignore[union-attr]
    elsewhere = tmp_path / "else" / "where"
    (elsewhere / "tasks").mkdir(parents=True)
    (elsewhere / name).write_bytes(copy)
    monkeypatch.chdir(elsewhere)
    again = read_card(elsewhere / name)
    assert again.sha256 == card.sha256
    with pytest.raises(SourceError, match="are in a folder photos .sha256") as told:
        opened(again)
    assert "Run the same command where photos is" in (told.value.hint or "")
    shutil.copytree(photos, elsewhere / "photos")  # another folder of the same content, where the command runs
    assert opened(read_card(elsewhere / name)).dataset == split.dataset
    fill(elsewhere / "photos", "test/cat/more.png")
    with pytest.raises(SourceError, match="holds other images than the task photos is about"):
        opened(read_card(elsewhere / name))
    assert not copies([(read_tasks(["mnist"])[0], split.dataset)])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("folder: x", "folder: x, repo: user/x", "found both"),
        ("folder: x, ", "", "found neither"),
        ("folder: x", "folder: x, revision: v1", "revision is for a dataset on the Hub"),
        ("folder: x", "repo: user/x, sha256: " + "a" * 64, "sha256 is for a folder"),
        ("labels: [a, b]", "labels: [a, b, c]", "expected a label for each class name, found 3 for 2"),
        ("labels: [a, b]", "labels: [a, a]", "'a' is there twice"),
        ("folder: x", "folder: /", "expected the path of a folder"),
    ],
)
def test_cards_of_folders_that_are_wrong(tmp_path: Path, old: str, new: str, said: str) -> None:
    good = "id: t\ntitle: T\ndataset: {folder: x, labels: [a, b]}\ntemplates: ['{}']\nclassnames: [A, B]\n"
    path = tmp_path / "t.yaml"
    path.write_text(good)
    assert read_card(path).dataset.folder == "x"
    path.write_text(good.replace(old, new))
    with pytest.raises(UsageError) as told:
        read_card(path)
    assert said in told.value.message
