"""Datasets through the unmodified client, against the embedded Hub; images of every kind; which rows make a part."""

from __future__ import annotations

import hashlib
import io
import json
import random
import subprocess
import sys
import tarfile
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from running import LIMIT, ended

from hfcart.clip.images import MAX_PIXELS, UndecodableImage, decode
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.errors import SourceError
from hfcart.progress import Progress
from hfcart.tasks.data import part_rows
from hfcart.tasks.data._checks import compare_names
from hfcart.tasks.task_cards import TaskCard, read_card

NAMES = ["a", "b", "c"]
PREAMBLE = """
import hashlib, json, pickle, sys
from hfcart import errors, hub
from hfcart.tasks.data import open_split
from hfcart.tasks.drafts import draft_card
from hfcart.progress import Progress
from hfcart.tasks.task_cards import DatasetRef, TaskCard

out = {}
hub.set_notifier(lambda text: None)

class Heard(Progress):
    def __init__(self): self.warned, self.noted = [], []
    def warn(self, text): self.warned.append(text)
    def note(self, text): self.noted.append(text)

def card(repo, **fields):
    where = {"repo": repo} | {name: fields.pop(name) for name in list(fields) if name in DatasetRef.model_fields}
    rest = {"id": "t", "title": "T", "templates": ["a {}"], "classnames": ["a", "b", "c"]} | fields
    return TaskCard(dataset=where, **rest)

def seen(examples):
    return [[e.index, hashlib.sha256(e.image).hexdigest(), e.label] for e in examples]

def refused(name, do):
    try:
        out[name] = ["nothing", str(do()), ""]
    except errors.HfcartError as error:
        out[name] = [type(error).__name__, error.message, error.hint or ""]
"""


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels))


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def parquet(
    images: list[Any], labels: list[Any], kind: pa.DataType | None = None, names: list[str] | None = NAMES
) -> bytes:
    cells = [i if i is None or isinstance(i, dict) else {"bytes": i, "path": None} for i in images]
    table = pa.table(
        {
            "image": pa.array(cells, type=pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "label": pa.array(labels, type=kind or pa.int64()),
            "other": pa.array(["x"] * len(labels)),
        }
    )
    if kind is None and names:
        features = {"label": {"names": names, "_type": "ClassLabel"}, "other": {"dtype": "string", "_type": "Value"}}
        features = {"image": {"_type": "Image"}} | features
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=7)
    return buffer.getvalue()


def rows(count: int, start: int = 0) -> list[list[Any]]:
    return [[png(i) for i in range(start, start + count)], [i % 3 for i in range(start, start + count)]]


def wanted(count: int, start: int = 0) -> list[list[Any]]:
    return [
        [i - start, hashlib.sha256(image).hexdigest(), label]
        for i, image, label in zip(range(start, start + count), *rows(count, start), strict=True)
    ]


