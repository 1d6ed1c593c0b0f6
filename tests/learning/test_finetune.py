"""Fine-tuning: what is minimised is what the papers minimise, nothing but the tower moves, a kill changes nothing."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from clips import image, parquet, png, tokenizer, write_clip, write_images
from running import HELPERS, Run, ended
from safetensors.torch import load_file
from torch.nn import functional
from transformers import CLIPImageProcessor, CLIPModel, CLIPVisionModel

from hfcart.clip.architecture import expected_shapes
from hfcart.clip.tensor_groups import named_tensors
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.errors import UsageError, VerifyError
from hfcart.formats.card_facts import card_facts
from hfcart.learning.batches import Mixture
from hfcart.learning.finetune.objective import example_losses, learning_rate, weights
from hfcart.learning.finetune.recipe import make
from hfcart.learning.finetune.state import TrainingState
from hfcart.recipes.finished_finetuning import is_finetune_record, read_finetune_record
from hfcart.report.finetune_card import render_finetune_card
from hfcart.system.checkpoints import Checkpoints

TOKEN = "hf_user_secret"
WARM, COLD = ["red", "green", "blue"], ["yellow", "purple", "cyan", "red"]
COLD_COLOURS = [3, 4, 5, 0]
KILLS = [3, 9, 20, 33]
FROZEN = {"freeze": "Embeddings,vision_model.encoder.layers.0.mlp", "keep": "best", "validate_every": 4}
BEST_KILLS, TRACKED_KILLS = [2, 15, 38], [6, 24]

Jobs = Callable[..., list[dict[str, Any]]]


class World:
    """A Hub with a base and two tasks, and the trainings that every test looks at."""

    def __init__(self, root: Path, hub: EmbeddedHub, env: dict[str, str]) -> None:
        self.root, self.hub, self.env = root, hub, env
        self.base = write_clip(root / "base", 0)
        self.results: dict[str, dict[str, Any]] = {}

    def run(self, jobs: dict[str, dict[str, Any]]) -> None:
        """Run fine-tunings in one process; `kill` among the fields kills one at that step."""
        listed = []
        for name, fields in jobs.items():
            kill = fields.pop("kill", None)
            fields = {"base": "user/base", "tasks": ["warm.yaml"], "steps": 40, "batch_size": 16, "lr": 1e-3} | fields
            listed.append({"fields": {"out": name, **fields}, "kill": kill})
        path = self.root / "jobs.json"
        path.write_text(json.dumps(listed))
        command = [sys.executable, str(HELPERS / "finetuner.py"), str(path)]
        done = ended(command, warm=True, cwd=self.root, env=self.env)
        assert done.returncode == 0, done.stderr
        self.results |= dict(zip(jobs, json.loads(done.stdout), strict=True))

    def losses(self, name: str) -> list[float]:
        with (self.root / name / "results" / "training.csv").open() as file:
            return [float(row["loss"]) for row in csv.DictReader(file)]

    def record(self, name: str) -> dict[str, Any]:
        return json.loads((self.root / name / "hfcart.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, clean_env: dict[str, str]) -> Iterator[World]:
    root = tmp_path_factory.mktemp("finetune")
    with EmbeddedHub(root / "content") as hub:
        hub.add_user("user", token=TOKEN)
        env = {**clean_env, "HF_ENDPOINT": hub.url, "HF_HOME": str(root / "home"), "HF_TOKEN": TOKEN}
        made = World(root, hub, env)
        hub.create("user/base")
        card = {"README.md": b"---\nlicense: mit\n---\n"}
        hub.commit("user/base", {**{path.name: path for path in made.base.iterdir()}, **card})
        spoilt = [png(image(i % 3, i)) for i in range(40)]
        spoilt[7], spoilt[11], spoilt[20] = b"", b"no image", spoilt[20][:60]
        data = {
            "warm": (WARM, write_images(60, 3, 1, names=WARM)),
            "cold": (
                COLD,
                parquet([png(image(COLD_COLOURS[i % 4], i)) for i in range(24)], [i % 4 for i in range(24)], COLD),
            ),
            "spoilt": (WARM, parquet(spoilt, [i % 3 for i in range(40)], WARM)),
        }
        for name, (classes, train) in data.items():
            hub.create(f"user/{name}", repo_type="dataset")
            test = write_images(12, 3, 9, names=classes)
            files = {"data/train-00000-of-00001.parquet": train, "data/test-00000-of-00001.parquet": test}
            hub.commit(f"user/{name}", files, repo_type="dataset")
            task = {"id": name, "title": name.title(), "dataset": {"repo": f"user/{name}"}, "templates": ["a {}."]}
            (root / f"{name}.yaml").write_text(yaml.safe_dump({**task, "classnames": classes}))
        everything = {"steps": 1, "batch_size": 54, "warmup": 0}
        made.run({
            "plain": {},
            "again": {"workers": 1, "save_every": 7},
            "other-order": {"seed": 1},
            "half": {"precision": "bfloat16"},
            "joint": {"tasks": ["warm.yaml", "cold.yaml"]},
            "one-step": everything,
            "one-joint-step": {**everything, "tasks": ["warm.yaml,cold.yaml"], "batch_size": 76},
            "blind": {"validate_every": 0},
            "best": {"keep": "best", "validate_every": 4, "lr": 3e-3},
            **{
                f"best-kill-{step}": {
                    "out": "best-killed", "keep": "best", "validate_every": 4, "lr": 3e-3, "save_every": 1, "kill": step
                }
                for step in BEST_KILLS
            },
            "best-resumed": {
                "out": "best-killed", "keep": "best", "validate_every": 4, "lr": 3e-3, "save_every": 3, "workers": 1,
            },
            **{
                f"tracked-kill-{step}": {"out": "tracked", "track": ["tensorboard"], "save_every": 6, "kill": step}
                for step in TRACKED_KILLS
            },
            "tracked": {"track": ["tensorboard"]},
            "untracked": {"track": ["wandb"], "steps": 2},
            "spoilt": {"tasks": ["spoilt.yaml"]},
            "diverged": {"lr": 1e30, "save_every": 2, "warmup": 0},
            # Weight decay so strong that it turns the weights around and makes them 29 times as large, every step.
            "grown": {"lr": 30, "weight_decay": 1, "save_every": 1, "warmup": 0, "max_grad_norm": 0},
            "one": {"tasks": ["warm.yaml", "cold.yaml"], "steps": 12},
            **{f"kill-{step}": {"out": "killed", "save_every": 1, "kill": step} for step in KILLS},
            "other-recipe": {"out": "killed", "lr": 2e-3},
            "resumed": {"out": "killed", "save_every": 1},
            "frozen": FROZEN,
            "frozen-kill": {"out": "frozen-killed", **FROZEN, "save_every": 1, "kill": 9},
            "frozen-other": {"out": "frozen-killed", **FROZEN, "freeze": "embeddings", "save_every": 1},
            "frozen-resumed": {"out": "frozen-killed", **FROZEN, "save_every": 1},
            "frozen-typo": {"freeze": "embedings"},
            "frozen-all": {"freeze": "embeddings,encoder,pre_layrnorm,post_layernorm"},
            "replaced-kill": {"out": "replaced", "lr": 2e-3, "save_every": 5, "kill": 10},
            "replaced": {"out": "replaced", "overwrite": True},
        })  # fmt: skip
        yield made


# ---------------------------------------------------------------------------------------------- the objective


def zero_shot(base: Path, vision: dict[str, torch.Tensor] | None = None) -> CLIPModel:
    model = CLIPModel.from_pretrained(base).eval()
    if vision is not None:
        missing, unexpected = model.load_state_dict(vision, strict=False)
        assert not unexpected and not any("vision_model" in name for name in missing)
    return model


def logits(model: CLIPModel, pixels: torch.Tensor, names: list[str]) -> torch.Tensor:
    """CLIPModel's own scores for single-prompt heads."""
    words = tokenizer()([f"a {name}." for name in names], padding=True, return_tensors="pt")
    return model(pixel_values=pixels, **words).logits_per_image


