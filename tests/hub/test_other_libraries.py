"""A whole CLIP as it is published, in the libraries that people use it with: each gives hfcart's own numbers."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from clips import image
from running import COMPAT, ROOT, TOKEN, ended, run_commands
from three_towers import COLOURS, TOWERS, card

from hfcart.clip.forward import pooled
from hfcart.clip.pixels import normalised, to_pixels
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.progress import Progress
from hfcart.tasks.task_cards import TaskCard
from hfcart.zero_shot.heads import make_head, open_base
from hfcart.zero_shot.loaded_tower import load_tower

GUIDE = ROOT / ".github" / "GUIDE.md"
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
    pictures[0].save(folder / "photo.jpg")  # of which the guide speaks
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


def run(snippet: str, code: str, published: Published, first: Path | None = None, last: Path | None = None) -> Any:
    """What the guide's snippet with that word in it, and a program behind it, print as JSON on the last line.

    Libraries come before the environment's, or after them.
    """
    (shown,) = [block for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL) if snippet in block]
    env = published.env | {"PYTHONPATH": str(first)} if first else published.env
    before = f"import sys; sys.path.append({str(last)!r})\n" if last else ""
    after = f"import json\nfrom PIL import Image\nlabels, template = {COLOURS!r}, {TEMPLATE!r}\n"
    after += "images = [Image.open(f'{i}.png') for i in range(4)]\ntexts = [template.format(l) for l in labels]\n"
    command = [sys.executable, "-c", before + shown + after + code]
    done = ended(command, cwd=published.folder, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def near(found: list[Any], expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return torch.allclose(torch.tensor(found), expected, rtol=0, atol=tolerance)


PIPELINE = """
import transformers
found = classify(images, candidate_labels=labels, hypothesis_template=template)
print(json.dumps({"version": transformers.__version__, "found": found}))
"""
SENTENCES = """
encoded = [model.encode(each, normalize_embeddings=True).tolist() for each in (images, texts)]
print(json.dumps(encoded))
"""
ONNX = """
import onnxruntime
session = onnxruntime.InferenceSession("clip.onnx")
inputs = processor(images=images, text=texts, padding=True, return_tensors="np")
found = session.run(["images", "texts"], {"pixels": inputs.pixel_values, "tokens": inputs.input_ids})
print(json.dumps([each.tolist() for each in found]))
"""


@pytest.mark.parametrize(("version", "first"), [("5.", None), ("4.57.", COMPAT)])
def test_in_the_pipeline_of_both_majors(published: Published, version: str, first: Path | None) -> None:
    out = run("zero-shot-image-classification", PIPELINE, published, first=first)
    assert out["version"].startswith(version)
    for found, scores in zip(out["found"], published.scores, strict=True):
        assert [each["label"] for each in found] == [COLOURS[i] for i in scores.argsort(descending=True)]
        assert near([each["score"] for each in found], scores.sort(descending=True).values, 1e-4)


def test_in_sentence_transformers(published: Published) -> None:
    """It takes what transformers loads: no file of its own is needed."""
    images, texts = run("SentenceTransformer", SENTENCES, published, last=libraries(".sentence-transformers"))
    assert near(images, published.images) and near(texts, published.head)


def test_exported_to_onnx(published: Published) -> None:
    """It is run with another number of images and texts, of another length, than it was exported with."""
    images, texts = run("torch.onnx.export", ONNX, published, last=libraries(".onnx"))
    assert near(images, published.images) and near(texts, published.head)
