"""Coefficients learned on unlabelled images are what the papers' own way learns; a kill, or a second process, too."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from clips import write_images
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from running import HELPERS, LIMIT, TOKEN, Commands, Run, ended
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from teams import launched
from three_towers import COLOURS, TOWERS
from torch.func import functional_call
from towers import write_tower
from transformers import CLIPModel, CLIPVisionConfig, CLIPVisionModel

from hfcart.clip.pixels import normalised, to_pixels
from hfcart.engine.planning import make_plan
from hfcart.engine.writing import GroupWriter
from hfcart.learning.adapt.objective import MeanPredictions, entropy, log_predictions
from hfcart.learning.adapt.parts import PartsFile, lay_out_parts, take_apart
from hfcart.learning.adapt.state import Coefficients
from hfcart.learning.batches import EveryTask
from hfcart.methods import ADAPTIVE, METHODS
from hfcart.methods.cart.rule import cart
from hfcart.methods.cart.rule import parts as cart_parts
from hfcart.methods.task_arithmetic.rule import parts as arithmetic_parts
from hfcart.methods.task_arithmetic.rule import task_arithmetic
from hfcart.methods.ties.rule import parts as ties_parts
from hfcart.methods.ties.rule import ties
from hfcart.progress import Progress
from hfcart.recipes.merge_recipe import make
from hfcart.recipes.recipe_files import as_yaml
from hfcart.sources.preprocessor import clip_default
from hfcart.sources.towers import fetch_all
from hfcart.system.tensor_files import TensorFiles
from hfcart.system.work_folder import WorkFolder

COEFFICIENTS = [0.3, -1.5, 2.0]


def towers(seed: int = 0, m: int = 18, n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(m, n, generator=generator)
    return base + 0.05 * torch.randn(3, m, n, generator=generator), base


# --- the rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ADAPTIVE))
def test_a_rule_with_coefficients_is_the_sum_of_its_parts(name: str) -> None:
    """And each part, restated in float64, is what the paper multiplies its coefficient with."""
    thetas, base = towers()
    exact, start = thetas.double(), base.double()
    if name == "cart++":
        merged, found = cart(thetas, rank=4, coefficients=COEFFICIENTS).tensor, cart_parts(thetas, rank=4)
        anchor = exact.mean(dim=0)
        u, s, vh = torch.linalg.svd(exact - anchor, full_matrices=False)
        components = (u[:, :, :4] * s[:, None, :4]) @ vh[:, :4]
    elif name == "adamerging":
        merged = task_arithmetic(thetas, base=base, coefficients=COEFFICIENTS).tensor
        found, anchor, components = arithmetic_parts(thetas, base=base), start, exact - start
    else:
        merged = ties(thetas, None, 1, base=base, density=0.3, coefficients=COEFFICIENTS).tensor
        found, anchor = ties_parts(thetas, None, 1, base=base, density=0.3), start
        taus = exact - start
        order = taus.abs().flatten(1).argsort(dim=1, descending=True)[:, : int(0.3 * base.numel())]
        kept = torch.zeros_like(taus).flatten(1).scatter(1, order, taus.flatten(1).gather(1, order)).view_as(taus)
        elected = torch.where(kept.sum(0) == 0, 1.0, kept.sum(0).sign())
        components = torch.where(kept.sign() == elected, kept, 0.0)
    whole = found.left if found.right is None else found.left @ found.right.mT
    assert torch.allclose(whole.double(), components, atol=1e-6) and torch.allclose(found.anchor.double(), anchor)
    expected = anchor + (torch.tensor(COEFFICIENTS).double()[:, None, None] * components).sum(0)
    assert torch.allclose(merged.double(), expected, atol=1e-6)
    assert not torch.allclose(merged.double(), anchor + components.sum(0), atol=1e-2)


@given(scale=st.floats(-3, 3, width=32))
def test_equal_coefficients_are_the_scale(scale: float) -> None:
    thetas, base = towers(1)
    same = [scale] * 3
    one = cart(thetas, rank=3, scale=scale).tensor
    assert torch.allclose(one, cart(thetas, rank=3, coefficients=same).tensor, atol=1e-6)
    one = task_arithmetic(thetas, base=base, scale=scale).tensor
    assert torch.allclose(one, task_arithmetic(thetas, base=base, coefficients=same).tensor, atol=1e-6)
    one = ties(thetas, None, -1, base=base, scale=scale, combine="sum").tensor
    assert torch.equal(one, ties(thetas, None, -1, base=base, coefficients=same).tensor)


# --- the objective and the optimiser ----------------------------------------------------------------------------------


def test_entropy_is_that_of_the_softmax_and_leaves_broken_images_out() -> None:
    generator = torch.Generator().manual_seed(0)
    features, head = torch.randn(5, 8, generator=generator), torch.randn(3, 6, generator=generator)
    head, projection = head / head.norm(dim=1, keepdim=True), torch.randn(6, 8, generator=generator)
    usable = torch.tensor([True, False, True, True, False])
    found = entropy(log_predictions(features[usable], head, projection, 10.0))
    entropies = []
    for row in features[usable].double():
        image = projection.double() @ row
        p = torch.softmax(10 * head.double() @ (image / image.norm()), dim=0)
        entropies.append(float(-(p * p.log()).sum()))
    assert float(found) == pytest.approx(sum(entropies) / 3, abs=1e-5)


def test_the_mean_prediction_is_of_the_latest_steps_and_of_the_first() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = torch.rand(70, 5, generator=generator, dtype=torch.float64)
    steps = torch.cat([part / part.sum(1, keepdim=True) for part in (steps[:, :2], steps[:, 2:])], 1)
    steps[35:, 2:] = torch.tensor([0.9, 0.06, 0.04])  # the second task collapses half way
    seen = MeanPredictions([2, 3], first=5)
    for number, row in enumerate(steps):
        weights = 0.95 ** torch.arange(number + 1, dtype=torch.float64).flip(0)
        mean = (weights @ steps[: number + 1]) / weights.sum()
        assert torch.allclose(seen.with_batch(1, row[2:].float()), mean[2:], atol=1e-6)
        if number == 40:  # saved and taken up again
            saved, seen = seen.checkpoint(), MeanPredictions([2, 3], first=5)
            seen.restore(40, saved)
        seen.update(row)
    assert seen.shares(0) == (
        pytest.approx(steps[:5, :2].mean(0).max()),
        pytest.approx(mean[:2].max()),
        mean[:2].argmax(),
    )
    assert seen.shares(1)[2] == 0 and [seen.collapsed(task) for task in (0, 1)] == [False, True]


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize("clamped", [False, True])
def test_coefficients_follow_adam_through_the_clamp(per_task: bool, clamped: bool) -> None:
    """The same numbers as autograd and torch's Adam on the whole expression, beyond the ends of the clamp too."""
    own = Coefficients(3, 4, start=0.95, per_task=per_task, clamped=clamped, lr=0.04)
    raw = torch.full((3, 1 if per_task else 4), 0.95, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([raw], lr=0.04, betas=(0.9, 0.999), weight_decay=0.0)
    target = torch.linspace(-1, 2, 12, dtype=torch.float64).view(3, 4)
    outside = False
    for step in range(60):
        if step == 30:  # saved and taken up again
            saved = own.checkpoint()
            own = Coefficients(3, 4, start=0.0, per_task=per_task, clamped=clamped, lr=0.04)
            own.restore(30, saved)
        acting = (raw.clamp(0, 1) if clamped else raw).expand(3, 4)
        assert torch.allclose(own.values(), acting.detach(), atol=1e-12)
        loss = (acting - target).square().sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        outside |= bool((raw > 1).any())
        own.update(2 * (own.values() - target), [float(loss.detach())])
    assert outside and own.step == 60 and len(own.history) == 60
    assert torch.equal(own.final(), own.values().round(decimals=6))


def test_every_task_gives_as_many_images_a_step_and_each_of_its_own_once_an_epoch() -> None:
    order = EveryTask([12, 20, 8], seed=3)
    steps = [order.batch(step, 12) for step in range(5)]
    for places in steps:
        assert [task for task, _ in places] == [0] * 4 + [1] * 4 + [2] * 4
    seen = [row for places in steps for task, row in places if task == 1]
    assert sorted(seen) == list(range(20)) != seen
    assert steps[0] == EveryTask([12, 20, 8], seed=3).batch(0, 12) != EveryTask([12, 20, 8], seed=4).batch(0, 12)


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("local")
    return [str(write_tower(root / f"t{i}", i, delta=0.03)) for i in range(4)]


@pytest.mark.parametrize("budget", [0, 30_000, 1 << 30])
@pytest.mark.parametrize(
    "fields",
    [
        {"rank": 0.25, "qkv": "fused"},
        {"rank": 3},
        {"method": "task_arithmetic"},
        {"method": "ties", "density": 0.3},
    ],
    ids=["cart-fused", "cart", "task_arithmetic", "ties"],
)
def test_the_gradient_is_autograds(local: list[str], tmp_path: Path, fields: dict[str, Any], budget: int) -> None:
    """Through the whole tower: inner products with what lies on disk, against autograd over the whole expression."""
    base = {} if "rank" in fields else {"base": local[0]}
    plan = make_plan(make({"sources": local[1:], "adapt": "8", **base, **fields}), tmp_path, Progress())
    fetch_all(plan.towers_and_base, Progress(), stream=False)
    with WorkFolder(tmp_path / "work", (), overwrite=False) as folder:
        folder.begin("any")
        with TensorFiles(folder.path, lay_out_parts(plan)) as tensors:
            take_apart(plan, GroupWriter(plan, folder, tensors), torch.device("cpu"), 2, Progress())
        file = folder.path / "model.safetensors"
        with PartsFile(plan, file, torch.device("cpu"), budget=budget) as parts:
            generator = torch.Generator().manual_seed(0)
            raw = torch.randn(3, len(parts.adapted), generator=generator, dtype=torch.float64) + 1
            merged = parts.anchors()
            for number, adapted in enumerate(parts.adapted):
                leaves_of = [torch.empty_like(merged[name]) for name in adapted.group.names]
                parts.merge(adapted, raw[:, number].tolist(), leaves_of)
                merged |= zip(adapted.group.names, leaves_of, strict=True)
            model = CLIPVisionModel(CLIPVisionConfig(**dataclasses.asdict(plan.architecture)))
            pixels = torch.randn(5, 3, 16, 16, generator=generator)
            inner = "" if "embeddings.class_embedding" in dict(model.named_parameters()) else "vision_model."

            def loss(weights: dict[str, torch.Tensor]) -> torch.Tensor:
                named = {inner + name.removeprefix("vision_model."): weight for name, weight in weights.items()}
                out = functional_call(model, named, kwargs={"pixel_values": pixels}).pooler_output
                log_p = torch.log_softmax(out, dim=-1)
                return -(log_p.exp() * log_p).sum()

            leaves = {name: weight.clone().requires_grad_(True) for name, weight in merged.items()}
            loss(leaves).backward()
            for _ in range(2):  # the second time from what was kept, as far as the budget went
                found = []
                for adapted in parts.adapted:
                    gradients = [leaves[name].grad for name in adapted.group.names]
                    found.append(parts.inner(adapted, torch.cat(gradients) if len(gradients) > 1 else gradients[0]))
            raw.requires_grad_(True)
            with safe_open(file, "pt") as stored:
                names = set(stored.keys())
                weights = parts.anchors()
                for number, adapted in enumerate(parts.adapted):
                    key = adapted.group.key
                    component = stored.get_tensor(f"left.{key}").double()
                    if f"right.{key}" in names:
                        component = component @ stored.get_tensor(f"right.{key}").double().mT
                    update = torch.tensordot(raw[:, number], component, 1).float()
                    for name, part in zip(
                        adapted.group.names, update.chunk(len(adapted.group.names)), strict=True
                    ):  # fmt: skip
                        weights[name] = weights[name] + part
            loss(weights).backward()
            mine, theirs = torch.stack(found, 1), raw.grad
            assert theirs is not None and float(theirs.norm()) > 0
            assert float((mine - theirs).norm() / theirs.norm()) < 1e-5


# --- the command against the papers' own way --------------------------------------------------------------------------

STEPS, LR, BATCH = 8, 0.02, 4
OPTIONS = ["--steps", str(STEPS), "--lr", str(LR), "--batch-size", str(BATCH), "--seed", "5", "--adapt-split", "test"]


def images_of(number: int) -> list[Image.Image]:
    """The test split of the zoo's dataset, as `zoo` wrote it."""
    table = pq.read_table(io.BytesIO(write_images(61, 4, number, names=COLOURS)))
    return [Image.open(io.BytesIO(cell["bytes"])).convert("RGB") for cell in table["image"].to_pylist()]


def head_of(model: CLIPModel, clip_folder: Path) -> torch.Tensor:
    from transformers import CLIPTokenizer

    words = CLIPTokenizer.from_pretrained(clip_folder)
    rows = []
    for name in COLOURS:
        texts = [prompt.format(name) for prompt in ("a photo of {}.", "the colour {}", "{}!")]
        embeds = model.get_text_features(**words(texts, padding=True, return_tensors="pt")).pooler_output
        rows.append(torch.nn.functional.normalize(embeds, dim=-1).mean(0))
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1).detach()


