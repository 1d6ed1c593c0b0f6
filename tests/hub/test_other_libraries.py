"""A whole CLIP as it is published, in the libraries that people use it with: each gives hfcart's own numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from clips import image
from running import COMPAT, ROOT, TOKEN, run_commands
from three_towers import COLOURS, TOWERS, card

from hfcart.clip.forward import pooled
from hfcart.clip.pixels import normalised, to_pixels
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.progress import Progress
from hfcart.tasks.task_cards import TaskCard
from hfcart.zero_shot.heads import make_head, open_base
from hfcart.zero_shot.loaded_tower import load_tower

TEMPLATE = "a photo of the colour {}."


class Published(NamedTuple):
    """`user/merged` on a Hub, and what hfcart makes of four images and four labels.

    Attributes:
        folder: with the images, 0.png to 3.png.
        env: for processes that are to find it.
        images: unit features, image × dim.
        head: unit features of the labels in the template, label × dim.
        scores: the labels' probabilities, image × label.
    """

    folder: Path
    env: dict[str, str]
    images: torch.Tensor
    head: torch.Tensor
    scores: torch.Tensor


@pytest.fixture(scope="module")
def published(
    zoo: tuple[EmbeddedHub, Path], clean_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Published]:
    from huggingface_hub import constants

    hub, _ = zoo
    folder = tmp_path_factory.mktemp("published")
    env = clean_env | {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_TOKEN": TOKEN}
    merge = ["merge", *TOWERS, "--rank", "0.25", "--full-clip", "--push-to", "user/merged"]
    (done,) = run_commands([merge], folder, env)
    assert done.returncode == 0, done.stderr
    pictures = [image(label, 7) for label in range(len(COLOURS))]
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i}.png")
    tower, task = load_tower(str(folder / "merged"), Progress()), TaskCard(**card() | {"templates": (TEMPLATE,)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_ASSETS_CACHE", str(folder / "assets"))
        base = open_base(str(folder / "merged"), Progress())
        head = make_head(base, task, Progress())
    assert tower.preprocessor is not None
    pixels = torch.stack([to_pixels(picture, tower.preprocessor) for picture in pictures])
    with torch.inference_mode():
        features = pooled(tower.model, normalised(pixels, tower.preprocessor)) @ base.projection.T
    images = torch.nn.functional.normalize(features, dim=-1).clone()
    scores = (base.logit_scale * images @ head.T).softmax(dim=-1)
    orders = {tuple(row) for row in scores.argsort(descending=True).tolist()}
    assert len(orders) > 1 and scores.std(dim=0).max() > 0.05  # the comparisons mean something
    yield Published(folder, env, images, head, scores)


def libraries(name: str) -> Path:
    """Where `make test` has put a library that is no part of the environment."""
    folder = ROOT / name
    if not (folder / ".ready").is_file():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"`make {name}/.ready` installs it.")
    return folder


def run(code: str, published: Published, first: Path | None = None, last: Path | None = None) -> dict[str, object]:
    """What a program prints as JSON on its last line. Libraries come before the environment's, or after them."""
    env = published.env | {"PYTHONPATH": str(first)} if first else published.env
    before = f"import sys; sys.path.append({str(last)!r})\n" if last else ""
    asked = f"import json, torch\nfrom PIL import Image\nlabels, template = {COLOURS!r}, {TEMPLATE!r}\n"
    asked += "images = [Image.open(f'{i}.png') for i in range(4)]\ntexts = [template.format(l) for l in labels]\n"
    command = [sys.executable, "-c", before + asked + code]
    done = subprocess.run(command, cwd=published.folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def near(found: object, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return torch.allclose(torch.tensor(found), expected, rtol=0, atol=tolerance)


PIPELINE = """
import transformers
classify = transformers.pipeline("zero-shot-image-classification", model="user/merged")
found = classify(images, candidate_labels=labels, hypothesis_template=template)
print(json.dumps({"version": transformers.__version__, "found": found}))
"""


@pytest.mark.parametrize(("version", "first"), [("5.", None), ("4.57.", COMPAT)])
def test_in_the_pipeline_of_both_majors(published: Published, version: str, first: Path | None) -> None:
    out = run(PIPELINE, published, first=first)
    assert str(out["version"]).startswith(version)
    for found, scores in zip(out["found"], published.scores, strict=True):
        assert [each["label"] for each in found] == [COLOURS[i] for i in scores.argsort(descending=True)]
        assert near([each["score"] for each in found], scores.sort(descending=True).values, 1e-4)


SENTENCES = """
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("user/merged")
encoded = [model.encode(each, normalize_embeddings=True).tolist() for each in (images, texts)]
print(json.dumps(dict(zip(["images", "texts"], encoded))))
"""


def test_in_sentence_transformers(published: Published) -> None:
    """It takes what transformers loads: no file of its own is needed."""
    out = run(SENTENCES, published, last=libraries(".sentence-transformers"))
    assert near(out["images"], published.images) and near(out["texts"], published.head)


ONNX = """
import onnxruntime
from transformers import AutoProcessor, CLIPModel

class Features(torch.nn.Module):
    def __init__(self, clip):
        super().__init__()
        self.clip = clip

    def forward(self, pixel_values, input_ids):
        found = self.clip(pixel_values=pixel_values, input_ids=input_ids)
        return found.image_embeds, found.text_embeds

clip = CLIPModel.from_pretrained("user/merged").eval()
inputs = AutoProcessor.from_pretrained("user/merged")(images=images, text=texts, padding=True, return_tensors="pt")
pixels, tokens = inputs.pixel_values, inputs.input_ids
any_number, any_length = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
torch.onnx.export(
    Features(clip).eval(), (pixels[:2], tokens[:3]), "clip.onnx", dynamo=True, verbose=False,
    input_names=["pixels", "tokens"], output_names=["images", "texts"],
    dynamic_shapes=({0: any_number}, {0: any_number, 1: any_length}),
)
session = onnxruntime.InferenceSession("clip.onnx")
found = session.run(["images", "texts"], {"pixels": pixels.numpy(), "tokens": tokens.numpy()})
print(json.dumps(dict(zip(["images", "texts"], [each.tolist() for each in found]))))
"""


def test_exported_to_onnx(published: Published) -> None:
    """For any number of images and texts, of any length: it is run with others than it was exported with."""
    out = run(ONNX, published, last=libraries(".onnx"))
    assert near(out["images"], published.images) and near(out["texts"], published.head)
