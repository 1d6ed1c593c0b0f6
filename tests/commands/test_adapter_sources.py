"""Every command that takes towers takes LoRA adapters, and says of them what it says of the towers they stand for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from adapters import unloaded, write_adapter
from running import Commands
from three_towers import served

from hfcart.demo.embedded_hub.hub import EmbeddedHub

ADAPTERS = [f"user/lora{i}" for i in (1, 2, 3)]
WHOLE = [f"user/whole{i}" for i in (1, 2, 3)]


@pytest.fixture(scope="module")
def served_adapters(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Iterator[tuple[EmbeddedHub, Path]]:
    """A Hub with three adapters of user/clip and the towers that peft makes of them; the folder with the cards."""
    root = tmp_path_factory.mktemp("adapters")
    with served(root, clip) as hub:
        for i, (adapter, whole) in enumerate(zip(ADAPTERS, WHOLE, strict=True), 1):
            options = {"target_modules": "all-linear", "bias": "all", "lora_alpha": 24}
            folder = write_adapter(root / f"lora{i}", clip, i, named="user/clip", kind="CLIPModel", **options)
            card = f"---\nbase_model: user/clip\ndatasets: [user/images{i}]\n---\n"
            for repo, files in ((adapter, folder), (whole, unloaded(folder))):
                (files / "README.md").write_text(card)
                hub.create(repo)
                hub.commit(repo, {path.name: path for path in files.iterdir()})
        yield hub, root


def accuracies(path: Path) -> list[tuple[int, ...]]:
    """Correct images of every row and task, of a record of either command."""
    found = json.loads(path.read_text())
    return [tuple(row["correct"]) for row in found["rows"]]


def test_compare_and_sweep_measure_them(
    served_adapters: tuple[EmbeddedHub, Path], commands: Commands, tmp_path: Path
) -> None:
    hub, root = served_adapters
    tasks = ",".join(str(root / f"images{i}.yaml") for i in (1, 2, 3))
    many = ["--tasks", tasks, "--limit", "16"]
    methods = ["--methods", "average,cart,task_arithmetic,regmean"]
    lines = [["compare", *sources, *many, *methods, "--out", out] for sources, out in ((ADAPTERS, "a"), (WHOLE, "w"))]
    lines += [["sweep", *sources, *many, "--rank", "0.1,1", "--scale", "1", "--out", out]
              for sources, out in ((ADAPTERS, "sa"), (WHOLE, "sw"))]  # fmt: skip
    for done in commands(hub, lines, apart=False):
        assert done.returncode == 0, done.stderr
    assert accuracies(tmp_path / "a" / "compare.json") == accuracies(tmp_path / "w" / "compare.json")
    swept = [json.loads((tmp_path / out / "sweep.json").read_text())["points"] for out in ("sa", "sw")]
    assert swept[0] == swept[1]


def test_eval_binds_an_adapter_to_its_base(
    served_adapters: tuple[EmbeddedHub, Path], commands: Commands, tmp_path: Path
) -> None:
    hub, root = served_adapters
    shutil.copytree(root / "lora1", tmp_path / "local")
    shutil.copytree(root / "lora1-unloaded", tmp_path / "whole")
    tasks = ["--tasks", str(root / "images1.yaml"), "--limit", "16"]
    lines = [["eval", "local", *tasks, "--out", "e1"], ["eval", "whole", *tasks, "--base", "user/clip", "--out", "e2"]]
    lines.append(["eval", "user/lora1", *tasks, "--out", "e3"])
    for done in commands(hub, lines):
        assert done.returncode == 0, done.stderr
    results = [json.loads((tmp_path / f"e{i}" / "results.json").read_text()) for i in (1, 2, 3)]
    assert len({json.dumps(found["results"]) for found in results}) == 1
    assert {found["base"] for found in results} == {"user/clip"}
    assert results[0]["weights_sha256"] == results[2]["weights_sha256"] != results[1]["weights_sha256"]


def test_eval_takes_a_base_that_is_a_vision_tower_alone(
    served_adapters: tuple[EmbeddedHub, Path], commands: Commands, tmp_path: Path
) -> None:
    hub, root = served_adapters
    shutil.copytree(root / "t1", tmp_path / "t1")  # whose card names user/clip
    write_adapter(tmp_path / "local", tmp_path / "t1", 5, target_modules=["q_proj"])
    line = ["eval", "local", "--base", "t1", "--tasks", str(root / "images1.yaml"), "--limit", "16", "--out", "e"]
    (done,) = commands(hub, [line])
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "e" / "results.json").read_text())["base"] == "user/clip"
