"""Commands whose arithmetic is done on a device give what they give on the CPU.

Those of a kind run one after another in one process: most of the time of each would be imports.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from devices import DEVICES
from pretended import PRETENDED
from running import HELPERS, TOKEN, Commands, ended
from safetensors.torch import load_file
from three_towers import TOWERS


class Done(NamedTuple):
    """What a command on a device printed; and what the host waited for, by name, if the device is pretended."""

    stdout: str
    stderr: str
    waits: Counter[str]


@pytest.fixture(params=DEVICES, ids=str)
def on_device(request: pytest.FixtureRequest, clean_env: dict[str, str], tmp_path: Path, commands: Commands):
    """As `commands`, on a device, with nothing in the Hub's cache; every command must end well."""

    def run(hub, lines: list[list[str]]) -> list[Done]:
        home = str(tmp_path / "their-home")
        if request.param != PRETENDED:
            done = commands(hub, [[*line, "--device", str(request.param)] for line in lines], HF_HOME=home)
            assert [each.returncode for each in done] == [0] * len(lines), "\n".join(each.stderr for each in done)
            return [Done(each.stdout, each.stderr, Counter()) for each in done]
        env = clean_env | {"HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_TOKEN": TOKEN}
        there = ended([sys.executable, HELPERS / "pretender.py"], input=json.dumps(lines), cwd=tmp_path, env=env)
        assert there.returncode == 0, there.stderr
        found = json.loads(there.stdout.splitlines()[-1])
        assert [code for code, *_ in found] == [0] * len(lines), "\n".join(error for *_, error, _ in found)
        return [Done(out, error, Counter(waits)) for _, out, error, waits in found]

    return run


@pytest.fixture
def on_both(commands: Commands, on_device):
    """Each of these lines on the CPU, into the folder `cpu/` + its last word, and on the device, into `there/` + it."""

    def run(hub, lines: list[list[str]]) -> tuple[list[str], list[Done]]:
        done = commands(hub, [[*line[:-1], f"cpu/{line[-1]}", "--device", "cpu"] for line in lines])
        assert [each.returncode for each in done] == [0] * len(lines), "\n".join(each.stderr for each in done)
        return [each.stdout for each in done], on_device(hub, [[*line[:-1], f"there/{line[-1]}"] for line in lines])

    return run


def tasks_of(root: Path, *numbers: int) -> str:
    """The tasks, each said to be its tower's."""
    return ",".join(f"user/t{i}={root}/images{i}.yaml" for i in numbers)


def assert_alike(root: Path, out: str, start: Path, allowed: float = 1e-4, but: str = "nothing") -> None:
    """Two towers, by how far each went from another: relative to whole weights a wrong one is a right one."""
    folders = (root / "cpu" / out, root / "there" / out, start)
    expected, found, before = (load_file(folder / "model.safetensors") for folder in folders)
    before = {name.removeprefix("vision_model."): tensor for name, tensor in before.items()}
    for name, tensor in ((name, tensor) for name, tensor in expected.items() if not name.endswith(but)):
        moved = (tensor.double() - before[name.removeprefix("vision_model.")].double()).norm()
        error = (tensor.double() - found[name].double()).norm()
        assert error <= allowed * moved + 1e-7 * tensor.double().norm(), (out, name)


def adapters(folder: Path) -> dict[str, torch.Tensor]:
    """The products of their factors, which may have other signs, and what else is in them."""
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("adapters/*/adapter_model.safetensors"):
        tensors = load_file(file)
        for name in [name for name in tensors if name.endswith("lora_A.weight")]:
            right, left = tensors.pop(name), tensors.pop(name.replace("lora_A", "lora_B"))
            tensors[name] = left.double() @ right.double()
        found |= {f"{file.parent.name}/{name}": tensor for name, tensor in tensors.items()}
    return found


def test_merges(zoo, on_both, tmp_path: Path) -> None:
    """By a method that looks at images, by one that does not, with adapters, and with nothing downloaded first."""
    hub, root = zoo
    looking = [["--method", method, "--tasks", tasks_of(root, 1, 2, 3), "--examples", "12"]
               for method in ("fisher", "regmean", "regmean_pp")]  # fmt: skip
    more = [["--rank", "0.25", "--stream"], *looking, ["--adapters", "25%"]]
    names = ["streamed", "fisher", "regmean", "regmean_pp", "adapters"]
    _, there = on_both(hub, [["merge", *TOWERS, *each, "--out", name] for name, each in zip(names, more, strict=True)])
    assert "Read in ranges" in there[0].stderr
    for name in names:
        assert_alike(tmp_path, name, root / "t1")
    one, other = (adapters(tmp_path / where / "adapters") for where in ("cpu", "there"))
    assert one.keys() == other.keys() and any("lora_A" in name for name in one)
    for name, tensor in one.items():
        assert (tensor - other[name]).norm() <= 1e-4 * tensor.norm() + 1e-7, name