def learned_plainly(
    root: Path,
    clip_folder: Path,
    order: list[int],
    rounds: int,
    start: float,
    clamped: bool,
    per_task: bool,
    parts: Callable,
    objective: str = "entropy",
) -> tuple[torch.Tensor, list[str], list[list[float]], list[list[float]]]:
    """functional_call over anchor + Σ λ component, every graph held, torch's Adam: coefficients, tensors, entropies.

    And of each step, for each task, the share of images of which its own tower says the same, if that is asked for.
    """
    base = CLIPModel.from_pretrained(clip_folder)
    head, projection, scale = (
        head_of(base, clip_folder),
        base.visual_projection.weight.detach(),
        base.logit_scale.exp().detach(),
    )
    tensors = [load_file(root / f"t{i + 1}" / "model.safetensors") for i in order]
    prefix = "" if "embeddings.class_embedding" in tensors[0] else "vision_model."
    model = CLIPVisionModel.from_pretrained(root / "t1").eval().requires_grad_(False)
    inner = "" if "embeddings.class_embedding" in dict(model.named_parameters()) else "vision_model."
    before = dict(base.vision_model.named_parameters())
    anchors, components = {}, {}
    for name in before:
        thetas = torch.stack([tower[prefix + name] for tower in tensors]).double()
        anchors[name], found = parts(name, thetas, before[name].detach().double())
        if found is not None:
            components[name] = found
    names = list(components)
    raw = torch.full((3, 1 if per_task else len(names)), start, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([raw], lr=LR, betas=(0.9, 0.999))
    fields = clip_default(16) | {"image_mean": [0.2, 0.5, 0.6], "image_std": [0.5, 0.2, 0.3]}
    data = [[to_pixels(image, fields) for image in images_of(i)] for i in (1, 2)]
    sequence = EveryTask([61, 61], seed=5)
    entropies, batches, alike = [], [[], []], []

    def predicted(weights: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
        out = functional_call(model, weights, kwargs={"pixel_values": pixels}).pooler_output @ projection.T
        return torch.log_softmax(scale * torch.nn.functional.normalize(out, dim=-1) @ head.T, dim=-1)

    def loss(log_p: torch.Tensor, task: int, pixels: torch.Tensor) -> torch.Tensor:
        entropy = -(log_p.exp() * log_p).sum(-1).mean()
        if objective == "entropy":
            return entropy
        if objective == "infomax":  # of this batch and those before it, the older the less
            seen = [*(batch.double() for batch in batches[task]), log_p.exp().mean(0).double()]
            weights = 0.95 ** torch.arange(len(seen), dtype=torch.float64).flip(0)
            mean = torch.tensordot(weights / weights.sum(), torch.stack(seen), 1)
            # Its gradient goes through one of many batches: it is scaled up to what it is for all images.
            spread = -(mean * mean.log()).sum() * float(weights.sum())
            return entropy - spread
        tower = load_file(root / f"t{task + 1}" / "model.safetensors")
        own = predicted({inner + name: tower[prefix + name] for name in before}, pixels).detach()
        alike.append(float((own.argmax(1) == log_p.argmax(1)).float().mean()))
        return -(own.exp() * log_p).sum(-1).mean()

    for step in range(STEPS):
        acting = raw.clamp(0, 1) if clamped else raw
        weights = {}
        for name, anchor in anchors.items():
            if name in components:
                column = acting[:, 0 if per_task else names.index(name)]
                anchor = anchor + torch.tensordot(column, components[name], 1)
            weights[inner + name] = anchor.float()
        places = sequence.batch(step, 2 * rounds * BATCH)
        row = []
        total = torch.zeros(())
        for first in range(0, len(places), BATCH):
            some = places[first : first + BATCH]
            pixels = normalised(torch.stack([data[task][image] for task, image in some]), fields)
            log_p = predicted(weights, pixels)
            row.append(-(log_p.exp() * log_p).sum(-1).mean())
            total = total + loss(log_p, some[0][0], pixels)
            batches[some[0][0]].append(log_p.detach().exp().mean(0))
        entropies.append(torch.stack(row).detach().view(2, rounds).mean(dim=1).tolist())
        adam.zero_grad()
        total.backward()
        adam.step()
    acting = (raw.clamp(0, 1) if clamped else raw).detach().expand(3, len(names))
    pairs = [alike[i : i + 2] for i in range(0, len(alike), 2)]
    return acting, [f"vision_model.{name}" for name in names], entropies, pairs


def _is_matrix(name: str) -> bool:
    return ".layers." in name and name.endswith("weight") and "norm" not in name


def _cart(name: str, thetas: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    mean = thetas.mean(0)
    if not _is_matrix(name):
        return mean, None
    u, s, vh = torch.linalg.svd(thetas - mean, full_matrices=False)
    k = min(thetas.shape[1:]) // 4
    return mean, (u[:, :, :k] * s[:, None, :k]) @ vh[:, :k]


def _arithmetic(name: str, thetas: torch.Tensor, base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    return base, thetas - base


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (["--rank", "0.25", "--scale", "1.5"], (1, 1.5, False, False, _cart)),
        (["--method", "task_arithmetic"], (2, 0.3, True, False, _arithmetic)),
        (["--method", "task_arithmetic", "--adapt-per", "task", "--scale", "0.98"], (2, 0.98, True, True, _arithmetic)),
        (["--rank", "0.25", "--scale", "1.5"], (1, 1.5, False, False, _cart, "infomax")),
        (["--rank", "0.25", "--scale", "1.5"], (1, 1.5, False, False, _cart, "distill")),
    ],
    ids=["cart++", "adamerging", "task-wise", "infomax", "distill"],
)
def test_learned_as_the_papers_do(
    zoo,
    clip: Path,
    hfcart: Run,
    tmp_path: Path,
    method: list[str],
    settings: tuple,
) -> None:
    """The coefficients, after a few steps that move them far, and the entropies, against the plain way in autograd."""
    hub, root = zoo
    rounds, start, clamped, per_task, parts, objective = (*settings, "entropy")[:6]
    tasks = f"{root}/images1.yaml,{root}/images2.yaml"
    if objective == "distill":
        tasks = ",".join(f"{TOWERS[i]}={root}/images{i + 1}.yaml" for i in (0, 1))
    options = ["--adapt", tasks, "--objective", objective, *OPTIONS]
    done = hfcart("merge", *TOWERS, *method, *options, hub=hub)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "merged" / "hfcart.json").read_text())
    order = [int(source["repo"][-1]) - 1 for source in record["sources"]]
    expected, names, entropies, alike = learned_plainly(
        root, clip, order, rounds, start, clamped, per_task, parts, objective
    )
    found = record["recipe"]["coefficients"]
    assert sorted(found) == sorted(names)
    values = torch.tensor([found[name] for name in names], dtype=torch.float64).T
    assert float((expected - start).abs().max()) > 0.05  # they moved
    assert float((values - expected).abs().max()) < 1e-3 * float((expected - start).abs().max())
    with (tmp_path / "merged" / "results" / "adaptation.csv").open() as file:
        rows = [[float(row["entropy of images1"]), float(row["entropy of images2"])] for row in csv.DictReader(file)]
        file.seek(0)
        agreements = [
            [float(row[f"agreement on images{i}"]) for i in (1, 2) if f"agreement on images{i}" in row]
            for row in csv.DictReader(file)
        ]
    assert rows == [pytest.approx(row, rel=1e-4) for row in entropies]
    assert agreements == (alike or [[]] * STEPS)
    learned = record["adaptation"]
    assert learned["objective"] == objective
    ends = [(task.get("own"), task.get("first_agreement"), task.get("last_agreement")) for task in learned["tasks"]]
    if objective == "distill":
        assert ends == [(TOWERS[i], pytest.approx(alike[0][i]), pytest.approx(alike[-1][i])) for i in (0, 1)]
    else:
        assert ends == [(None, None, None)] * 2
    assert (learned["steps"], learned["rounds"], learned["start"], learned["part"]) == (STEPS, rounds, start, "test")
    assert [task["first_entropy"] for task in learned["tasks"]] == [pytest.approx(e, rel=1e-4) for e in entropies[0]]
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    towers_there = [load_file(root / f"t{i + 1}" / "model.safetensors") for i in order]
    prefix = "" if "embeddings.class_embedding" in towers_there[0] else "vision_model."
    before = dict(CLIPModel.from_pretrained(clip).vision_model.named_parameters())
    for name in before:
        thetas = torch.stack([tower[prefix + name] for tower in towers_there]).double()
        anchor, components = parts(name, thetas, before[name].detach().double())
        if components is not None:
            column = torch.tensor(found[f"vision_model.{name}"], dtype=torch.float64)
            anchor = anchor + torch.tensordot(column, components, 1)
        assert torch.allclose(merged[f"vision_model.{name}"].double(), anchor, atol=2e-5), name
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "**These were test images**" in card and "adamerging" in card.lower()
    assert f"{METHODS[record['method']['name']].adaptive.title}](https://arxiv.org/abs/" in card  # type: ignore[union-attr]
    assert "coefficients:" not in card and "![Heat map of the mean coefficient" in card
    said = {
        "entropy": "by the entropy of the softmax",
        "infomax": "less the entropy of their mean",
        "distill": "each task's own tower, by",
    }
    assert [name for name, words in said.items() if words in card] == [objective]
    assert ("Same class as the own tower's" in card) is (objective == "distill") and "Commonest class" in card
    figure = "agreement.png" if objective == "distill" else "entropy.png"
    assert f"(figures/{figure})" in card and (tmp_path / "merged" / "figures" / figure).is_file()


