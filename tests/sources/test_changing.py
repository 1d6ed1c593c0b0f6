"""A source that changes while it is merged: what is merged is what the record's digests are of, or nothing is."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from clips import write_clip
from safetensors.torch import load_file, save_file
from towers import write_tower

import hfcart
from hfcart.commands.compare import _plain, _sources
from hfcart.engine.planning import make_plan
from hfcart.errors import SourceError
from hfcart.progress import Progress
from hfcart.recipes.merge_recipe import make
from hfcart.sources import pickles
from hfcart.sources.towers import fetch_all
from hfcart.tasks.task_cards import TaskCard
from hfcart.zero_shot.heads import base_of, make_head, open_base
from hfcart.zero_shot.loaded_tower import load_tower


def overwritten(folder: Path, other: Path) -> None:
    """In place, as cp and most trainers do."""
    with (folder / "model.safetensors").open("r+b") as file:
        file.write((other / "model.safetensors").read_bytes())


def overwritten_unseen(folder: Path, other: Path) -> None:
    """Through a mapping, and with the time of change put back."""
    path = folder / "model.safetensors"
    times = path.stat()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:] = (other / "model.safetensors").read_bytes()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def names_exchanged(folder: Path, other: Path) -> None:
    """The same bytes under other names: only the header differs."""
    path = folder / "model.safetensors"
    one, two = (f"vision_model.encoder.layers.{i}.mlp.fc1.weight".encode() for i in (0, 1))
    data = path.read_bytes().replace(one, b"x" * len(one)).replace(two, one).replace(b"x" * len(one), two)
    with path.open("r+b") as file:
        file.write(data)


def replaced(folder: Path, other: Path) -> None:
    shutil.copy(other / "model.safetensors", folder / "new")
    (folder / "new").replace(folder / "model.safetensors")


def cut_short(folder: Path, other: Path) -> None:
    os.truncate(folder / "model.safetensors", 20_000)


def extended(folder: Path, other: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")


def other_config(folder: Path, other: Path) -> None:
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"layer_norm_eps": 1e-3}))


def touched(folder: Path, other: Path) -> None:
    os.utime(folder / "model.safetensors")


CHANGES = [overwritten, overwritten_unseen, names_exchanged, replaced, cut_short, extended, other_config, touched]
MOMENTS = ["Reading headers", "Checking digests", 9, "Reading the output back"]


class At(Progress):
    """Does something at the stage of that name, or after so many groups."""

    def __init__(self, moment: str | int, do: Callable[[], None]) -> None:
        self.moment, self.do, self.done = moment, do, 0

    def step(self, text: str) -> None:
        if text == self.moment:
            self.do()

    def start(self, label: str, total: int, unit: str) -> None:
        self.step(label)

    def advance(self, amount: int) -> None:
        self.done += amount > 0
        if self.done == self.moment:
            self.do()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Towers one, two and another, and what merges of one with two, and of one with another, hold."""
    root = tmp_path_factory.mktemp("kept")
    for i, name in enumerate(("one", "two", "another"), 1):
        write_tower(root / name, i)
    for name in ("two", "another"):
        hfcart.merge([root / "one", root / name], out=root / f"with-{name}", method="average")
    return root


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_merged_is_what_was_hashed(kept: Path, tmp_path: Path, change, moment: str | int) -> None:
    for name in ("one", "two", "another"):
        shutil.copytree(kept / name, tmp_path / name)
    sources, out = [tmp_path / "one", tmp_path / "two"], tmp_path / "out"
    hook = At(moment, lambda: change(tmp_path / "two", tmp_path / "another"))
    merge = {"out": out, "method": "average", "workers": 1}
    try:
        hfcart.merge(sources, **merge, progress=hook)
    except SourceError as error:
        assert change is not touched
        file = "config.json" if change is other_config else "model.safetensors"
        assert f"two/{file}" in error.message and error.hint, error.message
        assert not out.exists()
        # The journal that is left has no group of other bytes: put back, the merge goes on to the right end.
        shutil.copytree(kept / "two", tmp_path / "two", dirs_exist_ok=True)
        hfcart.merge(sources, **merge)
    record = json.loads((out / "hfcart.json").read_text())
    recorded = {source["label"]: source["sha256"] for source in record["sources"]}
    assert recorded["one"] == digest(kept / "one" / "model.safetensors")
    if change is names_exchanged and moment == "Reading headers":  # a third tower, before it was opened
        assert recorded["two"] == digest(tmp_path / "two" / "model.safetensors")
        return
    (merged,) = [n for n in ("two", "another") if digest(kept / n / "model.safetensors") == recorded["two"]]
    assert merged == "two" or moment in MOMENTS[:2]  # before it is hashed, it may become another tower as a whole
    for name in ("model.safetensors", "config.json"):
        if not (change is other_config and moment == "Reading headers"):
            assert (out / name).read_bytes() == (kept / f"with-{merged}" / name).read_bytes()


