"""The recipes that come with hfcart: each can be run, names the benchmark's towers, and says whose figures it has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from running import Run
from towers import write_tower

from hfcart.errors import UsageError
from hfcart.formats import safe_yaml
from hfcart.progress import Progress
from hfcart.recipes.asked import asked_for
from hfcart.recipes.merge_recipe import make
from hfcart.recipes.recipe_files import as_yaml, names, read
from hfcart.system.cards_folder import cards_dir
from hfcart.tasks.task_cards import read_tasks

BASES = {"b-32": "openai/clip-vit-base-patch32", "l-14": "openai/clip-vit-large-patch14"}
# The authors' released configurations of CART for ViT-B/32: rank and scale; and what Iso's paper found by T.
RELEASED = {"8": (0.12, 2.0), "14": (0.16, 1.5), "20": (0.32, 1.9)}
# What AdaRank's authors released: directions on at the start, coefficients, and the batch where it is not of 16.
ADARANK = {
    ("b-32", "8"): (0.16, 2.3),
    ("b-32", "14"): (0.32, 2.8),
    ("b-32", "20"): (0.32, 2.4),
    ("l-14", "8"): (0.16, 3.0, 4),
    ("l-14", "14"): (0.16, 1.25, 2),
    ("l-14", "20"): (0.16, 1.0, 2),
}
ISO = {
    ("iso-c", "b-32"): {"8": 1.3, "14": 1.0, "20": 0.9},
    ("iso-c", "l-14"): {"8": 1.5, "14": 1.3, "20": 1.0},
    ("iso-cts", "b-32"): {"8": 1.5, "14": 1.2, "20": 1.1},
    ("iso-cts", "l-14"): {"8": 1.9, "14": 1.5, "20": 1.2},
}


def test_there_is_one_for_every_setting() -> None:
    kinds = ("cart", "cart-adapt", "adarank", "iso-c", "iso-cts")
    expected = {f"vit-{size}-{n}-{kind}" for size in BASES for n in RELEASED for kind in kinds}
    expected |= {f"vit-{size}-{n}-regmean-pp" for size in BASES for n in ("8", "20")}
    assert set(names()) == expected | {f"vit-b-32-{n}-cart-paper" for n in RELEASED} | {"vit-b-32-8-wudi"}


def settings(kind: str, size: str, tasks: str) -> dict[str, object]:
    """What a recipe of that name sets, besides base and sources."""
    if kind == "wudi":
        return {"method": "wudi", "steps": 300, "lr": 1e-5}
    if kind == "regmean-pp":
        return {"method": "regmean_pp", "off_diagonal": 0.95, "examples": 256, "tasks": tasks}
    if kind.startswith("iso"):
        common = {"common": 0.8} if kind == "iso-cts" else {}
        scale = ISO[kind, size][tasks]
        return {"method": kind.replace("-", "_"), "scale": scale, "qkv": "fused", "matrices": "all-2d", **common}
    if kind == "adarank":
        rank, scale, *batch = ADARANK[size, tasks]
        asked = {"adapt": tasks, "adapt_ranks": 1.0, "adapt_tensors": "all", "objective": "entropy", "qkv": "fused"}
        return {"method": "cart", "rank": rank, "scale": scale, **asked, **({"batch_size": batch[0]} if batch else {})}
    rank, scale = RELEASED[tasks] if size == "b-32" and kind != "cart-paper" else (0.08, 1.0)
    adapt = {"adapt": tasks, "objective": "entropy"} if kind == "cart-adapt" else {}
    return {"method": "cart", "rank": rank, "scale": scale, "qkv": "fused", **adapt}


@pytest.mark.parametrize("name", names())
def test_a_recipe_is_what_its_name_says(name: str) -> None:
    found = re.fullmatch(r"vit-(b-32|l-14)-(8|14|20)-([a-z-]+)", name)
    assert found
    size, tasks, kind = found.groups()
    fields = read(Path(name))
    recipe = make(fields, name)
    assert recipe.sources == tuple(task.fine_tuned[BASES[size]] for task in read_tasks([tasks]))
    assert len(set(recipe.sources)) == int(tasks) and recipe.base == (None if kind == "regmean-pp" else BASES[size])
    assert {key: value for key, value in fields.items() if key not in ("sources", "base")} == settings(
        kind, size, tasks
    )
    text = (cards_dir() / "recipes" / f"{name}.yaml").read_text()
    assert f"hfcart merge --recipe {name} --eval {tasks}" in text
    own = {"b-32-8-wudi": 84.5, "b-32-8-regmean-pp": 84.4, "b-32-20-regmean-pp": 74.2}
    own |= {"l-14-8-regmean-pp": 91.0, "l-14-20-regmean-pp": 82.4}
    if figure := own.get(name.removeprefix("vit-")):  # the only figures that are of these towers
        assert f"{figure} % (mean of the {tasks} tasks) has been published for these same towers" in text
    elif " % " in text:
        assert "OpenCLIP's fine-tuned towers" in text and "no figure for this recipe to reach" in text


def test_names_are_looked_up_after_files(hfcart: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no recipe of that name. Did you mean vit-b-32-8-cart"):
        read(Path("vit-b-32-9-cart"))
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read(Path("vit-b-32-9-cart.yaml"))
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read(Path("../tasks/sun397"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vit-b-32-14-cart").mkdir()  # an output folder of that name is no recipe
    assert read(Path("vit-b-32-14-cart"))["rank"] == 0.16
    (tmp_path / "vit-b-32-8-cart").write_text("sources: [a, b]\n")
    assert read(Path("vit-b-32-8-cart")) == {"sources": ["a", "b"]}
    unknown = hfcart("merge", "--recipe", "vit-b-32-9-cart")
    assert unknown.returncode == 2 and "vit-l-14-20-cart" in unknown.stderr and "Traceback" not in unknown.stderr


def test_the_command_line_overrides_a_named_recipe(hfcart: Run, tmp_path: Path) -> None:
    towers = [write_tower(tmp_path / f"t{i}", i).name for i in (1, 2)]
    base = write_tower(tmp_path / "base", 3).name
    done = hfcart("merge", *towers, "--base", base, "--recipe", "vit-b-32-8-cart", "--out", "m")
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "m" / "recipe.yaml").read_text()
    assert "rank: 0.12" in written and "scale: 2.0" in written and "qkv: fused" in written


def test_another_method_takes_only_the_towers_of_a_recipe() -> None:
    for name in names():
        for method in ("average", "model_stock"):
            asked = asked_for(Path(name), {"method": method}, Progress())
            assert asked == make({"sources": asked.sources, "base": asked.base, "qkv": asked.qkv, "method": method})


def test_as_many_directions_as_twenty_large_towers_have_are_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A choice among all 1,024 of each matrix of ViT-L/14; and no file without an end is read."""
    matrices = [f"vision_model.encoder.layers.{layer}.self_attn.{i}.weight" for layer in range(24) for i in range(6)]
    recipe = {"method": "cart", "adapt_ranks": 1.0, "coefficients": {"a": [2.3] * 20}}
    recipe |= {"directions": {name: [f"{number:0256x}" for number in range(20)] for name in matrices}}
    file = tmp_path / "recipe.yaml"
    file.write_text(as_yaml(recipe))
    assert read(file) == recipe
    monkeypatch.setattr(safe_yaml, "_MOST", 99)
    for text, words in (("#" * ((1 << 22) + 1), "expected at most"), ("- a\n" * 100, "more than 99 values")):
        file.write_text(text)
        with pytest.raises(UsageError, match=words):
            read(file)