@pytest.fixture
def adapted(zoo, hfcart: Run, tmp_path: Path) -> dict:
    """One adaptation with TIES, q, k and v fused, to look at: its record."""
    hub, root = zoo
    options = ["--method", "ties", "--qkv", "fused", "--steps", "6", "--lr", "0.05", "--batch-size", "4"]
    done = hfcart("merge", *TOWERS, *options, "--adapt", f"{root}/images1.yaml", "--json", hub=hub)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "merged.partial").exists()
    return json.loads(done.stdout)


def test_it_is_repeated_from_the_recipe_without_an_image(adapted: dict, zoo, hfcart: Run, tmp_path: Path) -> None:
    hub, _ = zoo
    recipe = yaml.safe_load((tmp_path / "merged" / "recipe.yaml").read_text())
    assert recipe == adapted["recipe"] and "scale" not in recipe and "combine" not in recipe
    assert "adapt" not in recipe and all("k_proj" not in key for key in recipe["coefficients"] if "weight" in key)
    assert make(recipe).coefficients is not None and yaml.safe_load(as_yaml(recipe)) == recipe
    assert adapted["adaptation"]["part"] == "train" and adapted["adaptation"]["tasks"][0]["images"] == 72
    again = hfcart("merge", "--recipe", "merged/recipe.yaml", "--out", "again", hub=hub)
    assert again.returncode == 0, again.stderr
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("merged", "again")]
    assert weights[0] == weights[1]
    assert "nothing was learned in this run" in (tmp_path / "again" / "README.md").read_text()
    verified = hfcart("verify", "merged", hub=hub)
    assert verified.returncode == 0 and "Identical" in verified.stdout, verified.stdout + verified.stderr
    changed = {**recipe, "coefficients": {**recipe["coefficients"]}}
    changed["coefficients"].popitem()
    (tmp_path / "short.yaml").write_text(as_yaml(changed))
    refused = hfcart("merge", "--recipe", "short.yaml", "--out", "short", hub=hub)
    assert refused.returncode == 2 and "The coefficients lack vision_model." in refused.stderr