def test_a_pickle_is_held_against_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tower(tmp_path / "old", 1)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    whole = pickles.convert

    def convert(path: Path, target: Path, where: str) -> None:
        whole(path, target, where)
        with path.open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(pickles, "convert", convert)
    with pytest.raises(SourceError, match=r"old/pytorch_model\.bin changed while it was read"):
        hfcart.merge([folder], out=tmp_path / "m")
    assert not (tmp_path / "m.partial").exists()


def test_a_base_that_is_opened_twice_is_the_same_twice(tmp_path: Path) -> None:
    """By an evaluation of a CLIPModel, and for its text side: no head of other weights reaches the cache."""
    clip = write_clip(tmp_path / "clip", 0)
    tower, base = load_tower(str(clip), Progress()), open_base(str(clip), Progress())
    tensors = load_file(clip / "model.safetensors")
    name = "text_model.final_layer_norm.weight"
    save_file(tensors | {name: tensors[name] * 2}, clip / "model.safetensors", metadata={"format": "pt"})
    task = TaskCard(id="x", title="X", dataset={"repo": "user/x"}, templates=["{}"], classnames=["red", "blue"])
    for again in (
        lambda: open_base(base_of(tower, Progress()), Progress()),
        lambda: make_head(base, task, Progress()),
        lambda: load_tower(base.again, Progress()),
    ):
        with pytest.raises(SourceError, match=r"clip changed while it was used: model\.safetensors"):
            again()


def test_the_base_of_a_plan_is_the_one_that_is_opened_again(tmp_path: Path) -> None:
    """By adaptation, sweeps, comparisons and choices; and a comparison's merges take what it has hashed."""
    towers = [str(write_tower(tmp_path / name, i)) for i, name in enumerate(("base", "one", "two"))]
    recipe = make({"sources": towers[1:], "method": "task_arithmetic", "base": towers[0]})
    plan = make_plan(recipe, tmp_path / "converted", Progress())
    fetch_all(plan.towers_and_base, Progress(), stream=False)
    task = TaskCard(id="x", title="X", dataset={"repo": "user/x"}, templates=["{}"], classnames=["red", "blue"])
    fields = {"base": _plain(plan.clip_ref), "sources": [_plain(ref) for ref in _sources(plan, towers[1:], [task])]}
    plan.close()
    assert load_tower(plan.clip_ref, Progress()).label == "base"
    hfcart.merge(**fields, out=tmp_path / "m", method="task_arithmetic")
    for name, other in (("base", "one"), ("one", "two")):
        kept = (tmp_path / name / "model.safetensors").read_bytes()
        overwritten(tmp_path / name, tmp_path / other)
        with pytest.raises(SourceError, match=f"{name} is not the tower"):
            hfcart.merge(**fields, out=tmp_path / "n", method="task_arithmetic")
        (tmp_path / name / "model.safetensors").write_bytes(kept)