def test_adaptation(zoo, on_both, tmp_path: Path) -> None:
    """By every family's parts and every objective, of coefficients alone and of singular directions as well."""
    hub, root = zoo
    ways = {
        "cart": ["--rank", "0.25"],
        "task_arithmetic": ["--method", "task_arithmetic"],
        "ties": ["--method", "ties"],
        "adarank": ["--rank", "0.25", "--adapt-ranks", "100%", "--objective", "infomax"],
        "distill": ["--rank", "0.25", "--objective", "distill"],
    }
    common = ["--adapt", tasks_of(root, 1, 2), "--lr", "0.03", "--batch-size", "4", "--precision", "float32", "--steps"]
    lines = [["merge", *TOWERS, *way, *common, "4", "--out", name] for name, way in ways.items()]
    longer = [["merge", *TOWERS, *ways[name], *common, "7", "--out", f"longer-{name}"] for name in ("cart", "adarank")]
    _, there = on_both(hub, [*lines, *longer])
    waits = dict(zip([*ways, "longer-cart", "longer-adarank"], (done.waits.total() for done in there), strict=True))
    for name in ("cart", "adarank"):  # distilled, and by infomax
        more = waits[f"longer-{name}"] - waits[name]
        assert more in (0, 3), name  # a step waits for the device once; of a real one nothing is counted
        assert (waits[name] == 0) == (more == 0), name
    for name in ways:
        records = (json.loads((tmp_path / where / name / "hfcart.json").read_text()) for where in ("cpu", "there"))
        one, other = (record["recipe"] for record in records)
        here, there = (torch.tensor(list(recipe["coefficients"].values())) for recipe in (one, other))
        assert float((here - here[0, 0]).abs().max()) > 0.01  # they moved
        assert float((here - there).abs().max()) < 1e-3, name
        # A direction at the step itself may fall to either side.
        chosen, theirs = (bits(recipe.get("directions", {})) for recipe in (one, other))
        assert bool(chosen) == (name == "adarank") and len(chosen) == len(theirs)
        assert sum(a != b for a, b in zip(chosen, theirs, strict=True)) <= 0.01 * len(chosen)


def bits(directions: dict[str, list[str]]) -> str:
    return "".join(f"{int(digit, 16):04b}" for each in directions.values() for text in each for digit in text)


def test_measuring(zoo, on_both, tmp_path: Path) -> None:
    """Towers, the points of sweeps and of a comparison, and what bfloat16 makes of it."""
    hub, root = zoo
    owned = ["--tasks", tasks_of(root, 1, 2, 3), "--limit", "20", "--json", "--precision"]
    plain = ["--tasks", f"{root}/images1.yaml,{root}/images2.yaml", "--json", "--precision"]
    lines = [
        ["eval", "user/t1", *plain, "float32", "--out", "eval"],
        ["eval", "user/t1", *plain, "bfloat16", "--out", "rounded"],
        ["sweep", *TOWERS, "--rank", "1,0.25", *plain, "float32", "--out", "sweep"],
        ["sweep", *TOWERS, "--rank", "1,0.25", *owned, "float32", "--adapters", "--out", "adapters"],
        ["compare", *TOWERS, *plain, "float32", "--methods", "cart,ties", "--out", "compare"],
    ]
    here, there = on_both(hub, lines)
    one, other = ([json.loads(text) for text in each] for each in (here, [done.stdout for done in there]))
    for mine, theirs in zip(one[0]["results"], other[0]["results"], strict=True):
        assert mine["classes"] == theirs["classes"]
    for mine, theirs in zip(one[:2], other[:2], strict=True):
        assert_close([correct(result) for result in mine["results"]], [correct(each) for each in theirs["results"]])
    for mine, theirs in zip(one[2:], other[2:], strict=True):
        rows = "rows" if "rows" in mine else "points"
        counts = [row["correct"] for row in mine[rows]]
        assert len({tuple(each) for each in counts}) > 1  # rows that differ
        for row, its in zip(counts, theirs[rows], strict=True):
            assert_close(row, its["correct"])


def correct(result: dict) -> int:
    return sum(each["correct"] for each in result["classes"])


def assert_close(one: list[int], other: list[int]) -> None:
    """Of 61 images, all but one may be near a tie."""
    assert all(abs(a - b) <= 1 for a, b in zip(one, other, strict=True)), (one, other)


def test_fine_tuning(zoo, clip: Path, on_both, tmp_path: Path) -> None:
    hub, root = zoo
    line = ["finetune", "user/clip", "--task", f"{root}/images1.yaml", "--steps", "4", "--batch-size", "8", "--lr"]
    on_both(hub, [[*line, "1e-3", "--precision", "float32", "--validate-every", "2", "--out", "tuned"]])
    # Where the gradient is next to nothing, Adam's first steps are of its sign alone. That of a key's bias is nothing.
    assert_alike(tmp_path, "tuned", clip, 0.05, but="k_proj.bias")