def test_bfloat16_is_recorded_and_real(zoo, commands: Commands, tmp_path: Path) -> None:
    """Two towers are enough for CART with coefficients: theirs need not be equal, and no warning says otherwise."""
    hub, root = zoo
    found, both = [], ("float32", "bfloat16")
    merge = ["merge", *TOWERS[:2], "--adapt", f"{root}/images1.yaml", "--rank", "0.25", *OPTIONS]
    lines = [[*merge, "--precision", precision, "--out", precision] for precision in both]
    for precision, done in zip(both, commands(hub, lines), strict=True):
        assert done.returncode == 0 and "plain average" not in done.stderr, done.stderr
        record = json.loads((tmp_path / precision / "hfcart.json").read_text())
        assert record["adaptation"]["precision"] == precision
        found.append(torch.tensor(list(record["recipe"]["coefficients"].values())) - 1)
    assert 0 < float((found[0] - found[1]).norm()) < 0.5 * float(found[0].norm())


def test_a_kept_projection_has_coefficients_too(zoo, clip: Path, hfcart: Run, tmp_path: Path) -> None:
    hub, root = zoo
    projection = CLIPModel.from_pretrained(clip).visual_projection.weight.detach()
    for i in (1, 2):
        tensors = {
            f"vision_model.{name.removeprefix('vision_model.')}": tensor
            for name, tensor in load_file(root / f"t{i}" / "model.safetensors").items()
        }
        noise = torch.randn(projection.shape, generator=torch.Generator().manual_seed(i))
        tensors["visual_projection.weight"] = projection + 0.2 * projection.std() * noise
        (tmp_path / f"p{i}").mkdir()
        save_file(tensors, tmp_path / f"p{i}" / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((root / f"t{i}" / "config.json").read_text())
        config |= {"architectures": ["CLIPVisionModelWithProjection"], "projection_dim": len(projection)}
        (tmp_path / f"p{i}" / "config.json").write_text(json.dumps(config))
    options = ["--method", "task_arithmetic", "--with-projection", "--base", "user/clip", *OPTIONS]
    done = hfcart("merge", "p1", "p2", "--adapt", f"{root}/images1.yaml", *options, hub=hub)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "merged" / "hfcart.json").read_text())
    found = record["recipe"]["coefficients"]["visual_projection.weight"]
    assert record["model_class"] == "CLIPVisionModelWithProjection" and max(abs(c - 0.3) for c in found) > 0.02
    assert "visual_projection.weight" in load_file(tmp_path / "merged" / "model.safetensors")


