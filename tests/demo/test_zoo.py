"""The toy zoo: the same pictures each time, fair splits, a base that is a CLIP like any other, a whole cache."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import normalize, pad
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.demo.pictures import PARTS, SIDE, TEST_SCANS, TOYS, draw
from hfcart.demo.zoo import build_zoo, normalised, publish_zoo
from hfcart.progress import Progress
from hfcart.tasks.task_cards import read_tasks

SMALL = {"base_steps": 2, "clean": 32, "train": 40, "test": 20}
each_toy = pytest.mark.parametrize("toy", TOYS.values(), ids=lambda toy: toy.name)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_zoo(tmp_path_factory.mktemp("zoo") / "cache", "demo", Progress(), **SMALL)


def seen(pixels: np.ndarray) -> set[bytes]:
    return {picture.tobytes() for picture in pixels}


@each_toy
def test_the_same_pictures_each_time(toy) -> None:
    first, labels = draw(toy, "train", 40)
    for other in TOYS.values():  # what is drawn in between does not matter
        draw(other, "test", 5)
    again, labels_again = draw(toy, "train", 40)
    assert first.shape == (40, SIDE, SIDE, 3) and first.dtype == np.uint8
    assert (first == again).all() and (labels == labels_again).all()


@each_toy
def test_every_class_in_every_part_and_no_picture_twice(toy) -> None:
    drawn = {part: draw(toy, part, 150) for part in PARTS}
    for pixels, labels in drawn.values():
        assert set(labels.tolist()) == set(range(len(toy.classes)))
        assert len(seen(pixels)) == 150
    assert len(set.union(*(seen(pixels) for pixels, _ in drawn.values()))) == 150 * len(PARTS)


def test_digits_of_the_test_split_are_nowhere_else() -> None:
    """Together the splits have every scan once: their labels are those of the whole data set."""
    test, train = (draw(TOYS["digits"], part, 5000)[1].tolist() for part in ("test", "train"))
    assert len(test) == TEST_SCANS
    assert Counter(test) + Counter(train) == Counter(load_digits().target.tolist())
    clean = draw(TOYS["digits"], "clean", len(train))[1].tolist()
    assert clean == train  # the same scans in the same order, and again from the first once all are used
    assert draw(TOYS["digits"], "clean", len(train) + 3)[1].tolist() == [*train, *train[:3]]


@each_toy
def test_pictures_show_their_class(toy) -> None:
    """On clean pictures, the class whose mean picture is nearest is right more often than chance by far."""
    pixels, labels = draw(toy, "clean", 600)
    if toy.name == "colours":  # where it is does not matter: how much there is of which hue
        strong = pixels.astype(float) - pixels.mean(3, keepdims=True)
        flat = strong.reshape(len(pixels), -1, 3).sum(1)
        flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    else:
        grey = pixels.mean(3).reshape(len(pixels), -1)
        light = (grey - grey.min(1, keepdims=True)) / np.ptp(grey, axis=1)[:, None]
        flat = np.abs(np.fft.fft2(light.reshape(-1, SIDE, SIDE))).reshape(len(pixels), -1)
        flat = np.concatenate([flat / 10, light], axis=1)
    means = np.stack([flat[:400][labels[:400] == c].mean(0) for c in range(len(toy.classes))])
    nearest = ((flat[400:, None] - means) ** 2).sum(2).argmin(1)
    assert (nearest == labels[400:]).mean() > 2 / len(toy.classes)


def test_data_sets_are_read_by_datasets(zoo: Path, tmp_path: Path) -> None:
    toy = TOYS["shapes"]
    folder = zoo / "data" / "shapes" / "data"
    files = {part: str(folder / f"{part}-00000-of-00001.parquet") for part in ("train", "test")}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))
    assert {part: len(rows) for part, rows in loaded.items()} == {"train": 40, "test": 20}
    assert loaded["test"].features["label"].names == list(toy.classes)
    pixels, labels = draw(toy, "test", 20)
    assert loaded["test"]["label"][:] == labels.tolist()
    assert (np.array(loaded["test"][7]["image"]) == pixels[7]).all()


def test_every_task_card_names_its_data_set(zoo: Path) -> None:
    cards = read_tasks([str(path) for path in sorted((zoo / "tasks").iterdir())])
    assert {card.id for card in cards} == set(TOYS)
    for card in cards:
        assert card.dataset.repo == f"demo/{card.id}" and card.classnames == TOYS[card.id].classes
        readme = (zoo / "data" / card.id / "README.md").read_text()
        assert card.license is not None and f"license: {card.license}\n" in readme


def test_the_base_is_a_clip_that_reads_prompts_to_their_end(zoo: Path) -> None:
    model, tokenizer = CLIPModel.from_pretrained(zoo / "base"), AutoTokenizer.from_pretrained(zoo / "base")
    end = tokenizer.eos_token_id
    assert model.config.text_config.eos_token_id == end != 2
    tokens = tokenizer(["a big red z", "a big red q"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        alone = model.text_model(input_ids=tokens)
        padded = model.text_model(input_ids=pad(tokens, (0, 9), value=end))
    assert (tokens[:, -1] == end).all() and (tokens[:, :-1] != end).all()
    assert torch.allclose(alone.pooler_output, alone.last_hidden_state[:, -1], atol=1e-6)
    assert torch.allclose(padded.pooler_output, alone.pooler_output, atol=1e-5)
    assert not torch.allclose(alone.pooler_output[0], alone.pooler_output[1], atol=1e-2)


@torch.no_grad()
def test_prompts_of_different_classes_point_apart(zoo: Path) -> None:
    model, tokenizer = CLIPModel.from_pretrained(zoo / "base"), AutoTokenizer.from_pretrained(zoo / "base")
    for toy in TOYS.values():
        rows = []
        for name in toy.classes:
            prompts = [template.replace("{}", name) for template in toy.templates]
            tokens = tokenizer(prompts, padding=True, return_tensors="pt")["input_ids"]
            features = normalize(model.text_projection(model.text_model(input_ids=tokens).pooler_output), dim=-1)
            rows.append(normalize(features.mean(0), dim=-1))
        head = torch.stack(rows)
        assert (head @ head.T - 2 * torch.eye(len(head))).max() < 0.75, toy.name


def test_preprocessing_is_the_base_preprocessor_s(zoo: Path) -> None:
    pixels, _ = draw(TOYS["colours"], "test", 3)
    processor = CLIPImageProcessor.from_pretrained(zoo / "base")
    theirs = processor(list(pixels), return_tensors="pt")["pixel_values"]
    assert torch.allclose(normalised(pixels), theirs, atol=1e-5)


def test_a_zoo_is_built_once_and_whole(zoo: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in zoo.rglob("*")}
    assert build_zoo(zoo.parent, "demo", Progress(), **SMALL) == zoo
    assert before == {path: path.stat().st_mtime_ns for path in zoo.rglob("*")}
    assert [path.name for path in zoo.parent.iterdir()] == [zoo.name]


def test_the_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    settings = SMALL | {"text_steps": 2, "train": 10, "test": 10}
    first, again = (build_zoo(tmp_path / name, "demo", Progress(), **settings) for name in "ab")
    assert again.name == first.name
    files = [path for path in first.rglob("*") if path.is_file()]
    assert len(files) > 4 * len(TOYS)
    for path in files:
        assert (again / path.relative_to(first)).read_bytes() == path.read_bytes(), path
    other = build_zoo(tmp_path / "a", "demo", Progress(), **settings, seed=1)
    weights = Path("base") / "model.safetensors"
    assert other != first and (other / weights).read_bytes() != (first / weights).read_bytes()


def test_published(zoo: Path, tmp_path: Path) -> None:
    with EmbeddedHub(tmp_path) as hub:
        hub.add_user("demo", token="hf_demo")
        publish_zoo(hub, zoo, "demo")
        assert hub.files("demo/base")["model.safetensors"] == (zoo / "base" / "model.safetensors").read_bytes()
        for name in TOYS:
            files = hub.files(f"demo/{name}", repo_type="dataset")
            assert {path for path in files if path != ".gitattributes"} == {
                "README.md",
                "data/train-00000-of-00001.parquet",
                "data/test-00000-of-00001.parquet",
            }
