"""Consensus thresholds chosen on labelled validation images: restated in float64, repeated without one, resumed."""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from clips import parquet, write_images
from PIL import Image
from running import TOKEN, Commands, ended
from safetensors.torch import load_file
from three_towers import COLOURS, TOWERS, card, prompted
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, CLIPVisionModel

from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.errors import UsageError
from hfcart.methods import METHODS
from hfcart.methods.consensus.rule import masked
from hfcart.recipes.merge_recipe import make
from hfcart.tasks.task_cards import TaskCard

pytestmark = pytest.mark.usefixtures("own_cache")
CANDIDATES = [0.2, 0.3, 0.4, 0.5, 0.6]
Zoo = tuple[EmbeddedHub, Path]


def stack(seed: int, tasks: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return base + 0.02 * torch.randn(tasks, *shape, generator=generator), base


# --- the rules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("shape", [(37,), (300, 250)])
def test_a_candidate_is_its_formula(threshold: float, shape: tuple[int, ...]) -> None:
    thetas, base = stack(1, 4, *shape)
    taus = (thetas.double() - base.double()).numpy()
    total = taus.sum(0)
    for task in (0, 3):
        keep = abs(taus[task]) > threshold * abs(total - taus[task])
        assert keep.all() == (threshold == 0.0) and keep.any()
        found = masked(thetas, base=base, task=task, threshold=threshold)
        assert torch.allclose(found.double(), base.double() + torch.from_numpy(total * keep), atol=3e-7)
    assert torch.equal(masked(thetas[:1], base=base, task=0, threshold=threshold), thetas[0])  # alone it is that tower


def test_of_equal_candidates_the_nearest_to_the_default_wins() -> None:
    chosen, default = METHODS["consensus"].chosen, METHODS["consensus"].parameter("threshold")
    assert chosen is not None and default is not None and sorted(chosen.candidates) == CANDIDATES
    away = [(round(abs(value - float(default.default or 0)), 6), value) for value in chosen.candidates]
    assert away == sorted(away)


def test_a_threshold_is_chosen_or_given() -> None:
    fields: dict[str, Any] = {"sources": ("a", "b"), "method": "consensus"}
    assert make(fields).parameters["threshold"] == 0.4
    assert "threshold" not in make({**fields, "tasks": "8"}).parameters  # not known yet
    with pytest.raises(UsageError, match="tasks chooses the threshold that is given already"):
        make({**fields, "tasks": "8", "threshold": 0.3})


# --- the command ----------------------------------------------------------------------------------------------------


def validation_images(i: int) -> list[tuple[Image.Image, int]]:
    """A tenth of the train split, always the same, read from what was uploaded."""
    table = pq.read_table(io.BytesIO(write_images(400, 4, 20 + i, names=COLOURS))).to_pylist()
    rows = sorted(random.Random(0).sample(range(400), 40))
    return [(Image.open(io.BytesIO(table[row]["image"]["bytes"])).convert("RGB"), table[row]["label"]) for row in rows]


def counts(root: Path, clip: Path, order: list[int]) -> list[list[int]]:
    """For each tower in this order, what θ_0 + m_t ⊙ Σ τ recognises of its task with each candidate, in float64."""
    whole = CLIPModel.from_pretrained(clip)
    base = {name: weight.double() for name, weight in whole.vision_model.state_dict().items()}
    taus = [
        {n: w.double() - base[n] for n, w in load_file(root / f"t{i}" / "model.safetensors").items()} for i in order
    ]
    total = {name: sum(tau[name] for tau in taus) for name in base}
    processor = CLIPImageProcessorPil.from_pretrained(root / "t1")
    model = CLIPVisionModel.from_pretrained(root / "t1").double().eval()
    projection = whole.visual_projection.weight.double()
    found = []
    for i, tau in zip(order, taus, strict=True):
        pictures, labels = zip(*validation_images(i), strict=True)
        pixels = processor(images=list(pictures), return_tensors="pt")["pixel_values"].double()
        head = prompted(whole, CLIPTokenizer.from_pretrained(clip), TaskCard(**card(f"user/many{i}"))).double()
        row = []
        for threshold in CANDIDATES:
            mask = {n: tau[n].abs() > threshold * (total[n] - tau[n]).abs() for n in base}
            model.load_state_dict({n: base[n] + total[n] * mask[n] for n in base})
            with torch.no_grad():
                features = model(pixel_values=pixels).pooler_output @ projection.T
            row.append(int(((features @ head.T).argmax(1) == torch.tensor(labels)).sum()))
        found.append(row)
    return found


def test_the_whole_way(zoo: Zoo, tasks: str, clip: Path, commands: Commands, tmp_path: Path) -> None:
    """Planned, chosen as a restatement does, and verified without a request for an image."""
    hub, root = zoo
    command = ["merge", *TOWERS, "--method", "consensus", "--tasks", tasks]
    hub.clear()
    plan, done = commands(hub, [[*command, "--dry-run"], [*command, "--out", "a"]])
    told = " ".join(plan.stdout.split())
    assert plan.returncode == 0 and "labels of validation images" in told and "user/t1 on many1" in told, plan.stderr
    assert "threshold 0.4" not in told and not (tmp_path / "merged.partial").exists()
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "a" / "hfcart.json").read_text())
    order = [int(source["label"][-1]) for source in record["sources"]]
    expected = counts(root, clip, order)
    assert len({tuple(row) for row in expected}) > 1 and any(len(set(row)) > 2 for row in expected)
    selection = record["selection"]
    assert (selection["parameter"], selection["candidates"], selection["part"]) == (
        "threshold",
        CANDIDATES,
        "validation",
    )
    assert [each["correct"] for each in selection["sources"]] == expected
    for i, each in zip(order, selection["sources"], strict=True):
        assert (each["source"], each["task"], each["images"]) == (f"user/t{i}", f"many{i}", 40)
        assert each["dataset"]["commit"] == hub.head(f"user/many{i}", repo_type="dataset")
        assert each["dataset"]["split"] == "train"
    best = [max(zip(row, [-2, -1, 0, -1.5, -3], CANDIDATES, strict=True))[2] for row in expected]
    assert record["recipe"]["threshold"] == best == [each["value"] for each in selection["sources"]]
    assert "tasks" not in record["recipe"] and record["method"]["parameters"]["threshold"] == best
    readme = (tmp_path / "a" / "README.md").read_text()
    assert "Labelled validation images chose it" in readme and "no test image was read" in readme
    assert f"**{100 * max(expected[0]) / 40:.1f}**" in readme and "\n\n\n" not in readme
    assert not (tmp_path / "a" / "choosing").exists()

    assert any("many" in request.path for request in hub.requests)
    hub.clear()
    (verified,) = commands(hub, [["verify", "a"]])
    assert verified.returncode == 0 and "Identical" in verified.stdout, verified.stderr
    assert not [request.path for request in hub.requests if "many" in request.path]