def test_a_killed_adaptation_goes_on_and_ends_with_the_same_bytes(
    zoo,
    clean_env: dict[str, str],
    tmp_path: Path,
) -> None:
    hub, root = zoo
    env = clean_env | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}
    command = [sys.executable, "-m", "hfcart", "merge", *TOWERS, "--adapt", f"{root}/images1.yaml", "--rank", "0.25"]
    command += ["--steps", "40", "--batch-size", "4", "--lr", "0.02", "--adapt-ranks", "100%"]

    def start(out: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*command, "--out", out], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)

    undisturbed = start("undisturbed")
    said = undisturbed.communicate(timeout=LIMIT)[1]
    assert undisturbed.returncode == 0, said
    killed = start("killed")
    checkpoints = tmp_path / "killed.partial" / "adaptation.partial" / "checkpoints"
    while killed.poll() is None and not any(checkpoints.glob("*.json")):
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=LIMIT)
    assert not (tmp_path / "killed").exists()
    resumed = start("killed")
    said = resumed.communicate(timeout=LIMIT)[1]
    assert resumed.returncode == 0 and "of 40 steps done already" in said, said
    for name in ("model.safetensors", "recipe.yaml", "results/adaptation.csv", "figures/coefficients.png"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), name


def test_two_processes_agree_with_one(zoo, clean_env: dict[str, str], tmp_path: Path) -> None:
    """torchrun starts two gloo processes, as `accelerate launch` does on GPUs; the merge is evaluated in both."""
    hub, root = zoo
    env = clean_env | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}
    tasks = f"{root}/images1.yaml,{root}/images2.yaml"
    options = ["merge", *TOWERS, "--adapt", tasks, "--rank", "0.25", *OPTIONS, "--eval", f"{root}/images1.yaml"]
    options += ["--adapt-ranks", "100%", "--scale", "1.0"]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "hfcart"]
    for out, command in (("one", [sys.executable, "-m", "hfcart"]), ("two", two)):
        done = ended(
            [*command, *options, "--out", out], cwd=tmp_path, env=env | {"ACCELERATE_USE_CPU": "true"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Merged 3 towers") == 1
    records = [json.loads((tmp_path / name / "hfcart.json").read_text()) for name in ("one", "two")]
    assert [record["adaptation"]["processes"] for record in records] == [1, 2]
    values = [torch.tensor(list(record["recipe"]["coefficients"].values())) for record in records]
    # A direction whose number stands on the step may fall to either side, and what is learned after it with it.
    assert float((values[0] - values[1]).abs().max()) < 5e-3 < float((values[0] - 1).abs().max())
    bits = [
        [int(digit, 16) for texts in record["recipe"]["directions"].values() for text in texts for digit in text]
        for record in records
    ]
    assert sum((a ^ b).bit_count() for a, b in zip(*bits, strict=True)) <= 0.01 * 4 * len(bits[0])
    results = [json.loads((tmp_path / name / "results.json").read_text())["results"] for name in ("one", "two")]
    seen = [[(c["n"], c["correct"]) for r in each for c in r["classes"]] for each in results]
    assert [n for n, _ in seen[0]] == [n for n, _ in seen[1]]
    assert sum(abs(one - two) for (_, one), (_, two) in zip(*seen, strict=True)) <= 2


def test_where_one_process_fails_in_an_adaptation_none_waits_for_it(
    zoo, clean_env: dict[str, str], tmp_path: Path
) -> None:
    """The first is in a collective by then, which hears of no error; it tells what the other has failed with."""
    hub, root = zoo
    env = clean_env | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}
    tasks = f"{root}/images1.yaml,{root}/images2.yaml"
    merge = ["merge", *TOWERS, "--adapt", tasks, "--rank", "0.25", *OPTIONS, "--out", "m"]
    done = launched(2, [str(HELPERS / "failing_adaptation.py"), "1", *merge], tmp_path, env, plain=True)
    said = [line for line in done.stderr.splitlines() if line.startswith(("Error: ", "Warning: ", "→ ", "told by "))]
    assert done.returncode == 1 and said == ["Error: An image is gone.", "told by 0"], done.stderr


def test_auto_distils_where_the_own_tower_of_every_task_is_known(zoo, commands: Commands, tmp_path: Path) -> None:
    hub, root = zoo
    merge = ["merge", "--rank", "0.25", "--adapt", f"{root}/images1.yaml", "--steps", "2", "--batch-size", "4"]
    both = commands(hub, [[*merge, "--out", "own", *TOWERS], [*merge, "--out", "others", *TOWERS[1:]]])
    assert [done.returncode for done in both] == [0, 0], both[0].stderr + both[1].stderr
    records = [json.loads((tmp_path / out / "hfcart.json").read_text()) for out in ("own", "others")]
    assert [record["adaptation"]["objective"] for record in records] == ["distill", "infomax"]
    assert records[0]["adaptation"]["tasks"][0]["own"] == "user/t1"


def test_a_task_whose_predictions_collapse_is_named(zoo, hfcart: Run, tmp_path: Path) -> None:
    hub, root = zoo
    card = yaml.safe_load((root / "images1.yaml").read_text())
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(card | {"id": "x", "title": "Strange"}))
    options = ["--adapt", "x.yaml", "--objective", "entropy", "--steps", "30", "--lr", "0.5", "--batch-size", "8"]
    done = hfcart("merge", *TOWERS, "--rank", "0.25", *options, hub=hub)
    assert done.returncode == 0, done.stderr
    assert "Strange: the predictions collapse." in " ".join(done.stderr.split()), done.stderr
    (task,) = json.loads((tmp_path / "merged" / "hfcart.json").read_text())["adaptation"]["tasks"]
    assert task["last_share"] > task["first_share"]