def training_images(base: Path, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and labels of a task's training part, made once more without hfcart's readers."""
    from hfcart.tasks.data import part_rows

    processor = CLIPImageProcessor.from_pretrained(base)
    rows = list(part_rows("train", 60 if name == "warm" else 24))
    if name == "warm":
        pictures, labels = [image(i % 3, 1_000_003 + i) for i in rows], [i % 3 for i in rows]
    else:
        pictures, labels = [image(COLD_COLOURS[i % 4], i) for i in rows], [i % 4 for i in rows]
    return processor(images=pictures, return_tensors="pt")["pixel_values"], torch.tensor(labels)


def test_the_first_step_is_the_published_one(world: World) -> None:
    """Loss, clipped gradient and AdamW's update on the whole training part, restated on transformers' CLIPModel."""
    assert world.results["one-step"]["error"] is None
    pixels, labels = training_images(world.base, "warm")
    assert len(labels) == 54
    model = zero_shot(world.base)
    loss = functional.cross_entropy(logits(model, pixels, WARM), labels)
    assert world.losses("one-step") == pytest.approx([loss.item()], rel=1e-5)
    loss.backward()
    tower = {name: p for name, p in model.named_parameters() if name.startswith("vision_model.")}
    norm = torch.stack([p.grad.norm() for p in tower.values()]).norm()
    assert norm > 1
    written = load_file(world.root / "one-step" / "model.safetensors")
    assert written.keys() == tower.keys()
    for name, p in tower.items():
        grad = p.grad / norm
        expected = p * (1 - 1e-3 * 0.1) - 1e-3 * grad / (grad.abs() + 1e-8)
        clear = grad.abs() > 1e-5  # the first update is ± lr: where the gradient is all rounding, so is its sign
        assert torch.allclose(written[name][clear], expected[clear], rtol=0, atol=2e-6), name
        # All of it is decayed, biases and norms too.
        assert ((written[name] - p * (1 - 1e-4)).abs() <= 1.001e-3).all(), name


def test_a_joint_step_averages_the_tasks_not_the_images(world: World) -> None:
    model = zero_shot(world.base)
    each = []
    for name, names in (("warm", WARM), ("cold", COLD)):
        pixels, labels = training_images(world.base, name)
        with torch.no_grad():
            each.append(functional.cross_entropy(logits(model, pixels, names), labels).item())
    assert abs(each[0] - each[1]) > 0.05  # or an average over images would look the same
    assert world.losses("one-joint-step") == pytest.approx([sum(each) / 2], rel=1e-5)


def test_weights_of_a_batch() -> None:
    tasks = torch.tensor([0, 0, 2, 0, 2, 2])
    usable = torch.tensor([True, True, True, False, True, True])
    found = weights(tasks, usable)
    assert torch.allclose(found, torch.tensor([1 / 4, 1 / 4, 1 / 6, 0, 1 / 6, 1 / 6]))
    assert weights(tasks, torch.zeros(6, dtype=torch.bool)).sum() == 0


def test_example_losses_take_each_image_to_its_own_head() -> None:
    torch.manual_seed(0)
    features, projection = torch.randn(5, 8), torch.randn(4, 8)
    heads = [functional.normalize(torch.randn(n, 4), dim=-1) for n in (3, 6)]
    labels, tasks = torch.tensor([0, 5, 2, 3, 1]), torch.tensor([0, 1, 0, 1, 0])
    found = example_losses(features, labels, tasks, heads, projection, 7.0)
    for i in range(5):
        v = projection @ features[i]
        scores = 7.0 * heads[tasks[i]] @ (v / v.norm())
        assert found[i].item() == pytest.approx((scores.logsumexp(0) - scores[labels[i]]).item(), rel=1e-5)


def test_learning_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [learning_rate(step, peak=2.0, warmup=10, steps=110) for step in range(110)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == rates[10] == 2.0
    assert all(a < b for a, b in pairwise(rates[:10])) and all(a > b for a, b in pairwise(rates[10:]))
    assert rates[60] == pytest.approx(1.0) and 0 < rates[-1] < 1e-3
    assert learning_rate(0, peak=2.0, warmup=0, steps=1) == 2.0


def test_the_order_is_a_pure_function_of_seed_and_step() -> None:
    sizes, size = [5, 1, 7], 4
    drawn = [place for step in range(13) for place in Mixture(sizes, 3).batch(step, size)]
    every = sorted((task, row) for task, count in enumerate(sizes) for row in range(count))
    for epoch in range(4):  # each image once an epoch, whatever the batches' borders
        assert sorted(drawn[13 * epoch : 13 * epoch + 13]) == every
    assert drawn[:13] != drawn[13:26]
    other = Mixture(sizes, 4)
    assert [place for step in range(13) for place in other.batch(step, size)] != drawn
    assert sorted(Mixture(sizes, 3).batch(0, 39)) == sorted(3 * every)  # a batch of several epochs


# -------------------------------------------------------------------------------------------------- the result


def test_it_learns(world: World) -> None:
    losses = world.losses("plain")
    assert len(losses) == 40 and sum(losses[-4:]) < 0.2 * sum(losses[:4])
    lines = world.results["plain"]["lines"]
    assert f"Step 40 of 40: loss {sum(losses[-2:]) / 2:.4f}, learning rate 2.74e-06" in lines
    method = world.record("plain")["method"]
    assert method["first_loss"] == pytest.approx(sum(losses[:4]) / 4, abs=1e-5)
    assert method["last_loss"] == pytest.approx(sum(losses[-4:]) / 4, abs=1e-5)


@pytest.mark.parametrize(("name", "tasks"), [("plain", ["warm"]), ("half", ["warm"]), ("joint", ["warm", "cold"])])
def test_the_tower_still_fits_the_frozen_rest(world: World, name: str, tasks: list[str]) -> None:
    """Inside the base's own CLIPModel, untouched text side and all, it tells the classes apart; the base does not."""
    vision = load_file(world.root / name / "model.safetensors")
    before, after = zero_shot(world.base), zero_shot(world.base, vision)
    for task in tasks:
        pixels, labels = training_images(world.base, task)
        names = WARM if task == "warm" else COLD
        with torch.no_grad():
            accuracies = [(logits(m, pixels, names).argmax(1) == labels).float().mean() for m in (before, after)]
        # Two of the cold task's four classes look alike only to a tower that learned the warm task alone.
        assert accuracies[0] < 0.7 and accuracies[1] > 0.95, (task, accuracies)


def test_it_loads_with_from_pretrained(world: World) -> None:
    model, info = CLIPVisionModel.from_pretrained(world.root / "plain", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    written = load_file(world.root / "plain" / "model.safetensors")
    record = read_finetune_record((world.root / "plain" / "hfcart.json").read_bytes(), "hfcart.json")
    assert {name: tuple(t.shape) for name, t in written.items()} == expected_shapes(
        record.architecture, projection=False
    )
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, written["vision_model." + name.removeprefix("vision_model.")])
    assert CLIPImageProcessor.from_pretrained(world.root / "plain").crop_size["height"] == 16


@pytest.mark.parametrize(
    "recipe", [{"tasks": 7}, {"base": None}, {"base": {}}, {"lr": "1\n```"}, {"x\n": 1}, {"tasks": ["a\n```"]}]
)
def test_a_recipe_that_no_fine_tuning_records_is_refused(world: World, recipe: dict[str, Any]) -> None:
    """The card's command is made of it: of these, an error that nobody expected or a line of a stranger's."""
    record = world.record("plain")
    record["recipe"] |= recipe
    with pytest.raises(VerifyError, match="is not a record of a fine-tuning"):
        read_finetune_record(json.dumps(record).encode(), "hfcart.json")


def test_precision_is_recorded_and_real(world: World) -> None:
    assert world.record("plain")["recipe"]["precision"] == "float32"
    assert world.record("half")["recipe"]["precision"] == "bfloat16"
    rough, fine = world.losses("half"), world.losses("plain")
    assert rough != fine and rough[0] == pytest.approx(fine[0], rel=0.05)


def test_workers_and_checkpoints_change_nothing(world: World) -> None:
    assert contents(world.root / "again") == contents(world.root / "plain")
    assert set(contents(world.root / "plain")) == {
        *("README.md", "config.json", "hfcart.json", "model.safetensors", "preprocessor_config.json"),
        *("results/training.csv", "figures/training.png", "tasks/warm.yaml"),
    }
    other = contents(world.root / "other-order")
    assert other["model.safetensors"] != contents(world.root / "plain")["model.safetensors"]


def test_broken_images_are_counted_and_not_learned(world: World) -> None:
    (task,) = world.record("spoilt")["tasks"]
    assert task["images"] == 36
    from hfcart.tasks.data import part_rows

    broken = len({7, 11, 20} & set(part_rows("train", 40)))
    assert broken and task["undecodable"] == broken
    told = f"Warning: {broken} images could not be decoded and taught nothing (row "
    assert any(line.startswith(told) for line in world.results["spoilt"]["lines"])
    assert f"{broken} images of Spoilt could not be decoded" in (world.root / "spoilt" / "README.md").read_text()


def test_the_card_and_the_record(world: World) -> None:
    text = (world.root / "joint" / "README.md").read_text()
    facts = card_facts(text)
    assert facts.base_models == ("user/base",) and facts.datasets == ("user/warm", "user/cold")
    assert facts.license == "mit"
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model_relation"] == "finetune" and front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "image-feature-extraction"
    assert "fine-tuned on 2 tasks jointly" in text and "| Warm | [user/warm]" in text
    data = (world.root / "joint" / "hfcart.json").read_bytes()
    assert {"format", "recipe", "method", "sources", "tensors"} <= json.loads(data).keys()  # as hfcart.hub knows ours
    record = read_finetune_record(data, "hfcart.json")
    assert record.to_json().encode() == data and render_finetune_card(record) == text
    assert is_finetune_record(data) and not is_finetune_record(b'{"format": 1}') and not is_finetune_record(b"[")
    assert record.sources[0].commit == world.hub.head("user/base")
    assert record.recipe["base"] == f"user/base@{world.hub.head('user/base')}"
    assert [task.images for task in record.tasks] == [54, 22]
    for spoil in ({"kind": "merge"}, {"tasks": []}, {"files": {"../x": "0" * 64}}, {"parameters": "many"}):
        with pytest.raises(VerifyError):
            read_finetune_record(json.dumps({**json.loads(data), **spoil}).encode(), "hfcart.json")


def test_the_command_on_the_card_makes_it_again(world: World) -> None:
    text = (world.root / "plain" / "README.md").read_text()
    command = text.split("## Make it again")[1].split("```bash\n")[1].split("```")[0]
    args = command.replace("\\\n", " ").split()
    options = dict(zip(args[3::2], args[4::2], strict=True))
    assert args[:3] == ["hfcart", "finetune", f"user/base@{world.hub.head('user/base')}"]
    assert options.pop("--tasks") == "warm" and options.pop("--out") == "again"
    typed = {k.removeprefix("--").replace("-", "_"): yaml.safe_load(v) for k, v in options.items()}
    assert make({"base": args[2], "tasks": ("warm",), **typed}).model_dump(include=set(typed)) == typed
    recorded = world.record("plain")["recipe"]
    assert typed == {k: v for k, v in recorded.items() if k not in ("base", "tasks")}


# ------------------------------------------------------------------------------------------------- validation


def digests(rows: Iterator[int] | Any) -> set[str]:
    return {hashlib.sha256(png(image(i % 3, 1_000_003 + i))).hexdigest() for i in rows}


def test_validation_sees_the_seeded_split_and_nothing_else(world: World) -> None:
    from hfcart.tasks.data import part_rows

    held_out, learned = digests(part_rows("validation", 60)), digests(part_rows("train", 60))
    assert len(held_out) == 6 and len(learned) == 54 and not held_out & learned
    assert set(world.results["plain"]["validated"]) == held_out
    assert set(world.results["plain"]["learned"]) == learned
    assert world.results["blind"]["validated"] == []
    assert not [r for r in world.hub.requests if "/resolve/" in r.path and "/test-" in r.path]


def test_it_is_validated_a_few_times_and_at_no_cost_to_the_weights(world: World) -> None:
    seen = world.record("plain")["curve"]["validation"]
    assert [look["step"] for look in seen["looks"]] == [0, 8, 16, 24, 32, 40] and seen["images"] == [6]
    lines = world.results["plain"]["lines"]
    assert "6 validation images, looked at 6 times: about 2 % more work (--validate-every 0 leaves it out)." in lines
    shown = [line for line in lines if "validation accuracy" in line]
    assert len(shown) == 6 and shown[-1].startswith("Step 40 of 40: validation accuracy 100.0 % (61.0 to 100.0)")
    blind = world.record("blind")
    assert blind["curve"]["validation"] is None and blind["curve"]["kept"] == 40
    plain, other = contents(world.root / "plain"), contents(world.root / "blind")
    assert plain["model.safetensors"] == other["model.safetensors"]
    assert plain["results/training.csv"] == other["results/training.csv"]
    assert "Validation images were not looked at" in other["README.md"].decode()


def test_keep_best_keeps_the_best_step_and_says_so(world: World, hfcart: Run) -> None:
    assert world.results["best"]["error"] is None
    data = (world.root / "best" / "hfcart.json").read_bytes()
    record = read_finetune_record(data, "hfcart.json")
    curve = record.curve
    assert curve is not None and curve.validation is not None
    accuracies = {look.step: curve.validation.accuracy(look) for look in curve.validation.looks[1:]}
    assert list(accuracies) == list(range(4, 41, 4))
    best = max(accuracies.values())
    assert curve.kept == min(step for step, value in accuracies.items() if value == best) < 40
    card = (world.root / "best" / "README.md").read_text()
    assert f"**Kept: step {curve.kept}**, the best in validation of 10" in card
    assert "](figures/training.png)" in card and render_finetune_card(record) == card
    # `hfcart eval` counts the same of the weights that were written.
    shutil.copytree(world.root / "best", world.root / "measured")
    evaluated = ["eval", "measured", "--tasks", "warm.yaml", "--part", "validation", "--json"]
    done = hfcart(*evaluated, hub=world.hub, cwd=world.root)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    look = curve.validation.at(curve.kept)
    assert look is not None and (sum(score["correct"] for score in result["classes"]),) == look.correct


def test_the_best_weights_are_a_copy_and_come_back_from_a_checkpoint() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    state = TrainingState(model, lr=0.1, weight_decay=0)
    held = []
    for step, correct in enumerate([5, 3, 8, 8, 7]):
        if step:
            model(torch.ones(1, 3)).sum().backward()
            state.optimizer.step()
            state.step = step
            state.history.append((1.0, 1.0))
        held.append({name: p.detach().clone() for name, p in state.parameters.items()})
        state.look((correct,), (9,), keep_best=True)
    assert state.validation is not None and state.validation.best is not None and state.validation.best.step == 2
    other = TrainingState(torch.nn.Linear(3, 2), lr=0.1, weight_decay=0)
    other.restore(4, state.checkpoint())
    for found in (state, other):
        assert found.best is not None and found.validation == state.validation
        assert all(torch.equal(found.best[name], tensor) for name, tensor in held[2].items())


def test_the_best_step_survives_kills(world: World) -> None:
    for step in BEST_KILLS:
        assert world.results[f"best-kill-{step}"]["killed"]
    assert any(line.startswith("Resuming: ") for line in world.results["best-resumed"]["lines"])
    assert contents(world.root / "best-killed") == contents(world.root / "best")


@pytest.mark.parametrize(
    "spoil",
    [
        {"kept": 39},
        {"steps": [], "losses": []},
        {"losses": [-1.0] * 40},
        {"steps": [*range(2, 41), 40]},
        {"steps": list(range(1, 102)), "losses": [0.5] * 101},
        {"validation": None},
        {"validation": {"images": [6], "looks": []}},
        {"validation": {"images": [0], "looks": [{"step": 40, "correct": [0]}]}},
        {"validation": {"images": [6], "looks": [{"step": 40, "correct": [7]}]}},
        {"validation": {"images": [6], "looks": [{"step": 40, "correct": [3, 3]}]}},
        {"validation": {"images": [6], "looks": [{"step": 41, "correct": [3]}]}},
        {"validation": {"images": [6, 6], "looks": [{"step": 40, "correct": [3, 3]}]}},
        {"validation": {"images": [6], "looks": [{"step": i, "correct": [3]} for i in range(1, 1004)]}},
    ],
)
def test_a_curve_that_no_training_has_is_refused(world: World, spoil: dict[str, Any]) -> None:
    record = world.record("plain")
    record["curve"] |= spoil
    with pytest.raises(VerifyError, match="is not a record of a fine-tuning"):
        read_finetune_record(json.dumps(record).encode(), "hfcart.json")


def test_a_record_of_before_there_was_a_curve_is_read_as_it_is(world: World) -> None:
    record = world.record("plain")
    del record["curve"], record["recipe"]["validate_every"], record["recipe"]["keep"]
    data = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    old = read_finetune_record(data.encode(), "hfcart.json")
    assert old.curve is None and old.to_json() == data
    assert "figures/training.png" not in render_finetune_card(old)


# --------------------------------------------------------------------------------------------------- tracking


def test_tensorboard_has_every_point_once_also_after_kills(world: World) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    assert all(world.results[f"tracked-kill-{step}"]["killed"] for step in TRACKED_KILLS)
    assert any(line.startswith("Resuming: ") for line in world.results["tracked"]["lines"])
    (run,) = [path for path in (world.root / "runs").iterdir() if path.name.startswith("tracked-")]
    assert f"Logging to tensorboard, run {run.name}: `tensorboard --logdir runs`" in world.results["tracked"]["lines"]
    points: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(run.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                points.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
    assert len(list(run.glob("events.out.tfevents.*"))) == 3  # one a process
    losses, steps = world.losses("plain"), list(range(1, 41))
    found = dict(points["train/loss"])
    # A kill may cost the point of that very moment, never double one.
    for tag, values in points.items():
        assert len({step for step, _ in values}) == len(values), tag
    assert set(found) <= set(steps) and len(found) >= 40 - len(TRACKED_KILLS)
    assert [found[step] for step in found] == pytest.approx([losses[step - 1] for step in found], rel=1e-5)
    looks = world.record("plain")["curve"]["validation"]["looks"]
    expected = {look["step"]: look["correct"][0] / 6 for look in looks}
    accuracy = dict(points["validation/accuracy"])
    assert accuracy == pytest.approx({step: expected[step] for step in accuracy}) and len(accuracy) >= 4
    assert {"train/learning_rate", "train/gradient_norm"} < set(points)
    # It changed nothing of the result, and lies outside of it.
    assert contents(world.root / "tracked") == contents(world.root / "plain")
    assert not (world.root / "runs").joinpath("plain").exists()


def test_a_tracker_that_is_not_installed_is_one_sentence(world: World) -> None:
    kind, message, hint = world.results["untracked"]["error"]
    assert kind == "UsageError"
    assert message == "--track wandb needs the package wandb, which is not installed here."
    assert hint == "pip install wandb" and not (world.root / "untracked.partial").exists()


# ------------------------------------------------------------------------------------------- kills and failures


def test_kill_9_changes_nothing(world: World) -> None:
    for step in KILLS:
        result = world.results[f"kill-{step}"]
        assert result["killed"] and not result["finished"]
        whole = [name for name in result["kept"] if name.endswith(".json")]
        assert 1 <= len(whole) <= 2
        for earlier in KILLS[: KILLS.index(step)]:
            assert int(whole[0][5:13]) >= earlier  # it went on, and did not begin again
    resumed = world.results["resumed"]
    assert resumed["error"] is None
    assert any(line.startswith("Resuming: ") for line in resumed["lines"])
    assert contents(world.root / "killed") == contents(world.root / "plain")
    assert not (world.root / "killed.partial").exists()


def test_another_recipe_does_not_resume(world: World) -> None:
    kind, message, hint = world.results["other-recipe"]["error"]
    assert kind == "OutputError" and "killed.partial" in message and "--overwrite" in hint
    assert world.results["replaced-kill"]["killed"]
    assert not any(line.startswith("Resuming") for line in world.results["replaced"]["lines"])
    assert contents(world.root / "replaced") == contents(world.root / "plain")


# ---------------------------------------------------------------------------------------------------- freezing


def test_what_is_frozen_is_the_base_s_to_the_bit_and_the_rest_moves(world: World) -> None:
    tower = load_file(world.root / "frozen" / "model.safetensors")
    base = load_file(world.base / "model.safetensors")
    still = {name for name, tensor in tower.items() if torch.equal(tensor, base[name])}
    parts = ("vision_model.embeddings.", "vision_model.encoder.layers.0.mlp.")
    assert still == {name for name in tower if name.startswith(parts)} and len(still) == 7
    free = load_file(world.root / "plain" / "model.safetensors")
    assert not any(torch.equal(free[name], base[name]) for name in still)
    record, card = world.record("frozen"), (world.root / "frozen" / "README.md").read_text()
    assert record["recipe"]["freeze"] == ["embeddings", "encoder.layers.0.mlp"]
    assert {tensor["name"] for tensor in record["tensors"] if tensor["rule"] == "frozen"} == still
    assert f"| Frozen | `embeddings`, `encoder.layers.0.mlp`: 7 of {len(tower)} tensors" in card
    assert "--freeze embeddings,encoder.layers.0.mlp" in card and "but for what is frozen of it" in card
    assert "freeze" not in world.record("plain")["recipe"]
    lines = world.results["frozen"]["lines"]
    assert f"Frozen: embeddings, encoder.layers.0.mlp (7 of {len(tower)} tensors)." in lines


def test_a_frozen_training_resumes_with_the_same_parts_alone(world: World) -> None:
    assert world.results["frozen-kill"]["killed"]
    kind, message, hint = world.results["frozen-other"]["error"]
    assert kind == "OutputError" and "frozen-killed.partial" in message and "--overwrite" in hint
    assert any(line.startswith("Resuming: ") for line in world.results["frozen-resumed"]["lines"])
    assert contents(world.root / "frozen-killed") == contents(world.root / "frozen")


def test_names_of_what_is_frozen(world: World) -> None:
    kind, message, hint = world.results["frozen-typo"]["error"]
    assert kind == "UsageError" and "a tower has no 'embedings'. Did you mean embeddings" in message
    assert "norms, biases" in hint
    kind, message, _ = world.results["frozen-all"]["error"]
    assert kind == "UsageError" and "leaves nothing of the tower to train" in message
    names = list(expected_shapes(read_finetune_record(_bytes(world, "frozen"), "x").architecture, projection=False))
    assert named_tensors(["NORMS"], names) == (("norms",), [name for name in names if "norm" in name])
    assert named_tensors(["biases"], names)[1] == [name for name in names if name.endswith(".bias")]
    assert all(name.endswith("_proj.weight") or "mlp" in name for name in named_tensors(["matrices"], names)[1])
    (only,) = named_tensors(["encoder.layers.1.self_attn.q_proj.bias"], names)[1]
    assert only == "vision_model.encoder.layers.1.self_attn.q_proj.bias"
    assert not any("layers.1" in name for name in named_tensors(["encoder.layers.0"], names)[1])


@pytest.mark.parametrize(
    "freeze", [[], "embeddings", ["embeddings"], ["nothing"], ["embeddings", "embeddings"], [{}], ["encoder"]]
)
def test_a_record_that_froze_otherwise_is_refused(world: World, freeze: Any) -> None:
    record = world.record("frozen")
    record["recipe"]["freeze"] = freeze
    with pytest.raises(VerifyError, match="not a record of a fine-tuning"):
        read_finetune_record(json.dumps(record).encode(), "x/hfcart.json")


def _bytes(world: World, name: str) -> bytes:
    return (world.root / name / "hfcart.json").read_bytes()


def test_a_checkpoint_is_whole_or_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.newest() is None
    for step in (5, 10, 15):
        checkpoints.save(step, {"x": torch.full((3,), float(step))})
    assert checkpoints.steps() == [10, 15]  # two are kept
    (tmp_path / "checkpoints" / "step-00000020.safetensors").write_bytes(b"half")
    assert checkpoints.steps() == [10, 15]
    newest = tmp_path / "checkpoints" / "step-00000015.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\x7f")
    found = checkpoints.newest()
    assert found is not None and found[0] == 10 and found[1]["x"].tolist() == [10.0] * 3
    assert checkpoints.steps() == [10]


def test_divergence_stops_at_once(world: World) -> None:
    result = world.results["diverged"]
    kind, message, hint = result["error"]
    assert kind == "HfcartError" and "The training diverged: " in message and "is not finite" in message
    assert "no checkpoint was saved before" in message
    assert "Try a lower --lr than 1e+30" in hint and not result["finished"]
    assert Checkpoints(world.root / "diverged.partial" / "checkpoints").newest() is None


def test_divergence_keeps_the_last_good_state(world: World) -> None:
    _, message, _ = world.results["grown"]["error"]
    partial = world.root / "grown.partial"
    found = Checkpoints(partial / "checkpoints").newest()
    assert found is not None and found[0] >= 2
    step, state = found
    # Step n + 1 gave a number at these weights: that is why they were kept. Step n + 2 gave none.
    assert f" of step {step + 2} of 40 is not finite" in message
    assert f"the state after step {step} is kept in grown.partial" in message
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    log = (partial / "results" / "training.csv").read_text().splitlines()
    assert len(log) == 1 + step + 1 and "nan" not in "".join(log) and "inf" not in "".join(log)


def test_two_processes_agree_with_one(world: World) -> None:
    """torchrun starts two gloo processes, as `accelerate launch` does on GPUs."""
    code = (
        "from hfcart.commands.finetune import run_finetune\nfrom hfcart.learning.finetune.recipe import make\n"
        "from hfcart.progress import Progress\n"
        "fields = dict(base='user/base', tasks=('warm.yaml', 'cold.yaml'), steps=12, batch_size=16, lr=1e-3)\n"
        "run_finetune(make({**fields, 'out': 'two'}), Progress())\n"
    )
    (world.root / "two.py").write_text(code)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "two.py"]
    env = {**world.env, "ACCELERATE_USE_CPU": "true"}
    done = ended(launch, cwd=world.root, env=env)
    assert done.returncode == 0, done.stderr
    assert world.record("two")["method"]["processes"] == 2
    assert world.losses("two") == pytest.approx(world.losses("one"), rel=1e-4)
    looks = [world.record(name)["curve"]["validation"] for name in ("one", "two")]
    assert looks[0]["images"] == looks[1]["images"] == [6, 2]
    for alone, shared in zip(looks[0]["looks"], looks[1]["looks"], strict=True):
        assert alone["step"] == shared["step"]
        assert all(abs(a - b) <= 1 for a, b in zip(alone["correct"], shared["correct"], strict=True))
    one, two = (load_file(world.root / name / "model.safetensors") for name in ("one", "two"))
    base = load_file(world.base / "model.safetensors")
    moved = sum((one[name] - base[name]).square().sum() for name in one)
    apart = sum((one[name] - two[name]).square().sum() for name in one)
    assert moved > 0 and apart < 1e-4 * moved


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"lr": 0}, "lr: "),
        ({"lr": float("nan")}, "lr: "),
        ({"warmup": 2000}, "warmup 2000 leaves nothing of 2,000 steps"),
        ({"steps": 0}, "steps: "),
        ({"precision": "float16"}, "precision: "),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"tasks": ()}, "tasks: "),
        ({"create_pr": True}, "create_pr needs push_to"),
        ({"epochs": 3}, "unknown field 'epochs'"),
        ({"out": "x.partial"}, "unfinished work"),
        ({"push_to": "name"}, "expected user/name"),
        ({"keep": "first"}, "keep: "),
        ({"keep": "best", "validate_every": 0}, "keep best needs validation"),
        ({"validate_every": 1}, "validate_every 1 would look 2,000 times, expected at most 1,000"),
        ({"track": ("mlflow",)}, "track: Input should be 'trackio'"),
    ],
)
def test_a_wrong_recipe_is_refused(fields: dict[str, Any], found: str) -> None:
    with pytest.raises(UsageError) as refusal:
        make({"base": "user/base", "tasks": ("mnist",), **fields})
    assert found in refusal.value.message


