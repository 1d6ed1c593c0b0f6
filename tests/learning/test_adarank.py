"""Singular directions chosen with the coefficients are what AdaRank's own way chooses; a recipe repeats the choice."""

from __future__ import annotations

import csv
import io
import json
import re
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
from running import Commands
from safetensors import safe_open
from safetensors.torch import load_file
from three_towers import COLOURS, TOWERS
from torch.func import functional_call
from towers import write_tower
from transformers import CLIPModel, CLIPTokenizer, CLIPVisionModel

from hfcart.clip.models import vision_model
from hfcart.clip.pixels import normalised, to_pixels
from hfcart.clip.tensor_names import canonical
from hfcart.engine.planning import make_plan
from hfcart.engine.writing import GroupWriter
from hfcart.errors import UsageError, VerifyError
from hfcart.learning.adapt.masks import Masks
from hfcart.learning.adapt.parts import PartsFile, lay_out_parts, part_bytes, take_apart
from hfcart.learning.batches import EveryTask
from hfcart.methods.shared.directions import as_hex, from_hex
from hfcart.progress import Progress
from hfcart.recipes.finished_merge import read_record
from hfcart.recipes.merge_recipe import make
from hfcart.recipes.recipe_files import as_yaml
from hfcart.sources.preprocessor import clip_default
from hfcart.sources.towers import fetch_all
from hfcart.system.tensor_files import TensorFiles
from hfcart.system.work_folder import WorkFolder


@given(kept=st.lists(st.booleans(), min_size=1, max_size=40))
def test_a_choice_is_written_and_read(kept: list[bool]) -> None:
    text = as_hex(kept)
    assert from_hex(text, len(kept)) == [i for i, one in enumerate(kept) if one]
    for wrong in (text + "0", text[:-1], "x" + text[1:], text.upper() + "g"):
        with pytest.raises(ValueError, match="has|chosen"):
            from_hex(wrong, len(kept))


def test_no_direction_is_chosen_behind_the_last() -> None:
    assert from_hex("e", 3) == [0, 1, 2]
    with pytest.raises(ValueError, match="there are 3 directions"):
        from_hex("f", 3)


def test_masks_follow_adam_through_the_step_and_are_taken_up_again() -> None:
    """Against autograd through 1[σ(m / 10) > 0.5] with a straight-through gradient."""
    masks, plain = Masks(2, [5, 3], [2, 9], lr=0.03), []
    for start in (torch.tensor([0.1, 0.1, -0.1, -0.1, -0.1]), torch.full((3,), 0.1)):
        plain.append(start.double().repeat(2, 1).requires_grad_(True))
    assert [each.tolist() for each in masks.kept()] == [(each > 0).tolist() for each in plain]
    adam = torch.optim.Adam(plain, lr=0.03, betas=(0.9, 0.999))
    generator = torch.Generator().manual_seed(0)
    for step in range(9):
        gradients = [torch.randn(each.shape, generator=generator, dtype=torch.float64) for each in plain]
        adam.zero_grad()
        soft = [torch.sigmoid(each / 10) for each in plain]
        hard = [each + ((each > 0.5).double() - each).detach() for each in soft]
        sum((b * g).sum() for b, g in zip(hard, gradients, strict=True)).backward()  # type: ignore[union-attr]
        adam.step()
        masks.update(torch.cat([each.reshape(-1) for each in gradients]))
        assert torch.allclose(masks.raw, torch.cat([each.detach().reshape(-1) for each in plain]), atol=1e-12)
        if step == 4:
            saved, masks = masks.checkpoint(), Masks(2, [5, 3], [2, 9], lr=0.03)
            masks.restore(5, saved)
    kept = [(each > 0) for each in plain]
    assert masks.final() == [tuple(as_hex(row) for row in each.tolist()) for each in kept]
    assert masks.shares() == [sum(int(each[i].sum()) for each in kept) / 8 for i in (0, 1)]
    assert any(0 < share < 1 for share in masks.shares())