@dataclass
class Bench:
    hub: EmbeddedHub
    env: dict[str, str]

    def dataset(self, name: str, files: dict[str, bytes], **kind: Any) -> str:
        self.hub.create(name, "dataset", **kind)
        return self.hub.commit(name, files, repo_type="dataset")

    def run(self, script: str) -> dict[str, Any]:
        done = ended(
            [sys.executable, "-W", "error", "-c", f"{PREAMBLE}\n{script}\njson.dump(out, sys.stdout)"],
            warm=True, env=self.env,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr == "", "the client's own bars and warnings do not show"
        return json.loads(done.stdout)

    def files_read(self, repo: str) -> set[str]:
        paths = [request.path for request in self.hub.requests if f"/datasets/{repo}/resolve/" in request.path]
        return {path.split("?")[0].split("/", 6)[-1] for path in paths if path.endswith((".parquet", ".tar", ".png"))}


@pytest.fixture
def bench(hub: EmbeddedHub, clean_env: dict[str, str], tmp_path: Path) -> Bench:
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_user_secret", "HF_HOME": str(tmp_path / "hf-home")}
    return Bench(hub, clean_env | settings)


def tar_of(count: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for i, (image, label) in enumerate(zip(*rows(count), strict=True)):
            for end, content in (("jpg", image), ("cls", str(label).encode())):
                entry = tarfile.TarInfo(f"s{i:04d}.{end}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def test_streaming_and_cached_give_the_same_examples_of_the_same_rows(bench: Bench) -> None:
    splits = {"data/test-00000-of-00001.parquet": parquet(*rows(23))}
    splits |= {f"data/train-0000{i}-of-00002.parquet": parquet(*rows(20, 100 + 20 * i)) for i in range(2)}
    splits |= {"data/noisy-00000-of-00001.parquet": parquet(*rows(5))}
    commit = bench.dataset("user/shapes", splits)
    bench.dataset("user/wds", {f"{split}/0.tar": tar_of(9) for split in ("train", "test")})
    bench.dataset("user/folder", {f"test/{NAMES[i % 3]}/{i}.png": png(i) for i in range(6)})
    bench.dataset("user/bools", {"test.parquet": parquet([png(0), png(1)], [True, False], pa.bool_())})
    configs = "---\nconfigs:\n" + "".join(
        f"- config_name: {one}\n  data_files: [{{split: test, path: {one}/test*}}]\n" for one in ("small", "large")
    )
    bench.dataset("user/configs", {"README.md": f"{configs}---\n".encode(), "small/test.parquet": parquet(*rows(4)),
                                   "large/test.parquet": parquet(*rows(5))})  # fmt: skip
    out = bench.run("""
wds = {"image_column": "jpg", "label_column": "cls"}
for name, more in (("shapes", {}), ("wds", wds), ("folder", {}), ("bools", {"classnames": ["n", "y"]}),
                   ("configs", {"config": "small"})):
    for part in ("test", "validation", "train")[: 3 if name == "shapes" else 1]:
        for streaming in (True, False):
            heard = Heard()
            split = open_split(card(f"user/{name}", **more), part, streaming=streaming, progress=heard)
            split = pickle.loads(pickle.dumps(split))
            out[f"{name} {part} {streaming}"] = whole = seen(split.examples())
            assert len(split) == split.rows == len(whole) and split.limit is None
            assert split.dataset.split == ("test" if part == "test" else "train") and not heard.warned
            for shards, chunk in ((2, 4), (3, 1), (50, 32)):
                shared = [seen(split.examples(i, shards, chunk)) for i in range(shards)]
                assert sorted(sum(shared, [])) == whole
                assert all(e[0] // chunk % shards == i for i, part_ in enumerate(shared) for e in part_)
            if not streaming:
                assert [split[i].label for i in (len(whole) - 1, 0)] == [whole[-1][2], whole[0][2]]
for streaming in (True, False):
    for part in ("test", "train"):
        split = open_split(card("user/shapes"), part, streaming=streaming, limit=5, seed=3, progress=Progress())
        out[f"limited {part} {streaming}"] = [split.rows, len(split), seen(split.examples())]
        out["limit above"] = len(open_split(card("user/shapes"), "test", limit=99, progress=Progress()))
out["record"] = [split.dataset.repo, split.dataset.config, split.dataset.split, split.dataset.commit]
""")
    assert out["record"] == ["user/shapes", None, "train", commit]
    assert out["shapes test True"] == out["shapes test False"] == wanted(23)
    held_out = random.Random(0).sample(range(40), 4)
    train = wanted(40, 100)
    for streaming in (True, False):
        validation, rest = out[f"shapes validation {streaming}"], out[f"shapes train {streaming}"]
        assert [e[1:] for e in validation] == [train[i][1:] for i in sorted(held_out)]
        assert [e[1:] for e in rest] == [e[1:] for i, e in enumerate(train) if i not in held_out]
        assert [e[0] for e in rest] == list(range(36))
    for part, size in (("test", 23), ("train", 36)):
        kept = sorted(random.Random(3).sample(range(size), 5))
        whole = out[f"shapes {part} True"]
        sample = [[i, *whole[row][1:]] for i, row in enumerate(kept)]
        assert out[f"limited {part} True"] == out[f"limited {part} False"] == [size, 5, sample]
    assert out["limit above"] == 23
    assert out["wds test True"] == out["wds test False"] == wanted(9)
    assert out["configs test True"] == out["configs test False"] == wanted(4)
    assert sorted(e[1:] for e in out["folder test True"]) == sorted(e[1:] for e in wanted(6))
    assert out["folder test True"] == out["folder test False"]
    assert [e[2] for e in out["bools test True"]] == [1, 0] and out["bools test True"] == out["bools test False"]
    assert bench.files_read("user/shapes") == {path for path in splits if "noisy" not in path}
    assert bench.files_read("user/configs") == {"small/test.parquet"}


@pytest.mark.parametrize("streaming", [True, False])
def test_a_folder_of_the_dataset_s_name_is_not_taken_for_it(bench: Bench, streaming: bool) -> None:
    """`user/shapes` in the working folder: load_dataset would read that, and the commit recorded would be a lie."""
    bench.dataset("user/shapes", {"data/test-00000-of-00001.parquet": parquet(*rows(8))})
    out = bench.run(f"""
import os
from pathlib import Path
here = Path(os.environ["HF_HOME"], "cwd", "user/shapes/data")
here.mkdir(parents=True)
os.chdir(here.parents[2])
(here / "test-00000-of-00001.parquet").write_bytes(b"not the Hub's")
out["read"] = seen(open_split(card("user/shapes"), "test", streaming={streaming}, progress=Progress()).examples())
""")
    assert out["read"] == wanted(8)


@pytest.mark.parametrize("streaming", [True, False])
def test_only_the_named_split_is_read_of_a_pinned_commit(bench: Bench, streaming: bool) -> None:
    files = {
        f"data/{split}-00000-of-00001.parquet": parquet(*rows(8)) for split in ("train", "test", "gaussian", "fog")
    }
    first = bench.dataset("user/seen", files)
    bench.hub.tag("user/seen", "v1", first, repo_type="dataset")
    bench.hub.commit("user/seen", {path: parquet(*rows(6)) for path in files}, repo_type="dataset")
    bench.hub.clear()
    out = bench.run(f"""
split = open_split(card("user/seen", revision="v1"), "test", streaming={streaming}, progress=Progress())
out["read"] = seen(split.examples())
out["commit"] = split.dataset.commit
out["newer"] = len(open_split(card("user/seen"), "test", streaming={streaming}, progress=Progress()))
""")
    assert (out["commit"], out["read"], out["newer"]) == (first, wanted(8), 6)
    assert bench.files_read("user/seen") == {"data/test-00000-of-00001.parquet"}
    resolved = [r.path for r in bench.hub.requests if r.path.split("?")[0].endswith(("/revision/v1", "/user/seen"))]
    assert len(resolved) == 2, "each opening asks once what a name means"
    assert not [r for r in bench.hub.requests if "/resolve/v1/" in r.path or "/resolve/main/" in r.path]


def test_what_is_wrong_with_a_dataset_is_said(bench: Bench) -> None:
    good, images = parquet(*rows(4)), rows(4)[0]
    bench.dataset("user/good", {"test.parquet": good})
    bench.dataset("user/words", {"test.parquet": parquet(images, list("abca"), pa.string())})
    bench.dataset("user/strange", {"test.parquet": parquet(images, ["a", "b", "bb", "c"], pa.string())})
    bench.dataset("user/floats", {"test.parquet": parquet(images, [0.0, 1.0, 2.0, 1.5], pa.float64())})
    bench.dataset("user/nolabel", {"test.parquet": parquet(images, [0, None, 1, 2])})
    bench.dataset("user/secret", {"test.parquet": parquet(images, [-1] * 4)})
    bench.dataset("user/beyond", {"test.parquet": parquet(images, [0, 1, 2, 3], names=[*NAMES, "d"])})
    bench.dataset("user/empty", {"test.parquet": parquet([], [])})
    bench.dataset("user/single", {"train.parquet": parquet(*rows(1)), "test.parquet": good})
    bench.dataset("user/outside", {"test.parquet": parquet([{"bytes": None, "path": "/etc/hostname"}], [0])})
    bench.dataset("user/broken", {"test.parquet": good[:300]})
    bench.dataset("user/script", {"script.py": b"raise SystemExit"})
    bench.dataset("user/nothing", {"notes.bin": b"x"})
    bench.dataset("reader/private", {"test.parquet": good}, private=True)
    bench.dataset("reader/gated", {"test.parquet": good}, gated=True)
    bench.dataset("user/down", {"test.parquet": good})
    for name, count in (("more", 3), ("fewer", 5)):
        told = f"---\ndataset_info:\n  splits:\n  - name: test\n    num_examples: {count}\n---\n"
        bench.dataset(f"user/{name}", {"README.md": told.encode(), "test.parquet": good})
    out = bench.run("""
def read(name, part="test", streaming=True, heard=Progress(), **fields):
    limit = fields.pop("limit", None)
    split = open_split(card(name, **fields), part, streaming=streaming, limit=limit, progress=heard)
    return len(list(split.examples()))

for s in (True, False):
    heard = Heard()
    refused(f"columns {s}", lambda: read("user/good", streaming=s, label_column="labels"))
    refused(f"swapped {s}", lambda: read("user/good", streaming=s, image_column="label", label_column="image"))
    refused(f"split {s}", lambda: read("user/good", streaming=s, test_split="val"))
    refused(f"train {s}", lambda: read("user/good", "train", streaming=s))
    texts = open_split(card("user/words"), "test", streaming=s, progress=Progress())
    out[f"words {s}"] = [e.label for e in texts.examples()]
    refused(f"mixed {s}", lambda: read("user/good", streaming=s, labels=["x", "y", "z"]))
    refused(f"beyond {s}", lambda: read("user/beyond", streaming=s, heard=heard))
    out[f"beyond warned {s}"] = heard.warned
    for name in ("strange", "floats", "nolabel", "secret", "empty", "outside", "broken"):
        refused(f"{name} {s}", lambda: read(f"user/{name}", streaming=s))
    refused(f"single {s}", lambda: read("user/single", "train", streaming=s))
    refused(f"more {s}", lambda: read("user/more", streaming=s))
    refused(f"fewer {s}", lambda: read("user/fewer", streaming=s))
refused("gated", lambda: read("reader/gated"))
refused("private", lambda: read("reader/private"))
refused("missing", lambda: read("user/none"))
refused("revision", lambda: read("user/good", revision="v9"))
refused("config", lambda: read("user/good", config="b"))
refused("script", lambda: read("user/script"))
refused("nothing", lambda: read("user/nothing"))
refused("no train", lambda: read("user/good", "validation", train_split=None))
refused("limit", lambda: read("user/good", limit=0))
""")
    for streaming in (True, False):

        def said(name: str, s: bool = streaming) -> str:
            kind, message, hint = out[f"{name} {s}"]
            assert kind == "SourceError", (name, kind, message)
            return f"{message} -> {hint}"

        assert "The test split of user/good has no label column 'labels': its columns are image, label" in said(
            "columns"
        )
        assert "label_column" in said("columns") and "hfcart tasks show t" in said("columns")
        assert "'label' of the test split of user/good: expected images, found ClassLabel" in said("swapped")
        assert "has no split 'val': it has test" in said("split") and "no split 'train'" in said("train")
        assert "Row 3 of the test split of user/beyond has label 3" in said("beyond") and "expected 0 to 2" in said(
            "beyond"
        )
        assert out[f"beyond warned {streaming}"] == [
            "The test split of user/beyond has 4 classes, the task t has 3 class names. Only there: 'd'."
        ]
        assert out[f"words {streaming}"] == [0, 1, 2, 0]
        assert "Row 2 of the test split of user/strange has the label 'bb', which is none of the task t" in said(
            "strange"
        )
        assert "holds numbers" in said("mixed") and "Leave `labels` out" in said("mixed")
        assert "expected whole numbers, booleans or texts, found float64" in said("floats")
        assert "Row 1 of the test split of user/nolabel has no label" in said("nolabel")
        assert "has label -1" in said("secret") and "keep the labels of some splits secret" in said("secret")
        assert "The test split of user/empty is empty: it has 0 rows" in said("empty")
        assert "has 1 row: nothing is there for the train part" in said("single")
        assert "row 0 of the test split of user/outside is the name of a file outside the dataset" in said("outside")
        assert "user/broken failed: its files are not what they should be" in said("broken")
    for name, found in (("more", "more"), ("fewer", "fewer")):
        assert f"rows; it has {found}." in out[f"{name} True"][1] and "--no-streaming" in out[f"{name} True"][2]
        assert out[f"{name} False"][:2] == ["nothing", "4"]
    kinds = {name: out[name][0] for name in ("gated", "private", "missing", "revision", "no train", "limit")}
    assert kinds == {
        "gated": "AccessError",
        "private": "RepoNotFoundError",
        "missing": "RepoNotFoundError",
        "revision": "RevisionNotFoundError",
        "no train": "UsageError",
        "limit": "UsageError",
    }
    assert "reader/gated is gated" in out["gated"][1] and "/datasets/reader/gated" in out["gated"][2]
    assert "there is no dataset user/none" in out["missing"][1]
    assert "has no config 'b': expected one of default" in out["config"][1]
    assert "made by a script, which is not run" in out["script"][1]
    assert out["nothing"][0] == "SourceError" and "user/nothing" in out["nothing"][1]
    assert not [
        text for kind, *texts in out.values() if isinstance(texts, list) for text in texts if "hf_user" in str(text)
    ]


def test_failures_of_the_hub_are_the_hub_s(bench: Bench) -> None:
    bench.dataset("user/down", {"test.parquet": parquet(*rows(4))})
    bench.dataset("user/shut", {"test.parquet": parquet(*rows(4))})
    bench.dataset("user/shaky", {"test.parquet": parquet(*rows(4))})
    bench.hub.fail(r"GET /datasets/user/down/resolve/.*parquet", status=500, times=None)
    bench.hub.fail(r"GET /datasets/user/shut/resolve/.*parquet", status=403, times=None)
    bench.hub.fail(r"GET /api/datasets/user/shaky", status=503, times=2)
    bench.hub.fail(r"GET /datasets/user/shaky/resolve/.*parquet", status=500, times=1)
    out = bench.run("""
refused("down", lambda: open_split(card("user/down"), "test", streaming=False, progress=Progress()))
refused("shut", lambda: open_split(card("user/shut"), "test", progress=Progress()))
refused("shaky", lambda: len(open_split(card("user/shaky"), "test", streaming=False, progress=Progress())))
""")
    assert out["down"][0] == "HubError" and "the Hub answered 500" in out["down"][1] and "(4 tries)" in out["down"][1]
    assert out["shut"][0] == "AccessError" and "test split of user/shut" in out["shut"][1]
    assert out["shaky"][:2] == ["nothing", "4"]


def test_drafts_of_task_cards(bench: Bench, tmp_path: Path) -> None:
    names = ["T-shirt: top", "- no", "yes", "# d", 'say "e"']
    readme = b"---\npretty_name: 'My: Shapes'\nlicense: mit\n---\n# My Shapes\n"
    files = {"README.md": readme, "valid.parquet": parquet(*rows(4), names=names), "fog.parquet": parquet(*rows(4))}
    commit = bench.dataset("user/My.Shapes", {**files, "train.parquet": parquet(*rows(4), names=names)})
    bench.dataset("user/wds", {"test/0.tar": tar_of(3)})
    bench.dataset("user/words", {"test.parquet": parquet(rows(3)[0], list("abc"), pa.string())})
    bench.dataset("user/texts", {"test.csv": b"a,b\n1,x\n"})
    out = bench.run("""
out["shapes"] = draft_card("user/My.Shapes")
out["wds"] = draft_card("user/wds@main")
out["words"] = draft_card("user/words")
refused("texts", lambda: draft_card("user/texts"))
""")
    name, text = out["shapes"]
    path = tmp_path / "draft.yaml"
    path.write_text(text)
    card = read_card(path)
    assert (card.id, name, card.title, card.license, commit in text) == (
        "my-shapes",
        "my-shapes",
        "My: Shapes",
        "mit",
        True,
    )
    assert card.classnames == tuple(names) and card.templates == ("a photo of a {}.",)
    assert (card.dataset.test_split, card.dataset.train_split) == ("validation", "train")
    assert text.count("# check") >= 3
    assert (
        "classnames: []" in out["wds"][1]
        and "image_column: jpg" in out["wds"][1]
        and "label_column: cls" in out["wds"][1]
    )
    assert "revision: main" in out["wds"][1] and "train_split: null" in out["wds"][1]
    assert "label_column: label" in out["words"][1] and "One a label, as the column has it." in out["words"][1]
    assert out["texts"][0] == "SourceError" and "no column of images" in out["texts"][1]


class Heard(Progress):
    def __init__(self) -> None:
        self.warned: list[str] = []
        self.noted: list[str] = []

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def note(self, text: str) -> None:
        self.noted.append(text)


def named(*names: str) -> TaskCard:
    where = {"repo": "user/x"}
    return TaskCard(id="t", title="T", dataset=where, templates=["{}"], classnames=names)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ours", "theirs", "warned", "noted"),
    [
        (["red fox", "dog"], ["Red_Fox", "DOG"], 0, 0),
        (["annual crop land", "forest"], ["AnnualCrop", "Forest"], 0, 1),
        (["dog", "cat", "cow"], ["cat", "dog", "cow"], 1, 0),
        (["dog", "cat"], ["dog", "cat", "cow"], 1, 0),
        (["A", "B"], ["N/A", "A", "B"], 2, 0),
        (["お", "き"], ["き", "お"], 1, 0),
        (["dog", "cat"], ["dog", "sandal"], 1, 0),
        (["stop sign", "rose"], ["SIGN_STOP", "0"], 0, 1),
        (["tumour tissue", "none"], ["Tumor", "none"], 1, 0),
        (["red car", "none"], ["CarOfRED", "None"], 0, 1),
    ],
)
def test_class_names_that_disagree(ours: list[str], theirs: list[str], warned: int, noted: int) -> None:
    heard = Heard()
    compare_names(named(*ours), theirs, "the test split of user/x", heard)
    assert (len(heard.warned), len(heard.noted)) == (warned, noted)
    for text in (heard.warned + heard.noted)[-1:]:
        assert "user/x" in text
        if "class names." not in text:
            first = next(i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1])
            assert repr(ours[first]) in text and repr(theirs[first]) in text
        else:
            assert repr(theirs[-1]) in text


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 100, 49_999, 50_000, 60_000])
def test_validation_is_a_tenth_at_most_5000_and_train_is_the_rest(count: int) -> None:
    validation, train = list(part_rows("validation", count)), list(part_rows("train", count))
    assert len(validation) == max(1, min(5000, count // 10))
    assert sorted(validation + train) == list(range(count)) == list(part_rows("test", count))
    assert validation == sorted(validation) and train == sorted(train)
    assert list(part_rows("validation", count)) == validation
    if count >= 100:
        assert validation[-1] > count // 2 > validation[0], "drawn from all over the split"


def test_a_part_too_large_to_be_true_is_refused() -> None:
    with pytest.raises(SourceError, match="expected at most"):
        part_rows("train", 10**15)


RAMP = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)
COLOUR = np.stack([RAMP, RAMP.T, 255 - RAMP], axis=-1)


def same(data: bytes, expected: np.ndarray, within: int = 0) -> None:
    image = decode(data)
    found = np.asarray(image)
    assert (image.mode, found.dtype, found.shape) == ("RGB", np.uint8, expected.shape)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= within


def test_images_of_every_kind() -> None:
    grey = np.repeat(RAMP[..., None], 3, axis=-1)
    same(encoded(Image.fromarray(COLOUR)), COLOUR)
    same(encoded(Image.fromarray(RAMP)), grey)
    same(encoded(Image.fromarray(RAMP > 127)), np.where(grey > 127, 255, 0))
    deep = RAMP.astype(np.uint16) * 257
    same(encoded(Image.fromarray(deep)), grey)
    same(encoded(Image.fromarray(deep.astype(np.int32)), "TIFF"), grey)
    same(encoded(Image.fromarray(deep), "TIFF"), grey)
    same(encoded(Image.fromarray(COLOUR), "JPEG", quality=100, subsampling=0), COLOUR, within=8)
    palette = Image.fromarray(COLOUR).quantize(16)
    same(encoded(palette), np.asarray(palette.convert("RGB")))
    ink = Image.fromarray(COLOUR).convert("CMYK")
    same(encoded(ink, "TIFF"), np.asarray(ink.convert("RGB")))
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200)]
    same(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), np.full((8, 8, 3), 10), within=2)