def test_defaults_are_the_published_ones() -> None:
    recipe = make({"base": "openai/clip-vit-base-patch32", "tasks": ("mnist",)})
    assert (recipe.lr, recipe.weight_decay, recipe.warmup_steps) == (1e-5, 0.1, 500)
    assert (recipe.steps, recipe.batch_size, recipe.max_grad_norm) == (2000, 128, 1.0)
    assert make({"base": "x", "tasks": ("mnist",), "steps": 100}).warmup_steps == 25


# ---------------------------------------------------------------------------------------------- the command line


def test_from_the_command_line_to_a_merge(world: World, hfcart: Run) -> None:
    args = ["finetune", "user/base", "--task", "cold.yaml", "--steps", "30", "--batch-size", "16", "--lr", "1e-3"]
    done = hfcart(*args, "--push-to", "user/cold-tower", "--json", hub=world.hub, cwd=world.root)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == world.record("cold-tower")
    assert "Step 30 of 30: loss " in done.stderr and " on validation images after step 30, the last" in done.stderr
    assert (
        "figures/training.png" in world.hub.files("user/cold-tower", "main")
        and "hfcart eval user/cold-tower --tasks cold" in done.stderr
    )
    there = world.hub.files("user/cold-tower", "main")
    assert there["model.safetensors"] == (world.root / "cold-tower" / "model.safetensors").read_bytes()
    assert there["README.md"].decode().startswith("---\n") and b"# cold-tower\n" in there["README.md"]
    assert not any(name.startswith("checkpoints") for name in there)
    refused = hfcart(*args, "--out", "cold-tower", hub=world.hub, cwd=world.root)
    assert refused.returncode == 1 and "exists already" in refused.stderr and "Traceback" not in refused.stderr
    merge = ["merge", "user/cold-tower", "plain", "--method", "task_arithmetic", "--out", "merged"]
    merged = hfcart(*merge, hub=world.hub, cwd=world.root)
    assert merged.returncode == 0, merged.stderr
    record = world.record("merged")
    assert record["base"]["repo"] == "user/base"  # found by the towers' cards
    front = yaml.safe_load((world.root / "merged" / "README.md").read_text().split("---\n")[1])
    assert front["datasets"] == ["user/cold", "user/warm"] and front["license"] == "mit"


