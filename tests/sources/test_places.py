"""A place inside a repo or a folder as a source: a folder of it, a file of it, and the address of either."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from forms import WIDE, write_open_clip
from merging import merged, raw
from running import Run
from towers import weights, write_tower

import hfcart
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.errors import HfcartError, NotATowerError, SourceError
from hfcart.records.repo_id import is_place, split_place


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """Many towers in one folder, as the papers' authors publish them."""
    folder = tmp_path / "shelf"
    for i, task in enumerate(("Cars", "DTD"), 1):
        write_open_clip(folder / "ViT" / task, i, WIDE, file="finetuned.pt", prefix="model.", config=False)
    write_tower(folder / "hf", 3, WIDE)
    shutil.copy(folder / "hf" / "model.safetensors", folder / "hf" / "model.fp16.safetensors")
    return folder


def upload(hub: EmbeddedHub, folder: Path) -> str:
    hub.create("user/shelf")
    return hub.commit("user/shelf", {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()})


def test_a_place_in_a_repo(shelf: Path, hub: EmbeddedHub, hfcart: Run, tmp_path: Path) -> None:
    """Recorded with the commit, on the card, in the recipe, and verified there."""
    commit = upload(hub, shelf)
    args = ("user/shelf:ViT/Cars", "user/shelf@main:ViT/DTD/finetuned.pt", f"{hub.url}/user/shelf/tree/main/hf")
    done = hfcart("merge", *args[:2], "--base", "user/shelf:hf/model.safetensors", "--out", "m", hub=hub)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "m" / "hfcart.json").read_text())
    refs = [f"user/shelf@{commit}:ViT/Cars", f"user/shelf@{commit}:ViT/DTD/finetuned.pt"]
    assert sorted(record["recipe"]["sources"]) == refs
    assert record["recipe"]["base"] == f"user/shelf@{commit}:hf/model.safetensors"
    assert sorted(source["path"] for source in record["sources"]) == ["ViT/Cars", "ViT/DTD/finetuned.pt"]
    card = (tmp_path / "m" / "README.md").read_text()
    assert f"/user/shelf/tree/{commit}/ViT/Cars" in card and f"/user/shelf/blob/{commit}/ViT/DTD/finetuned.pt" in card
    for again in (["verify", "m"], ["merge", "--recipe", "m/recipe.yaml", "--out", "n"]):
        done = hfcart(*again, hub=hub)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == (tmp_path / "n" / "model.safetensors").read_bytes()
    done = hfcart("merge", args[2], "--method", "average", "--stream", "--out", "one", hub=hub)
    assert done.returncode == 0, done.stderr  # model.safetensors before its variants
    record = json.loads((tmp_path / "one" / "hfcart.json").read_text())
    assert [source["label"] for source in record["sources"]] == ["user/shelf:hf"]


def test_places_here(shelf: Path, tmp_path: Path) -> None:
    for i, text in enumerate((f"{shelf}:ViT/Cars", f"{shelf}/ViT/Cars", f"{shelf}/ViT/Cars/finetuned.pt")):
        found = merged([Path(text)], tmp_path / f"m{i}", method="average", activation="quick_gelu")
        assert raw(found) == raw(weights(1, WIDE))
    record = hfcart.merge([f"{shelf}:hf/model.fp16.safetensors"], out=tmp_path / "v", method="average")
    assert record.sources[0].label == "hf:model.fp16.safetensors" and record.sources[0].repo is None
    assert record.recipe["sources"] == [{"path": "hf:model.fp16.safetensors", "sha256": record.sources[0].sha256}]


def test_what_is_not_there_is_said_with_what_is(shelf: Path, hub: EmbeddedHub, hfcart: Run, tmp_path: Path) -> None:
    upload(hub, shelf)
    for text, said in (
        ("user/shelf", "Say which of its folders"),
        ("user/shelf:ViT", "user/shelf@"),
        ("user/shelf:nothing", "has no folder and no file 'nothing': at its top level are .gitattributes, ViT, hf"),
        ("user/shelf:../x", "cannot be a place"),
        ("user/shelf:hf/config.json", "is no file of weights"),
        (f"{hub.url}/user", "is no address of a Hub repo"),
        (f"{hub.url}/user/shelf/tree/nobranch/hf", "nobranch"),
    ):
        done = hfcart("merge", text, "--out", "m", hub=hub)
        assert done.returncode in (1, 2) and said in done.stderr, (text, done.stderr)
    with pytest.raises(SourceError, match="There is no nothing in the folder"):
        hfcart_merge(f"{shelf}:nothing", tmp_path)
    (shelf / "hf" / "model.safetensors").rename(shelf / "hf" / "model.fp32.safetensors")
    with pytest.raises(NotATowerError, match="holds several files of weights") as error:
        hfcart_merge(str(shelf / "hf"), tmp_path)
    assert "hf:model.fp16.safetensors" in (error.value.hint or "")


def hfcart_merge(source: str, tmp_path: Path) -> None:
    hfcart.merge([source], out=str(tmp_path / "m"))


@pytest.mark.parametrize("text", ["a", "a/b.pt", "ViT-B-32/Cars", ".x/y", "a..b", "a b/c", "é"])
def test_places(text: str) -> None:
    assert is_place(text) and split_place(f"user/name@main:{text}") == ("user/name@main", text)


@pytest.mark.parametrize(
    "text", ["", "/a", "../a", "a/../b", "a/..", "a//b", "a/", "./a", "a/./b", "a\\b", "a:b", "a\n", "." * 2]
)
def test_no_places(text: str) -> None:
    assert not is_place(text)


@pytest.mark.parametrize(
    "address",
    ["https://example.org/user/name", "https://huggingface.co/user", "ftp://huggingface.co/user/name", "hf://user",
     "https://huggingface.co.evil.org/user/name", "https://user@huggingface.co/user/name"],
)  # fmt: skip
def test_addresses_of_nothing(tmp_path: Path, address: str) -> None:
    with pytest.raises(HfcartError, match="is no address|There is no folder"):
        hfcart_merge(address, tmp_path)
