"""A sweep of adapters: each task by θ̄ + SVD_k(θ_t − θ̄) of its own tower, from one decomposition."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from card_text import paragraph
from running import Commands
from safetensors.torch import load_file, save_file
from three_towers import TOWERS
from towers import write_tower

from hfcart.clip.tensor_names import is_matrix
from hfcart.engine.adapters.grid import AdapterGrid
from hfcart.engine.grid import take_apart
from hfcart.engine.planning import make_plan
from hfcart.engine.writing import GroupWriter
from hfcart.errors import VerifyError
from hfcart.progress import Progress
from hfcart.recipes.asked import asked_for
from hfcart.recipes.finished_sweep import read_sweep
from hfcart.recipes.merge_recipe import make
from hfcart.records import AdapterSweep, Environment, SweepPoint, SweepRecord
from hfcart.report.sweep_table import columns, remarks, rows
from hfcart.sources.towers import fetch_all
from hfcart.system.device import Machine
from hfcart.system.tensor_files import TensorFiles
from hfcart.system.work_folder import WorkFolder

Tensors = dict[str, torch.Tensor]
RANKS = (1, 0.25, 1.0)


def restated(towers: list[Tensors], t: int, kept: slice, *, carried: bool, fused: bool) -> Tensors:
    """Eq. 5 in float64, by LAPACK's whole SVD: the singular directions in that slice."""
    out: Tensors = {}
    for name in towers[0]:
        thetas = torch.stack([tower[name].double() for tower in towers])
        out[name] = thetas[t] if carried and not is_matrix(name) else thetas.mean(dim=0)
    for name in filter(is_matrix, towers[0]):
        parts = [name]
        if fused and "q_proj" in name:
            parts = [name.replace("q_proj", f"{x}_proj") for x in "qkv"]
        elif fused and ("k_proj" in name or "v_proj" in name):
            continue
        thetas = torch.stack([torch.cat([tower[part].double() for part in parts]) for tower in towers])
        mean = thetas.mean(dim=0)
        u, s, vh = torch.linalg.svd(thetas[t] - mean, full_matrices=False)
        whole = mean + u[:, kept] * s[kept] @ vh[kept]
        out |= dict(zip(parts, whole.split(len(whole) // len(parts)), strict=True))
    return out


@pytest.mark.parametrize("qkv", ["split", "fused"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("carried", [True, False])
def test_every_point_is_equation_five(tmp_path: Path, qkv: str, reverse: bool, carried: bool) -> None:
    folders = [write_tower(tmp_path / f"t{i}", i) for i in (1, 2)]  # two are enough: CART would give their average
    machine = Machine(torch.device("cpu"), "float32", 2, 16)
    recipe = make({"sources": tuple(map(str, folders)), "dtype": "float32", "qkv": qkv})
    with WorkFolder(tmp_path / "out", (), overwrite=False) as folder:
        plan = make_plan(recipe, tmp_path / "converted", Progress())
        fetch_all(plan.towers, Progress(), stream=False)
        plan = plan.in_canonical_order()
        grid = AdapterGrid(plan, RANKS, (1.0,), reverse, (1, 0), carried)
        folder.begin("work")
        with TensorFiles(folder.path, grid.layout()) as tensors:
            take_apart(grid, GroupWriter(plan, folder, tensors), machine, Progress())
            found = {task: grid.towers(tensors, grid.points, task, machine.device) for task in (0, 1)}
        weights = [load_file(tmp_path / tower.label / "model.safetensors") for tower in plan.towers]
        plan.close()
    cuts = [slice(31, 32), slice(24, 32)] if reverse else [slice(0, 1), slice(0, 8)]
    cuts.append(slice(0, 32))
    for task, place in ((0, 1), (1, 0)):
        average, *adapted, own = [tower.state_dict() for tower in found[task]]
        for name in weights[0]:
            short = name.removeprefix("vision_model.")
            mean = (weights[0][name].double() + weights[1][name].double()) / 2
            assert torch.allclose(average[short].double(), mean, atol=1e-6)
            assert torch.equal(own[short], weights[place][name])
        for model, cut in zip(adapted, cuts, strict=True):
            right = restated(weights, place, cut, carried=carried, fused=qkv == "fused")
            for name, tensor in right.items():
                assert torch.allclose(model[name.removeprefix("vision_model.")].double(), tensor, atol=2e-6), name
        matrix = "encoder.layers.0.mlp.fc1.weight"
        assert not torch.equal(adapted[0][matrix], average[matrix])


def test_a_sweep_of_adapters_measures_each_task_through_its_own(zoo, commands: Commands, tmp_path: Path) -> None:
    hub, root = zoo
    tasks = ",".join(f"{root}/images{i}.yaml" for i in (1, 2, 3))
    sweep = ["sweep", *TOWERS, "--tasks", tasks, "--adapters", "--part", "test", "--precision", "float32"]
    lines = [
        [*sweep, "--rank", "1,0.25,1.0", "--json"],
        [*sweep, "--rank", "0.25", "--adapters-carry", "matrices", "--out", "alone"],
        [*sweep, "--rank", "0.25,0.5", "--reverse", "--limit", "8", "--out", "lowest"],
        ["merge", *TOWERS, "--method", "average", "--out", "average", "--eval", tasks],
        *(["eval", f"user/t{i}", "--tasks", f"{root}/images{i}.yaml", "--references", "none"] for i in (1, 2, 3)),
        ["merge", *TOWERS, "--sweep", "sweep", "--out", "merged"],
    ]
    done, alone, lowest, average, *own, merged = commands(hub, lines)
    for run in (done, alone, lowest, average, *own):
        assert run.returncode == 0, run.stderr
    record = json.loads(done.stdout)
    assert record["tasks"] == ["images1", "images2", "images3"]
    assert record["adapters"]["owners"] == TOWERS and record["adapters"]["carry"] == "all"
    assert [point["rank"] for point in record["points"]] == [None, 1, 0.25, 1.0]
    counts = [point["correct"] for point in record["points"]]
    assert counts[0] == correct(tmp_path / "average")
    assert record["adapters"]["individual"] == [n for i in (1, 2, 3) for n in correct(tmp_path / f"t{i}-results")]
    assert counts[3] == record["adapters"]["individual"] != counts[0]  # full rank, biases and all: the tower itself
    files = {path.relative_to(tmp_path / "sweep").as_posix() for path in (tmp_path / "sweep").rglob("*.*")}
    assert files == {"sweep.json", "figures/curve.png", *(f"tasks/images{i}.yaml" for i in (1, 2, 3))}
    assert "Each task through its own tower's adapter" in done.stderr and "do not report a setting" in done.stderr
    assert "individual" in alone.stdout and "its tower's own biases" not in alone.stdout
    assert "the lowest singular directions" in lowest.stdout and "Partial: samples of at most 8" in lowest.stdout
    # One point restated from the files, saved, and measured as any tower.
    weights = [load_file(root / f"t{i}" / "model.safetensors") for i in (1, 2, 3)]
    for name, carried, row in (("a", True, counts[2]), ("m", False, points(tmp_path / "alone")[1])):
        shutil.copytree(root / "t2", tmp_path / name)
        made = restated(canonical(weights), 1, slice(0, 8), carried=carried, fused=False)
        stored = {key: value.float().contiguous() for key, value in made.items()}
        save_file(stored, tmp_path / name / "model.safetensors")
        (run,) = commands(hub, [["eval", name, "--tasks", f"{root}/images2.yaml", "--base", "user/clip"]])
        assert run.returncode == 0, run.stderr
        assert correct(tmp_path / f"{name}-results") == [row[1]]
    assert merged.returncode == 0, merged.stderr
    best = record["points"][record["best"]]
    made = json.loads((tmp_path / "merged" / "hfcart.json").read_text())
    assert made["method"]["name"] == "average" and len(made["adapters"]) == 3
    assert made["recipe"]["adapters"] == best["rank"] and made["swept"]["points"] == 3
    said = paragraph((tmp_path / "merged" / "README.md").read_text(), "How")
    assert "The sweep tried 3 settings on" in said and "with each task's own adapter" in said
    assert "hfcart merge" not in alone.stdout + lowest.stdout  # test images are no ground to choose by
    refused = [
        (["sweep", "--adapters", "8%"], "sweep gives the rank of adapters: leave adapters out."),
        (["alone", "--adapters-carry", "all"], "alone was made with adapters_carry matrices"),
        (["lowest"], "lowest kept the lowest singular directions"),
        (["sweep", "--method", "cart"], "sweep was made with method average"),
    ]
    runs = commands(hub, [["merge", *TOWERS, "--sweep", *options] for options, _ in refused])
    for run, (_, said) in zip(runs, refused, strict=True):
        assert run.returncode == 2 and said in " ".join(run.stderr.split()), run.stderr


def test_a_recipe_s_adapters_and_a_sweep_of_them_take_each_other_s_place(tmp_path: Path) -> None:
    """What is given goes before the file's: of two that say the rank of adapters, the file's is left out."""
    folder, file = tmp_path / "sweep", tmp_path / "r.yaml"
    folder.mkdir()
    (folder / "sweep.json").write_text(swept().to_json())
    file.write_text("sources: [u/a, u/b]\nadapters: 8\nadapters_carry: matrices\n")
    made = asked_for(file, {"sweep": str(folder)}, Progress())
    assert (made.adapters, made.adapters_carry) == (1.0, "all")  # the sweep's best
    file.write_text(f"sources: [u/a, u/b]\nsweep: {folder}\n")
    made = asked_for(file, {"adapters": 4}, Progress())
    assert (made.adapters, made.sweep) == (4, None)


def canonical(towers: list[Tensors]) -> list[Tensors]:
    return [{f"vision_model.{name.removeprefix('vision_model.')}": t for name, t in tower.items()} for tower in towers]


def correct(folder: Path) -> list[int]:
    results = json.loads((folder / "results.json").read_text())["results"]
    return [sum(one["correct"] for one in result["classes"]) for result in results]


def points(folder: Path) -> list[list[int]]:
    return [point["correct"] for point in json.loads((folder / "sweep.json").read_text())["points"]]


def test_what_cannot_be_swept_is_refused(zoo, commands: Commands) -> None:
    hub, root = zoo
    told = f"user/t1={root}/images2.yaml,user/t2={root}/images1.yaml,{root}/images3.yaml"
    refused: list[tuple[list[str], str]] = [
        (["--tasks", f"{root}/images1.yaml", "--adapters", "--method", "task_arithmetic"], "task_arithmetic has none"),
        (["--tasks", f"{root}/images1.yaml", "--adapters", "--scale", "1,2"], "it has no scale to sweep"),
        (["--tasks", f"{root}/images1.yaml", "--adapters", "--adapters-carry", "x"], "expected one of all, matrices"),
        (["--tasks", f"{root}/images1.yaml", "--adapters"], "It is not known which task was trained into"),
    ]
    *runs, swapped = commands(
        hub,
        [["sweep", *TOWERS, *options] for options, _ in refused]
        + [["sweep", *TOWERS, "--tasks", told, "--adapters", "--rank", "0.5", "--limit", "4", "--json", "--out", "s"]],
    )
    for run, (_, said) in zip(runs, refused, strict=True):
        assert run.returncode == 2 and said in " ".join(run.stderr.split()), run.stderr
    assert swapped.returncode == 0, swapped.stderr
    record = json.loads(swapped.stdout)
    found = dict(zip(record["tasks"], record["adapters"]["owners"], strict=True))
    assert found == {"images2": "user/t1", "images1": "user/t2", "images3": "user/t3"}


def swept() -> SweepRecord:
    reached = ((None, (40, 50), (44, 31), 0.0), (0.04, (80, 70), (6, 3), 0.4), (1.0, (82, 71), (0, 0), None))
    points = tuple(SweepPoint(rank, float(rank is not None), *told) for rank, *told in reached)
    fields = ("cart", "average", False, "split", (("u/a", None), ("u/b", None)), "b", "validation", ("x", "y"))
    adapters = AdapterSweep("all", ("u/a", "u/b"), (83, 71), (120, 1700), 1000)
    environment = Environment("0.1.0", "2", "3.11", "Linux", "cpu", "x", "gram")
    return SweepRecord(
        *fields, (100, 100), None, (0.04, 1.0), (1.0,), points, 2, environment, adapters=adapters
    )  # fmt: skip


def test_the_table_has_a_line_a_task_and_says_what_is_the_smallest_good_one() -> None:
    record = swept()
    assert columns(record) == ["accuracy %", "average", "4 %", "100 %", "individual"]
    assert rows(record) == [
        ("x", "40.0", "80.0", "82.0", "83.0"),
        ("y", "50.0", "70.0", "71.0", "71.0"),
        ("mean", "45.0", "75.0 ≈", "76.5 ≈", "77.0"),
        ("adapter's size", "", "12.0 %", "170.0 %", ""),
    ]
    assert remarks(record)[1] == (
        "Rank 100 % and rank 4 % are not distinguishable on 200 validation images. The average alone is worse than "
        "rank 100 %. 4 % is the smallest rank that is not distinguishable from the best."
    )
    (anchor, small, best), adapters = record.points, record.adapters
    clear = dataclasses.replace(record, points=(anchor, dataclasses.replace(small, p=0.01), best), adapters=adapters)
    assert rows(clear)[2] == ("mean", "45.0", "75.0", "76.5 *", "77.0")
    assert not any("smallest" in line for line in remarks(clear))
    test = dataclasses.replace(record, part="test")
    assert rows(test)[2] == ("mean", "45.0", "75.0", "76.5", "77.0") and "distinguishable" not in str(remarks(test))


def test_a_stranger_s_adapters_are_not_believed(tmp_path: Path) -> None:
    record, path = swept(), tmp_path / "sweep.json"
    path.write_text(record.to_json())
    assert read_sweep(tmp_path)[0] == record
    plain = json.loads(record.to_json())
    for change in (
        {"carry": "x"}, {"owners": ["u/a"]}, {"individual": [83]}, {"individual": [83, 101]}, {"individual": [-1, 1]},
        {"sizes": [1]}, {"sizes": [0, 1]}, {"sizes": []}, {"parameters": 0}, {"parameters": "x"},
    ):  # fmt: skip
        path.write_text(json.dumps({**plain, "adapters": {**plain["adapters"], **change}}))
        with pytest.raises(VerifyError, match="is not the record of a sweep"):
            read_sweep(tmp_path)
    empty = {"ranks": [], "points": plain["points"][:1], "best": 0, "adapters": {**plain["adapters"], "sizes": []}}
    for change in ({"scales": [2.0]}, {"method": "consensus"}, {"tasks": ["x", "x"]}, empty):
        path.write_text(json.dumps({**plain, **change}))
        with pytest.raises(VerifyError, match="is not the record of a sweep"):
            read_sweep(tmp_path)