def test_a_fine_tuning_replaces_one_of_the_same_base_on_the_same_tasks_alone(world: World, hfcart: Run) -> None:
    hub, plain = world.hub, world.root / "plain"
    hub.create("user/warm-tower")
    hub.commit("user/warm-tower", {str(p.relative_to(plain)): p for p in plain.rglob("*") if p.is_file()})
    head = hub.head("user/warm-tower")
    hub.clear()
    args = ["finetune", "user/base", "--steps", "1", "--out", "never"]
    for task, to, why in (
        ("cold.yaml", "user/warm-tower", "user/warm-tower holds a fine-tuning of user/base on warm, and this is"),
        ("warm.yaml", "User/Base", "User/Base is the base of this fine-tuning"),
    ):
        done = hfcart(*args, "--task", task, "--push-to", to, hub=hub, cwd=world.root)
        assert done.returncode == 1 and why in " ".join(done.stderr.split()), done.stderr
    assert not (world.root / "never").exists() and not (world.root / "never.partial").exists()
    assert hub.head("user/warm-tower") == head and not [r for r in hub.requests if "safetensors" in r.path]
    again = [*args[:4], "--batch-size", "16", "--task", "warm.yaml", "--push-to", "user/warm-tower", "--out", "again-1"]
    done = hfcart(*again, hub=hub, cwd=world.root)
    assert done.returncode == 0 and hub.head("user/warm-tower") != head, done.stderr