def test_exif_orientation_is_applied_and_broken_exif_is_not_the_image_s_fault(clean_env: dict[str, str]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    wide = COLOUR[:4]
    same(encoded(Image.fromarray(wide), exif=exif), np.rot90(wide, -1))
    good = encoded(Image.fromarray(wide), "JPEG", quality=100, subsampling=0, exif=exif)
    at = good.index(b"Exif\0\0") + 6
    broken = good[: at + 4] + b"\xff\xff\xff\x7f" + good[at + 8 :]
    # In a process of its own: here pytest's filters, which make warnings errors, lie over the module's.
    script = "import sys; from hfcart.clip.images import decode; print(decode(sys.stdin.buffer.read()).size)"
    done = subprocess.run(
        [sys.executable, "-c", script], input=broken, capture_output=True, env=clean_env, check=True, timeout=LIMIT
    )
    assert (done.stdout, done.stderr) == (b"(8, 4)\n", b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image",
        png(1)[:200],
        encoded(Image.fromarray(COLOUR), "JPEG")[:-100],
        encoded(Image.new("1", (MAX_PIXELS // 1000, 1001))),
        encoded(Image.new("1", (20_000, 20_000))),
    ],
    ids=["nothing", "text", "cut png", "cut jpeg", "large", "bomb"],
)
def test_images_that_are_none(data: bytes) -> None:
    with pytest.raises(UndecodableImage):
        decode(data)


def test_decoding_in_many_threads_leaves_the_warnings_alone() -> None:
    palette = encoded(Image.fromarray(COLOUR).quantize(16), transparency=bytes(range(16)))
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [decode(palette) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before
