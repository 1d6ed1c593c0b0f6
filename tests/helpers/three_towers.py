"""Three towers of one CLIP model and a data set for each, on a Hub: what can be merged and measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from clips import write_clip, write_images
from running import TOKEN
from transformers import CLIPModel, CLIPTokenizer

from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.sources.preprocessor import clip_default
from hfcart.tasks.task_cards import TaskCard

COLOURS = ["red", "green", "blue", "yellow"]
TOWERS = ["user/t1", "user/t2", "user/t3"]


def card(repo: str = "user/images", name: str = "images") -> dict:
    return {
        "id": name,
        "title": "Images",
        "dataset": {"repo": repo},
        "templates": ["a photo of {}.", "the colour {}", "{}!"],
        "classnames": COLOURS,
    }


def write_telling_clip(folder: Path) -> Path:
    """A CLIP whose tower tells images apart: with small random weights all look alike to it, whatever its weights."""
    write_clip(folder, 0)
    model = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        for name, weight in model.vision_model.named_parameters():
            weight *= 10.0 if weight.ndim > 1 and "position" not in name else 1.0
    model.save_pretrained(folder)
    return folder


@contextmanager
def served(root: Path, clip: Path) -> Iterator[EmbeddedHub]:
    """A Hub with a CLIP model, three towers of it (with two, CART is the plain average), and a dataset for each."""
    model = CLIPModel.from_pretrained(clip)
    with EmbeddedHub(root / "hub") as hub:
        hub.add_user("user", token=TOKEN)
        hub.create("user/clip")
        hub.commit("user/clip", {path.name: path for path in clip.iterdir()})
        tower = model.vision_model
        before = {name: weight.clone() for name, weight in tower.named_parameters()}
        for i in (1, 2, 3):
            with torch.no_grad():
                for n, (name, weight) in enumerate(tower.named_parameters()):
                    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(100 * i + n))
                    weight.copy_(before[name] + 0.3 * before[name].norm() / weight.numel() ** 0.5 * noise)
            tower.save_pretrained(root / f"t{i}")
            # Other than the base's: whoever takes the base's in its place gets other numbers.
            own = clip_default(16) | {"image_mean": [0.2, 0.5, 0.6], "image_std": [0.5, 0.2, 0.3]}
            (root / f"t{i}" / "preprocessor_config.json").write_text(json.dumps(own))
            (root / f"t{i}" / "README.md").write_text(
                f"---\nbase_model: user/clip\ndatasets: [user/images{i}]\nlicense: mit\n---\n"
            )
            hub.create(f"user/t{i}")
            hub.commit(f"user/t{i}", {path.name: path for path in (root / f"t{i}").iterdir()})
            hub.create(f"user/images{i}", repo_type="dataset")
            files = {"data/test-00000-of-00001.parquet": write_images(61, 4, i, names=COLOURS)}
            files["data/train-00000-of-00001.parquet"] = write_images(80, 4, 10 + i, names=COLOURS)
            hub.commit(f"user/images{i}", files, repo_type="dataset")
            (root / f"images{i}.yaml").write_text(json.dumps(card(f"user/images{i}", f"images{i}")))
        yield hub


def with_many_images(hub: EmbeddedHub, root: Path) -> str:
    """Tasks of the three towers with 40 validation images each: enough for candidates to differ."""
    names = []
    for i in (1, 2, 3):
        hub.create(f"user/many{i}", repo_type="dataset")
        files = {"data/test-0.parquet": write_images(8, 4, i, names=COLOURS)}
        files["data/train-0.parquet"] = write_images(400, 4, 20 + i, names=COLOURS)
        hub.commit(f"user/many{i}", files, repo_type="dataset")
        (root / f"many{i}.yaml").write_text(json.dumps(card(f"user/many{i}", f"many{i}")))
        names.append(f"user/t{i}={root}/many{i}.yaml")
    return ",".join(names)


def prompted(model: CLIPModel, words: CLIPTokenizer, task: TaskCard) -> torch.Tensor:
    """The head restated: one prompt at a time, with transformers' own tokenizer and padding."""
    rows = []
    with torch.no_grad():
        for label in range(len(task.classnames)):
            each = []
            for prompt in task.prompts(label):
                tokens = words([prompt], padding="max_length", return_tensors="pt")
                found = model.get_text_features(**tokens).pooler_output[0]
                each.append(found / found.norm())
            mean = torch.stack(each).mean(dim=0)
            rows.append(mean / mean.norm())
    return torch.stack(rows)