@pytest.mark.parametrize(
    "fields",
    [
        {"adapt_ranks": 1.0, "qkv": "fused", "adapt_tensors": "all"},
        {"method": "task_arithmetic", "adapt_ranks": 6},
    ],
    ids=["cart", "task_arithmetic"],
)
def test_gradients_are_autograds(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Through a whole tower, of coefficients and of masks, against autograd over the whole expression in float64."""
    local = [str(write_tower(tmp_path / f"t{i}", i, delta=0.03)) for i in range(4)]
    base = {"base": local[0]} if "method" in fields else {}
    plan = make_plan(make({"sources": local[1:], "adapt": "8", **base, **fields}), tmp_path, Progress())
    fetch_all(plan.towers_and_base, Progress(), stream=False)
    with WorkFolder(tmp_path / "work", (), overwrite=False) as folder:
        folder.begin("any")
        with TensorFiles(folder.path, lay_out_parts(plan)) as tensors:
            take_apart(plan, GroupWriter(plan, folder, tensors), torch.device("cpu"), 2, Progress())
        file = folder.path / "model.safetensors"
        assert file.stat().st_size == part_bytes(plan)
        with PartsFile(plan, file, torch.device("cpu")) as parts, safe_open(file, "pt") as stored:
            generator = torch.Generator().manual_seed(0)
            raw = torch.randn(3, len(parts.adapted), generator=generator, dtype=torch.float64) + 1
            masks: dict[int, torch.Tensor] = {}
            for number, adapted in enumerate(parts.adapted):
                assert adapted.chosen is adapted.group.matrix
                if adapted.chosen:
                    masks[number] = 0.1 * torch.randn(3, adapted.rank or 0, generator=generator, dtype=torch.float64)
            merged = parts.anchors()
            for number, adapted in enumerate(parts.adapted):
                leaves_of = [torch.empty_like(merged[name]) for name in adapted.group.names]
                kept = masks[number] > 0 if number in masks else None
                parts.merge(adapted, raw[:, number].tolist(), leaves_of, kept)
                merged |= zip(adapted.group.names, leaves_of, strict=True)
            model: Any = vision_model(plan.architecture, merged).double()
            named = {canonical(name) or name: name for name, _ in model.named_parameters()}
            pixels = torch.randn(5, 3, 16, 16, generator=generator, dtype=torch.float64)

            def loss(weights: dict[str, torch.Tensor]) -> torch.Tensor:
                inner = {named[name]: weight for name, weight in weights.items()}
                out = functional_call(model, inner, kwargs={"pixel_values": pixels}).pooler_output
                log_p = torch.log_softmax(out, dim=-1)
                return -(log_p.exp() * log_p).sum()

            leaves = {name: weight.double().requires_grad_(True) for name, weight in merged.items()}
            loss(leaves).backward()
            raw.requires_grad_(True)
            weights = {name: weight.double() for name, weight in parts.anchors().items()}
            for number, adapted in enumerate(parts.adapted):
                key, names = adapted.group.key, adapted.group.names
                component = stored.get_tensor(f"left.{key}").double()
                if number in masks:
                    soft = torch.sigmoid(masks[number].requires_grad_(True) / 10)
                    hard = soft + ((soft > 0.5).double() - soft).detach()
                    component = (component * hard[:, None]) @ stored.get_tensor(f"right.{key}").double().mT
                update = torch.tensordot(raw[:, number], component, 1)
                for name, part in zip(names, update.chunk(len(names)), strict=True):
                    weights[name] = weights[name] + part
            loss(weights).backward()
            assert raw.grad is not None
            for number, adapted in enumerate(parts.adapted):
                gradient = torch.cat([leaves[name].grad for name in adapted.group.names]).float()  # type: ignore[misc]
                if number not in masks:
                    mine = parts.inner(adapted, gradient)
                else:
                    along, m = parts.along(adapted, gradient).double(), masks[number].detach()
                    mine = (along * (m > 0)).sum(1)
                    slope = torch.sigmoid(m / 10) * (1 - torch.sigmoid(m / 10)) / 10
                    of_masks, theirs = raw.detach()[:, number, None] * along * slope, masks[number].grad
                    assert theirs is not None and float(theirs.norm()) > 0
                    assert float((of_masks - theirs).norm() / theirs.norm()) < 1e-4
                scale = float(raw.grad[:, number].norm())
                assert float((mine - raw.grad[:, number]).norm()) < 1e-4 * max(scale, 1e-6), adapted.group.key


# --- the command against the authors' way -----------------------------------------------------------------------------

STEPS, LR, BATCH = 10, 0.02, 4
OPTIONS = ["--steps", str(STEPS), "--lr", str(LR), "--batch-size", str(BATCH), "--seed", "5", "--adapt-split", "test"]
OPTIONS += ["--objective", "entropy", "--adapt-ranks", "100%"]


def chosen_plainly(
    root: Path, clip: Path, order: list[int], start: float, share: float, *, centred: bool
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """functional_call over the whole expression with masks, torch's Adam: coefficients, and masks, by tensor."""
    base = CLIPModel.from_pretrained(clip)
    words, rows = CLIPTokenizer.from_pretrained(clip), []
    for name in COLOURS:
        texts = [prompt.format(name) for prompt in ("a photo of {}.", "the colour {}", "{}!")]
        embeds = base.get_text_features(**words(texts, padding=True, return_tensors="pt")).pooler_output
        rows.append(torch.nn.functional.normalize(embeds, dim=-1).mean(0))
    head = torch.nn.functional.normalize(torch.stack(rows), dim=-1).detach()
    projection, scale = base.visual_projection.weight.detach(), base.logit_scale.exp().detach()
    tensors = [
        {
            canonical(name) or name: tensor
            for name, tensor in load_file(root / f"t{i + 1}" / "model.safetensors").items()
        }
        for i in order
    ]
    model = CLIPVisionModel.from_pretrained(root / "t1").eval().requires_grad_(False)
    inner = {canonical(name) or name: name for name, _ in model.named_parameters()}
    before = {f"vision_model.{name}": weight.detach().double() for name, weight in base.vision_model.named_parameters()}
    anchors, components, masks, coefficients = {}, {}, {}, {}
    for name in before:
        thetas = torch.stack([tower[name] for tower in tensors]).double()
        anchors[name] = thetas.mean(0) if centred else before[name]
        components[name] = thetas - anchors[name]
        coefficients[name] = torch.full((3,), start, dtype=torch.float64, requires_grad=True)
        if ".layers." in name and name.endswith("weight") and "norm" not in name:
            components[name] = torch.linalg.svd(components[name], full_matrices=False)
            size = min(thetas.shape[1:])
            row = torch.where(torch.arange(size) < max(1, int(share * size)), 0.1, -0.1)
            masks[name] = row.double().repeat(3, 1).requires_grad_(True)
    adam = torch.optim.Adam([*coefficients.values(), *masks.values()], lr=LR, betas=(0.9, 0.999))
    fields = clip_default(16) | {"image_mean": [0.2, 0.5, 0.6], "image_std": [0.5, 0.2, 0.3]}
    data = []
    for i in (1, 2):
        cells = pq.read_table(io.BytesIO(write_images(61, 4, i, names=COLOURS)))["image"].to_pylist()
        data.append([to_pixels(Image.open(io.BytesIO(cell["bytes"])).convert("RGB"), fields) for cell in cells])
    sequence = EveryTask([61, 61], seed=5)
    for step in range(STEPS):
        weights = {}
        for name, anchor in anchors.items():
            component = components[name]
            if name in masks:
                u, s, vh = component
                soft = torch.sigmoid(masks[name] / 10)
                hard = soft + ((soft > 0.5).double() - soft).detach()
                component = (u * (hard * s)[:, None]) @ vh
            weights[inner[name]] = (anchor + torch.tensordot(coefficients[name], component, 1)).float()
        places, total = sequence.batch(step, 2 * BATCH), torch.zeros(())
        for first in (0, BATCH):
            pixels = torch.stack([data[task][image] for task, image in places[first : first + BATCH]])
            out = functional_call(model, weights, kwargs={"pixel_values": normalised(pixels, fields)}).pooler_output
            features = torch.nn.functional.normalize(out @ projection.T, dim=-1)
            log_p = torch.log_softmax(scale * features @ head.T, dim=-1)
            total = total - (log_p.exp() * log_p).sum(-1).mean()
        adam.zero_grad()
        total.backward()
        adam.step()
    return {k: v.detach() for k, v in coefficients.items()}, {k: v.detach() for k, v in masks.items()}


def test_chosen_as_the_authors_do_and_repeated_from_the_recipe(
    zoo, clip: Path, commands: Commands, tmp_path: Path
) -> None:
    hub, root = zoo
    tasks = ["--adapt", f"{root}/images1.yaml,{root}/images2.yaml", *OPTIONS]
    ways = {
        "cart": (["--rank", "0.25", "--scale", "1.5", "--adapt-tensors", "all"], (1.5, 0.25)),
        "task_arithmetic": (["--method", "task_arithmetic"], (0.3, 1.0)),
    }
    lines = [["merge", *TOWERS, *tasks, *options, "--out", out] for out, (options, _) in ways.items()]
    lines += [
        ["merge", "--recipe", "cart/recipe.yaml", "--out", "again", "--workers", "1", "--stream"],
        ["verify", "task_arithmetic"],
    ]
    lines += [["merge", *TOWERS, *tasks, "--adapt-ranks", "0.5", "--rank", "3", "--out", "less", "--dry-run"]]
    done = commands(hub, lines)
    assert [each.returncode for each in done] == [0] * len(done), [each.stderr for each in done]
    told = " ".join(done[-1].stdout.split())
    assert "adarank: 10 steps" in told and "directions of each tower to choose from" in told
    for out, (_, (start, share)) in ways.items():
        record = json.loads((tmp_path / out / "hfcart.json").read_text())
        recipe, learned = record["recipe"], record["adaptation"]
        order = [int(source["repo"][-1]) - 1 for source in record["sources"]]
        coefficients, masks = chosen_plainly(root, clip, order, start, share, centred=out == "cart")
        assert sorted(recipe["coefficients"]) == sorted(coefficients) and sorted(recipe["directions"]) == sorted(masks)
        found = torch.tensor([recipe["coefficients"][name] for name in coefficients], dtype=torch.float64)
        expected = torch.stack([*coefficients.values()])
        assert float((expected - start).abs().max()) > 0.05  # they moved
        assert float((found - expected).abs().max()) < 2e-2 * float((expected - start).abs().max())
        changed = same = 0
        for name, m in masks.items():
            size, sure = m.shape[1], m.abs() > 2e-3  # what stands on the step may fall to either side
            bits = torch.zeros(m.shape, dtype=torch.bool)
            for row, text in zip(bits, recipe["directions"][name], strict=True):
                row[from_hex(text, size)] = True
            assert torch.equal(bits[sure], (m > 0)[sure]), name
            first = (torch.arange(size) < max(1, int(share * size))).expand_as(bits)
            changed, same = changed + int((bits != first).sum()), same + int((bits == first).sum())
        assert changed > 50 and same > 50
        # What the record and the card say of it.
        names = {
            "cart": ("adarank", 0.25, "the average plus every tower"),
            "task_arithmetic": ("adarank_ta", 1.0, "the base plus every"),
        }
        assert (learned["name"], learned["rank"], learned["start"], learned["rounds"]) == (*names[out][:2], start, 1)
        assert "rank" not in recipe and "scale" not in recipe and recipe["adapt_ranks"] == 1.0
        assert names[out][2] in record["method"]["others"] and "lee2026adarank" in record["method"]["citation"]
        ranks = {t["name"]: (t["rank"], t["full_rank"], t["energy"]) for t in record["tensors"]}
        for name, texts in recipe["directions"].items():
            mean = sum(int(text, 16).bit_count() for text in texts) / 3
            assert abs(ranks[name][0] - mean) <= 0.5 and 0 <= ranks[name][2] <= 1
        card = (tmp_path / out / "README.md").read_text()
        for words in (
            "### Singular directions",
            "(figures/directions.png)",
            "arxiv.org/abs/2503.22178",
            "Layer by layer",
        ):
            assert words in card, words
        first = "the strongest 8" if out == "cart" else "all of them"
        assert f"At the start {first} were on." in card
        # Every tensor has coefficients; matrices of one shape are one row, with the fewest and the most directions.
        rows = [line for line in card.splitlines() if re.match(r"\| (`q_proj`|`fc[12]`|biases|layer norms)", line)]
        assert len(rows) == 5 and all(f"| `{out}` |" in row for row in rows), rows
        assert re.search(r"\| \d+–\d+\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}32 \|", rows[0]), rows
        assert "directions:\n" not in card and (tmp_path / out / "figures" / "directions.png").is_file()
        with (tmp_path / out / "results" / "adaptation.csv").open() as file:
            shares = [
                [float(row[f"share of directions of tower {i}"]) for i in (1, 2, 3)] for row in csv.DictReader(file)
            ]
        assert shares[0] == [pytest.approx(shares[0][0])] * 3 != shares[-1]
        # The recipe says all of it, in the same bytes.
        assert yaml.safe_load((tmp_path / out / "recipe.yaml").read_text()) == recipe == yaml.safe_load(as_yaml(recipe))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("cart", "again")]
    assert weights[0] == weights[1]
    _refused(json.loads((tmp_path / "cart" / "hfcart.json").read_text())["recipe"], hub, commands, tmp_path)