def test_a_killed_choice_goes_on(zoo: Zoo, tasks: str, commands: Commands, clean_env, tmp_path: Path) -> None:
    """Killed before the third source: the first two are not measured again, for they do not depend on the scale."""
    hub, _ = zoo
    script = """
import os, signal, sys
from hfcart.commands.merge import merge_folder
from hfcart.progress import Progress
from hfcart.recipes.merge_recipe import make

class Fatal(Progress):
    chosen = 0
    def start(self, label, total, unit):
        self.chosen += "values of threshold" in label
        if self.chosen == 3:
            os.kill(os.getpid(), signal.SIGKILL)

fields = {"sources": sys.argv[2:], "method": "consensus", "tasks": sys.argv[1], "workers": 1, "full_clip": True}
merge_folder(make({**fields, "scale": 0.5, "out": "m"}), Fatal())
"""
    env = clean_env | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf-home"), "HF_TOKEN": TOKEN}
    killed = ended(
        [sys.executable, "-c", script, tasks, *TOWERS],
        warm=True,
        cwd=tmp_path,
        env=env,
    )
    assert killed.returncode == -9, killed.stderr
    journal = tmp_path / "m.partial" / "choosing" / "counts.jsonl"
    assert len(journal.read_text().splitlines()) == 3  # the fingerprint's and two
    with journal.open("a") as file:
        file.write('{"of":"torn')
    merge = ["merge", *TOWERS[::-1], "--method", "consensus", "--tasks", tasks, "--full-clip", "--workers", "2"]
    done, whole = commands(hub, [[*merge, "--out", "m"], [*merge, "--out", "n"]])
    assert (done.returncode, whole.returncode) == (0, 0), done.stderr + whole.stderr
    assert [run.stderr.count("values of threshold for") for run in (done, whole)] == [1, 3]
    assert all(f"({place} of 3)" in whole.stderr for place in (1, 2, 3))
    for name in ("hfcart.json", "README.md", "model.safetensors"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "n" / name).read_bytes()
    assert json.loads((tmp_path / "m" / "hfcart.json").read_text())["model_class"] == "CLIPModel"


