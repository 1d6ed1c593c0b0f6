"""Commands whose arithmetic is done on a device give what they give on the CPU."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from devices import DEVICES
from pretended import PRETENDED
from running import HELPERS, TOKEN, Commands, ended
from safetensors.torch import load_file
from three_towers import TOWERS


@pytest.fixture(params=DEVICES, ids=str)
def on_device(request: pytest.FixtureRequest, clean_env: dict[str, str], tmp_path: Path, commands: Commands):
    """As `commands`, on a device; with what the host waited for in each, if the device is pretended."""

    def run(hub, lines: list[list[str]]) -> list[tuple[str, Counter[str]]]:
        if request.param != PRETENDED:
            done = commands(hub, [[*line, "--device", str(request.param)] for line in lines])
            assert [each.returncode for each in done] == [0] * len(lines), done[-1].stderr
            return [(each.stdout, Counter()) for each in done]
        env = clean_env | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf-home"), "HF_TOKEN": TOKEN}
        there = ended([sys.executable, HELPERS / "pretender.py"], input=json.dumps(lines), cwd=tmp_path, env=env)
        assert there.returncode == 0, there.stderr
        found = json.loads(there.stdout.splitlines()[-1])
        assert [code for code, *_ in found] == [0] * len(lines), "\n".join(error for *_, error, _ in found)
        return [(out, Counter(waits)) for _, out, _, waits in found]

    return run


def tasks_of(root: Path) -> str:
    return ",".join(f"{root}/images{i}.yaml" for i in (1, 2, 3))


def assert_alike(one: Path, other: Path, start: Path) -> None:
    """Two merges, by how far each went from a tower: relative to whole weights a wrong one is a right one."""
    expected, found, before = (load_file(folder / "model.safetensors") for folder in (one, other, start))
    for name, tensor in expected.items():
        moved = (tensor.double() - before[name.removeprefix("vision_model.")].double()).norm()
        assert (tensor.double() - found[name].double()).norm() <= 1e-4 * moved + 1e-7 * tensor.double().norm(), name


@pytest.mark.parametrize("method", ["fisher", "regmean", "regmean_pp"])
def test_merges_that_look_at_images(zoo, commands: Commands, on_device, tmp_path: Path, method: str) -> None:
    hub, root = zoo
    line = ["merge", *TOWERS, "--method", method, "--tasks", tasks_of(root), "--examples", "12", "--out"]
    [done] = commands(hub, [[*line, "cpu", "--device", "cpu"]])
    assert done.returncode == 0, done.stderr
    on_device(hub, [[*line, "there"]])
    assert_alike(tmp_path / "cpu", tmp_path / "there", root / "t1")


@pytest.mark.parametrize("method", [["--rank", "0.25"], ["--method", "task_arithmetic"], ["--method", "ties"]], ids=str)
def test_adaptation(zoo, commands: Commands, on_device, tmp_path: Path, method: list[str]) -> None:
    hub, root = zoo
    line = ["merge", *TOWERS, *method, "--adapt", f"{root}/images1.yaml,{root}/images2.yaml", "--steps", "4"]
    line += ["--lr", "0.05", "--batch-size", "4", "--precision", "float32", "--out"]
    [done] = commands(hub, [[*line, "cpu", "--device", "cpu"]])
    assert done.returncode == 0, done.stderr
    on_device(hub, [[*line, "there"]])
    records = (json.loads((tmp_path / out / "hfcart.json").read_text()) for out in ("cpu", "there"))
    here, there = (torch.tensor(list(record["recipe"]["coefficients"].values())) for record in records)
    assert float((here - here[0, 0]).abs().max()) > 0.01  # they moved
    assert float((here - there).abs().max()) < 1e-3


def test_evaluation_and_sweep(zoo, commands: Commands, on_device, tmp_path: Path) -> None:
    hub, root = zoo
    common = ["--tasks", f"{root}/images1.yaml,{root}/images2.yaml", "--precision", "float32", "--json", "--out"]
    lines = [["eval", "user/t1", *common, "eval"], ["sweep", *TOWERS, "--rank", "1,0.25", *common, "sweep"]]
    done = commands(hub, [[*line[:-1], f"{line[-1]}-cpu", "--device", "cpu"] for line in lines])
    assert [each.returncode for each in done] == [0, 0], done[-1].stderr
    evaluated, swept = (json.loads(each.stdout) for each in done)
    evaluated_there, swept_there = (json.loads(out) for out, _ in on_device(hub, lines))
    for one, other in zip(evaluated["results"], evaluated_there["results"], strict=True):
        assert one["classes"] == other["classes"]
    assert len({tuple(point["correct"]) for point in swept["points"]}) > 1  # points that differ
    for one, other in zip(swept["points"], swept_there["points"], strict=True):
        assert (one["rank"], one["scale"]) == (other["rank"], other["scale"])
        assert all(abs(a - b) <= 1 for a, b in zip(one["correct"], other["correct"], strict=True))