def _refused(recipe: dict[str, Any], hub: Any, commands: Commands, tmp_path: Path) -> None:
    """A stranger's recipe of directions that there are none of."""
    first, texts = next(iter(recipe["directions"].items()))
    wrong = {
        "short": ({first: [texts[0][:-1], *texts[1:]]}, f"The directions of {first} are none"),
        "fewer": ({first: texts[:-1]}, "directions: 2 of"),
        "word": ({first: ["zz", *texts[1:]]}, "hexadecimal"),
        "other": ({"vision_model.nothing": [*texts]}, "The directions name vision_model.nothing"),
    }
    lines = []
    for name, (changed, _) in wrong.items():
        (tmp_path / f"{name}.yaml").write_text(as_yaml({**recipe, "directions": {**recipe["directions"], **changed}}))
        lines.append(["merge", "--recipe", f"{name}.yaml", "--out", name])
    told = [words for _, words in wrong.values()]
    for options, words in (
        (["--recipe", "cart/recipe.yaml", "--adapt-ranks", "50%"], "give adapt too"),  # of those that there were
        ([*TOWERS, "--adapt", "8", "--adapt-ranks", "4", "--rank", "50%"], "has but 4 to choose from"),
        ([*TOWERS, "--adapt", "8", "--adapt-ranks", "100%", "--rank", "33"], "rank 33 is above the size of"),
    ):
        lines.append(["merge", *options, "--dry-run"])
        told.append(words)
    for rank in (0, 33, 1.5):
        record = json.loads((tmp_path / "cart" / "hfcart.json").read_text())
        record["adaptation"]["rank"] = rank
        with pytest.raises(VerifyError, match="is not in"):
            read_record(json.dumps(record).encode(), "hfcart.json")
    for done, words in zip(commands(hub, lines), told, strict=True):
        assert done.returncode == 2 and words in " ".join(done.stderr.split()), done.stderr
        assert "Traceback" not in done.stderr