REFUSED: list[tuple[list[str], int, list[str]]] = [
    (["--tasks", "{all}", "--threshold", "0.3"], 2, ["tasks chooses the threshold", "leave one of them out"]),
    (["--tasks", "{root}/many1.yaml"], 2, ["trained into user/t1, user/t2, user/t3"]),
    (["--tasks", "{all},user/t1={root}/shut.yaml"], 2, ["user/t1 is given two tasks"]),
    (["--tasks", "{rest},user/t1={root}/shut.yaml"], 2, ["shut names no train split", "validation images"]),
    (["--tasks", "{rest},user/t1={root}/dark.yaml"], 1, ["Of 1 image of", "--tasks user/t1=TASK"]),
    (["--tasks", "{all}", "--base", "user/t2"], 1, ["user/t2", "vision tower only"]),
    (["--tasks", "{all}", "--method", "ties"], 2, ["ties looks at no images: leave tasks out"]),
]


def test_what_is_refused(zoo: Zoo, tasks: str, commands: Commands, tmp_path: Path) -> None:
    hub, root = zoo
    hub.create("user/dark", repo_type="dataset")
    data = {f"data/{part}-0.parquet": parquet([b"no image"] * 10, [0] * 10, COLOURS) for part in ("test", "train")}
    hub.commit("user/dark", data, repo_type="dataset")
    shut = {**card("user/images1", "shut"), "dataset": {"repo": "user/images1", "train_split": None}}
    for fields in (shut, card("user/dark", "dark")):
        (root / f"{fields['id']}.yaml").write_text(json.dumps(fields))
    lines = []
    for options, _, _ in REFUSED:
        method = [] if "--method" in options else ["--method", "consensus"]
        rest = tasks.partition(",")[2]
        lines.append(["merge", *TOWERS, *method, *(o.format(root=root, all=tasks, rest=rest) for o in options)])
    for done, (_, code, words) in zip(commands(hub, lines), REFUSED, strict=True):
        told = " ".join(done.stderr.split())
        assert done.returncode == code and "Traceback" not in told, done.stderr
        assert all(word in told for word in words), done.stderr
    assert not (tmp_path / "merged").exists()


def test_a_point_of_a_sweep_is_its_merge(zoo: Zoo, tasks: str, commands: Commands, tmp_path: Path) -> None:
    """With thresholds of each source's own, in the order typed; another order of the same would be another merge."""
    hub, root = zoo
    task, own = f"{root}/images2.yaml", ["--threshold", "1.5,3,2", "--agree", "1"]
    sweep = ["sweep", *TOWERS, "--method", "consensus", "--tasks", task, "--part", "test", *own]
    merge = ["merge", *TOWERS, "--method", "consensus", *own, "--scale", "1", "--eval", task, "--out", "m"]
    anew = ["merge", "--recipe", "m/recipe.yaml", "--tasks", tasks, "--dry-run"]
    choose = [*sweep, "--part", "validation", "--scale", "1", "--out", "v"]
    swept, merged, plan, chosen = commands(hub, [[*sweep, "--scale", "0.3,1", "--json"], merge, anew, choose])
    assert swept.returncode == merged.returncode == chosen.returncode == 0, swept.stderr + merged.stderr + chosen.stderr
    record = json.loads(swept.stdout)
    assert record["anchor"] == "base" and record["ranks"] == [] and record["parameters"]["agree"] == 1
    thresholds = dict(zip([source[0] for source in record["sources"]], record["parameters"]["threshold"], strict=True))
    assert thresholds == dict(zip(TOWERS, (1.5, 3.0, 2.0), strict=True))
    proposed = " ".join((chosen.stdout + chosen.stderr).split())
    assert "--threshold 1.5,3,2 --agree 1" in proposed and "--method consensus" in proposed
    assert "--method consensus" not in swept.stderr  # nothing is chosen on test images
    (result,) = json.loads((tmp_path / "m" / "results.json").read_text())["results"]
    points = [point["correct"] for point in record["points"]]
    assert [sum(c["correct"] for c in result["classes"])] == points[2] not in points[:2]
    # The thresholds of that merge's recipe give way to tasks.
    assert plan.returncode == 0 and "choose each source's threshold" in " ".join(plan.stdout.split()), plan.stderr
