"""The points of a sweep are merges: the same weights and accuracies, from one decomposition."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from card_text import paragraph, table
from clips import write_clip
from devices import merged_on
from plans import fetched_plan
from running import Commands
from three_towers import TOWERS
from towers import TINY, write_tower

from hfcart.cli.sweep import _numbers
from hfcart.clip.tensor_names import is_matrix
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.engine.grid import MergeGrid, take_apart
from hfcart.engine.writing import GroupWriter
from hfcart.errors import VerifyError
from hfcart.methods import METHODS
from hfcart.methods.cart.rule import cart, updates
from hfcart.progress import Progress
from hfcart.recipes.finished_merge import read_record
from hfcart.recipes.finished_sweep import read_sweep
from hfcart.records import Environment, SweepPoint, SweepRecord
from hfcart.report.sweep_table import remarks, rows
from hfcart.system.device import Machine
from hfcart.system.tensor_files import TensorFiles
from hfcart.system.work_folder import WorkFolder

SMALL = {**TINY, "num_hidden_layers": 1}


def thetas(tasks: int = 3, m: int = 20, n: int = 14) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(m, n, generator=generator)
    return base + 0.05 * torch.randn(tasks, m, n, generator=generator)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_every_rank_of_one_decomposition_is_cart(scale: float) -> None:
    towers, ranks = thetas(), [0.5, 1, 3, 1.0, 0.08]
    anchor, found = updates(towers, ranks=ranks)
    for rank, update in zip(ranks, found, strict=True):
        assert torch.allclose(anchor + scale * update, cart(towers, rank=rank, scale=scale).tensor, atol=2e-6)
    assert float(found[0].norm()) > 0.01  # and no rank gives nothing
    assert float(found[3].norm()) < 1e-5  # but full rank: the task vectors add up to zero


def test_two_towers_get_their_average_whatever_the_rank() -> None:
    """Their centred task vectors are opposite: what one approximation adds, the other takes away."""
    towers = thetas(tasks=2)
    for rank in (1, 0.3, 1.0):
        assert torch.allclose(cart(towers, rank=rank, scale=2.0).tensor, towers.mean(dim=0), atol=2e-6)
        assert (
            not torch.allclose(cart(thetas(), rank=rank, scale=2.0).tensor, thetas().mean(dim=0), atol=1e-3)
            or rank == 1.0
        )
    assert METHODS["cart"].fewest == 3


def test_reverse_keeps_the_lowest_directions() -> None:
    """Restated in float64 by a full SVD."""
    towers = thetas()
    _, found = updates(towers, ranks=[1, 5, 1.0], reverse=True)
    mean = towers.double().mean(dim=0)
    for k, update in zip((1, 5, 14), found, strict=True):
        right = torch.zeros_like(mean)
        for theta in towers.double():
            u, s, vh = torch.linalg.svd(theta - mean, full_matrices=False)
            right += u[:, -k:] * s[-k:] @ vh[-k:]
        assert torch.allclose(update.double(), right, atol=1e-5)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.swept and name != "cart"])
def test_a_scale_of_one_run_is_the_merge_with_that_scale(tmp_path: Path, method: str) -> None:
    """What adds λ times something to the base, entry by entry, whatever it must know of the whole towers."""
    folders = [write_tower(tmp_path / f"t{i}", i, SMALL) for i in (1, 2, 3)]
    fields = {"method": method, "base": str(write_tower(tmp_path / "t0", 0, SMALL))}
    scales = (0.3, 2.5)
    plan = fetched_plan(folders, **fields)
    grid = MergeGrid(plan, (), scales, reverse=False)
    machine = Machine(torch.device("cpu"), "float32", 3, 16)
    with WorkFolder(tmp_path / "grid", (), overwrite=False) as folder:
        folder.begin("work")
        with TensorFiles(folder.path, grid.layout()) as tensors:
            take_apart(grid, GroupWriter(plan, folder, tensors), machine, Progress())
            base, *found = (tower.state_dict() for tower in grid.towers(tensors, grid.points, 0, machine.device))
    plan.close()
    for scale, tower in zip(scales, found, strict=True):
        expected, _, _ = merged_on(machine.device, folders, tmp_path / f"m{scale}", **fields, scale=scale)
        for name, tensor in expected.items():
            short = name.removeprefix("vision_model.")
            update = tensor.double() - base[short].double()
            error = (tensor.double() - tower[short].double()).norm()
            assert error <= 1e-6 * update.norm() + 1e-7 * base[short].double().norm(), name
            assert update.norm() > 0 or not is_matrix(name), name


@pytest.mark.parametrize(
    ("option", "text", "numbers"),
    [
        ("--rank", "0.04,0.08,1.0,3", [0.04, 0.08, 1.0, 3]),
        ("--rank", "0.01:0.16:5", [0.01, 0.02, 0.04, 0.08, 0.16]),
        ("--rank", "0.02:0.64", [0.02, 0.04, 0.08, 0.16, 0.32, 0.64]),
        ("--scale", "0.5:2.5", [0.5, 1.0, 1.5, 2.0, 2.5]),
        ("--scale", "1:2:3", [1.0, 1.5, 2.0]),
    ],
)
def test_ranges(option: str, text: str, numbers: list[float]) -> None:
    found = _numbers(text, option)
    assert found == pytest.approx(numbers)
    assert [type(number) for number in found] == [type(number) for number in numbers]


def test_a_point_of_the_sweep_is_the_merge_of_that_setting(zoo, commands: Commands, tmp_path: Path) -> None:
    hub, root = zoo
    task, towers = f"{root}/images1.yaml", TOWERS
    grid = ["--rank", "1,0.25,1.0,1.0", "--scale", "1,2", "--part", "test", "--precision", "float32"]
    points = {2: ["--rank", "1", "--scale", "2"], 4: ["--rank", "0.25", "--scale", "2"], 0: ["--method", "average"]}
    sweep, half = ["sweep", *towers, "--tasks", task], ["--rank", "0.5", "--scale", "1", "--reverse", "--limit", "4"]
    lines = [[*sweep, *grid, "--json"], [*sweep, *grid], [*sweep, *half, "--out", "r"]]
    lines += [["merge", *towers, *setting, "--eval", task, "--out", f"m{i}"] for i, setting in points.items()]
    done, again, reverse, *merges = commands(hub, lines)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["anchor"] == "average" and [p["scale"] for p in record["points"]] == [0.0, *[1.0, 2.0] * 3]
    assert [repr(rank) for rank in record["ranks"]] == ["1", "0.25", "1.0"]  # one direction, and all of them
    anchor, *others = [point["correct"] for point in record["points"]]
    assert others[4] == others[5] == anchor != others[1]  # full rank is the average, one direction is not
    assert "do not report a setting chosen here" in done.stderr
    means = [sum(p["correct"]) / sum(record["images"]) for p in record["points"]]
    assert means[record["best"]] == max(means[1:])
    for merged, point in zip(merges, points, strict=True):
        assert merged.returncode == 0, merged.stderr
        (result,) = json.loads((tmp_path / f"m{point}" / "results.json").read_text())["results"]
        assert [sum(c["correct"] for c in result["classes"])] == record["points"][point]["correct"]
    check_taken(hub, commands, tmp_path, record)
    files = {str(path.relative_to(tmp_path / "sweep")) for path in (tmp_path / "sweep").rglob("*.*")}
    assert files == {"sweep.json", "figures/curve.png", "figures/grid.png", "tasks/images1.yaml"}
    assert again.returncode == 1 and "exists already" in again.stderr
    for point in record["points"]:
        gap = abs(point["correct"][0] - record["points"][record["best"]]["correct"][0])
        assert gap <= point["discordant"][0] <= 61 and (gap - point["discordant"][0]) % 2 == 0
    assert record["points"][record["best"]]["p"] is None
    assert record["points"][0]["discordant"] == record["points"][5]["discordant"]  # full rank is the average
    assert reverse.returncode == 0 and "hfcart merge" not in reverse.stdout, reverse.stderr
    assert "Partial: samples of at most 4 images" in reverse.stdout


def check_taken(hub: EmbeddedHub, commands: Commands, folder: Path, swept: dict) -> None:
    """A merge takes rank and scale from a sweep of its sources, and its card says so."""
    best = swept["points"][swept["best"]]
    merge = ["merge", *TOWERS]
    lines = [
        [*merge, "--sweep", "sweep", "--out", "taken"],
        [*merge, "--rank", str(best["rank"]), "--scale", str(best["scale"]), "--out", "typed"],
        [*merge, "--sweep", "sweep", "--rank", "0.5"],
        [*merge, "--sweep", "sweep", "--method", "task_arithmetic"],
        ["merge", *TOWERS[:2], "--sweep", "sweep"],
        [*merge, "--sweep", "taken"],
        [*merge, "--sweep", "r"],
        [*merge, "--recipe", "taken/recipe.yaml", "--out", "again"],
        ["verify", "taken"],
    ]
    taken, typed, *refused, again, verified = commands(hub, lines)
    assert verified.returncode == 0 and "Identical" in verified.stdout, verified.stderr
    assert [run.stderr for run in (taken, typed, again) if run.returncode] == []
    weights = {(folder / name / "model.safetensors").read_bytes() for name in ("taken", "typed", "again")}
    assert len(weights) == 1
    assert all(run.returncode == 2 for run in refused), [run.stderr for run in refused]
    for run, said in zip(
        refused,
        (
            "sweep gives rank and scale: leave rank out.",
            "sweep was made with method cart, not with",
            "sweep is a sweep of user/t1, user/t2, user/t3, not of what is merged: user/t1, user/t2.",
            "taken holds no sweep.json.",
            "r kept the lowest singular directions",
        ),
        strict=True,
    ):
        assert said in " ".join(run.stderr.split())
    record = read_record((folder / "taken" / "hfcart.json").read_bytes(), "hfcart.json")
    assert record.swept is not None and record.swept.points == 6
    assert record.swept.sha256 == hashlib.sha256((folder / "sweep" / "sweep.json").read_bytes()).hexdigest()
    card = (folder / "taken" / "README.md").read_text()
    settings = table(card, "How", "Setting")
    assert [row[2] for row in settings[1:]] == ["best of a sweep, see below"] * 2
    said = paragraph(card, "How")
    assert f"The sweep tried 6 settings on {sum(swept['images'])} test images of 1 task (`images1`)" in said
    assert "**These were test images**" in said
    assert "sweep" not in paragraph((folder / "typed" / "README.md").read_text(), "How")


def test_a_stranger_s_sweep_is_not_believed(tmp_path: Path) -> None:
    points = (SweepPoint(None, 0.0, (4,)), SweepPoint(0.08, 1.0, (6,)), SweepPoint(0.08, 2.0, (5,)))
    fields = ("cart", "average", False, "split", (("a", None),), "b", "validation", ("x",), (10,), None)
    environment = Environment("0.1.0", "2", "3.11", "Linux", "cpu", "x", "gram")
    good = SweepRecord(*fields, (0.08,), (1.0, 2.0), points, 1, environment)
    path = tmp_path / "sweep.json"
    path.write_text(good.to_json())
    record, swept = read_sweep(tmp_path)
    assert record == good and (swept.accuracy, swept.anchor, swept.points) == (0.6, 0.4, 2)
    plain = json.loads(good.to_json())
    older = [{name: point[name] for name in ("rank", "scale", "correct")} for point in plain["points"]]
    path.write_text(json.dumps({**plain, "points": older}))
    assert read_sweep(tmp_path)[0] == good  # written before points were told from each other image by image
    assert rows(good)[0] == ("8 %", "60.0", "50.0") and len(remarks(good)) == 1  # of which nothing is said, then
    for change in (
        {"best": 3}, {"best": 0}, {"images": []}, {"images": [5]}, {"images": [0]}, {"tasks": ["../x"]},
        {"part": "all"}, {"scales": []}, {"points": plain["points"][:2]}, {"format": 2}, {"images": 10},
        {"sources": None},
        *({"points": [*plain["points"][:2], {**plain["points"][2], **point}]} for point in (
            {"correct": []}, {"discordant": [1, 2]}, {"p": 1.5}, {"p": "x"})),
    ):  # fmt: skip
        path.write_text(json.dumps({**plain, **change}))
        with pytest.raises(VerifyError, match="is not the record of a sweep"):
            read_sweep(tmp_path)
    for text in ("", "[]", "{", "null", '{"a": 1e999}'):
        path.write_text(text)
        with pytest.raises(VerifyError, match="is not the record of a sweep"):
            read_sweep(tmp_path)


REFUSED: list[tuple[list[str], int, list[str]]] = [
    (["--method", "average"], 2, ["A sweep takes cart, breadcrumbs,", "'average' is not"]),
    (["--rank", "0.5:0.1"], 2, ["neither a list nor low:high"]),
    (["--rank", "2.0"], 2, ["--rank", "not in (0, 1]"]),
    (["--rank", "500"], 2, ["--rank", "1..32"]),
    (["--method", "task_arithmetic", "--reverse"], 2, ["no singular directions"]),
    (["--part", "dev"], 2, ["--part is 'dev'"]),
    (["--base", "user/other"], 1, ["user/other is not the CLIP model behind the towers", "at random", "--base"]),
]


def test_errors(zoo, commands: Commands, tmp_path: Path) -> None:
    hub, root = zoo
    other = write_clip(tmp_path / "other", 1, {**TINY, "patch_size": 4})  # the same widths, another patch size
    hub.create("user/other")
    hub.commit("user/other", {path.name: path for path in other.iterdir()})
    lines = [["sweep", *TOWERS, "--tasks", f"{root}/images1.yaml", *options] for options, _, _ in REFUSED]
    for done, (_, code, words) in zip(commands(hub, lines), REFUSED, strict=True):
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr and all(word in done.stderr for word in words), done.stderr


def test_methods_that_can_be_swept_say_how() -> None:
    swept = {name for name, method in METHODS.items() if method.swept}
    assert swept == {name for name, method in METHODS.items() if method.parameter("scale")} - {"esm"}  # it needs images
    rank = METHODS["cart"].parameter("rank")
    assert rank and not dataclasses.replace(METHODS["tsv_m"], parameters=(rank, *METHODS["tsv_m"].parameters)).swept


def sweep_of(*points: SweepPoint, best: int = 1, scales: tuple[float, ...] = (1.0, 2.0), **more: object) -> SweepRecord:
    fields = ("cart", "average", False, "split", (("a", None),), "b", "validation", ("x",), (100,), None)
    environment = Environment("0.1.0", "2", "3.11", "Linux", "cpu", "x", "gram")
    return dataclasses.replace(SweepRecord(*fields, (0.08,), scales, points, best, environment), **more)


def test_what_the_images_say_of_a_sweep() -> None:
    anchor = SweepPoint(None, 0.0, (40,), (30,), 0.0)
    best, other = SweepPoint(0.08, 1.0, (60,), (0,)), SweepPoint(0.08, 2.0, (50,), (14,), 0.3)
    alike = sweep_of(anchor, best, other)
    assert rows(alike) == [("8 %", "60.0 ≈", "50.0 ≈")]
    assert remarks(alike)[1] == (
        "Rank 8 % at scale 1 and rank 8 % at scale 2 are not distinguishable on 100 validation images. The average "
        "alone is worse than rank 8 % at scale 1."
    )
    clear = sweep_of(anchor, best, dataclasses.replace(other, p=0.01))
    assert rows(clear) == [("8 %", "60.0 *", "50.0")] and "is better than rank 8 % at scale 2 on" in remarks(clear)[1]
    # No gain over the anchor is no ground for a star, and where the anchor is better nothing is marked.
    idle = sweep_of(dataclasses.replace(anchor, p=0.2), best, dataclasses.replace(other, p=0.01))
    assert rows(idle) == [("8 %", "60.0 ≈", "50.0")]
    assert "The average alone is not distinguishable from rank 8 % at scale 1." in remarks(idle)[1]
    worse = sweep_of(dataclasses.replace(anchor, correct=(90,)), best, other)
    assert rows(worse) == [("8 %", "60.0", "50.0")]
    assert "The average alone is better than rank 8 % at scale 1." in remarks(worse)[1]
    # At an end of the scales there may be more beyond it.
    three = (1.0, 2.0, 3.0)
    points = [SweepPoint(0.08, scale, (50,), (5,), 0.3) for scale in three]
    told = {i: remarks(sweep_of(anchor, *points, best=i, scales=three))[-1] for i in (1, 2, 3)}
    assert told[1] == "The best scale is the smallest of those tried: smaller ones may be better."
    assert "may be better" not in told[2] and "the largest of those tried: larger ones" in told[3]
    single = sweep_of(anchor, best, scales=(1.0,))
    assert "tried" not in str(remarks(single))
    assert remarks(single)[1] == "The average alone is worse than rank 8 %." and rows(single) == [("8 %", "60.0 *")]
    test = sweep_of(anchor, best, dataclasses.replace(other, p=0.01), part="test")
    assert rows(test) == [("8 %", "60.0", "50.0")] and "than" not in str(remarks(test))