def test_what_makes_no_sense_is_refused() -> None:
    two = {"sources": ("x/a", "x/b")}
    both = {"coefficients": {"a": [1.0, 2.0]}, "directions": {"a": ["f", "0"]}}
    for fields, words in (
        ({"adapt_ranks": 1.0}, "give adapt too"),
        ({"adapt_tensors": "all"}, "give adapt too"),
        ({"adapt": "8", "adapt_ranks": 1.0, "method": "ties", "base": "x/c"}, "goes with cart, task_arithmetic"),
        ({"adapt": "8", "adapt_ranks": 1.5}, "adapt_ranks: 1.5 is no fraction"),
        ({"adapt": "8", "adapt_ranks": 0.1, "rank": 0.2}, "cannot be on at the start"),
        ({"adapt": "8", "adapt_tensors": "matrices", "method": "task_arithmetic"}, "all have coefficients"),
        ({**both}, "give it too"),
        ({**both, "adapt_ranks": 1.0, "coefficients": None}, "give both"),
        ({**both, "adapt_ranks": 1.0, "rank": 0.1}, "leave rank out"),
        ({**both, "adapt_ranks": 1.0, "adapt": "8"}, "leave one of them out"),
    ):
        with pytest.raises(UsageError, match=words):
            make({**two, **fields})