REFUSED: list[tuple[list[str], int, list[str]]] = [
    (["--method", "tsv_m"], 2, ["cart, task_arithmetic, ties", "tsv_m has no coefficient"]),
    (["--lines", "1", "--method", "task_arithmetic"], 2, ["lines gives each block a scale"]),
    (["--adapt-split", "dev"], 2, ["adapt_split"]),
    (["--steps", "0"], 2, ["steps: 0 is below 1"]),
    (["--batch-size", "0"], 2, ["batch_size"]),
    (["--adapt", "no-such-task"], 2, ["no-such-task"]),
    (["--adapt", "user/t9=mnist"], 2, ["user/t9 is none of the sources", "Write --adapt SOURCE=TASK"]),
    (["--adapt", "user/t1=mnist,user/t1=svhn"], 2, ["user/t1 is given two tasks, mnist and svhn"]),
    (["--adapt", "user/t1=mnist,user/t2=mnist"], 2, ["mnist is given two sources, user/t1 and user/t2"]),
    (
        ["--adapt", "mnist", "--objective", "distill"],
        2,
        ["not known which source was fine-tuned on MNIST", "--adapt mnist,user/t1=mnist"],
    ),
    (["--objective", "entropie"], 2, ["objective"]),
    (["--base", "user/t1"], 1, ["user/t1", "text"]),
    (["--lr", "10", "--scale", "1e30"], 1, ["not finite", "--overwrite"]),
]


def test_errors(zoo, commands: Commands) -> None:
    hub, root = zoo
    lines = [["merge", *TOWERS, "--adapt", f"{root}/images1.yaml", *options] for options, _, _ in REFUSED]
    for done, (_, code, words) in zip(commands(hub, lines), REFUSED, strict=True):
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr and all(word in done.stderr for word in words), done.stderr


def test_coefficients_of_a_recipe_are_checked() -> None:
    from hfcart.errors import UsageError

    for fields, words in (
        ({"coefficients": {"a": [1.0]}}, "1 of a for 2 sources"),
        ({"coefficients": {"a": [1.0, float("inf")]}}, "not a finite number"),
        ({"coefficients": {"a": [1.0, 2.0]}, "scale": 1.0}, "leave scale out"),
        ({"coefficients": {"a": [1.0, 2.0]}, "adapt": "8"}, "leave one of them out"),
        ({"coefficients": {"a": [1.0, 2.0]}, "method": "average"}, "average has no coefficient"),
    ):
        with pytest.raises(UsageError, match=words):
            make({"sources": ("x/a", "x/b"), **fields})
