"""Counts that do not depend on how the work is cut, and near ties that float64 decides."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from clips import image, png
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionModel

from hfcart.clip.images import decode
from hfcart.clip.pixels import normalised, to_pixels
from hfcart.errors import NonFiniteError
from hfcart.progress import Progress
from hfcart.sources.preprocessor import clip_default
from hfcart.system.device import Machine
from hfcart.tasks.data import Example
from hfcart.zero_shot.heads import open_base
from hfcart.zero_shot.loaded_tower import LoadedTower, load_tower
from hfcart.zero_shot.scoring import Scorer, score

pytestmark = pytest.mark.usefixtures("own_cache")
CPU = torch.device("cpu")


class Pictures:
    """A split whose images are in memory."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self.files = files
        self.broken: set[int] = set()

    def __len__(self) -> int:
        return len(self.files)

    def examples(self, shard: int = 0, shards: int = 1, chunk: int = 32) -> Iterator[Example]:
        for i, file in enumerate(self.files):
            if (i // chunk) % shards == shard:
                yield Example(i, file, i % 4)


@pytest.fixture(scope="module")
def tower(clip: Path) -> LoadedTower:
    return load_tower(str(clip), Progress())


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [png(image(i % 4, i)) for i in range(237)] + [b"not an image", b""]


def spread(tower: LoadedTower, projection: torch.Tensor, pictures: Sequence[bytes]) -> torch.Tensor:
    """A head that tells these images apart: an untrained text tower's classes lie anywhere else."""
    fields = clip_default(16)
    pixels = normalised(torch.stack([to_pixels(decode(p), fields) for p in pictures[:40]]), fields)
    with torch.no_grad():
        features = torch.nn.functional.normalize(tower.model(pixel_values=pixels).pooler_output @ projection.T, dim=-1)
    means = torch.stack([features[i::4].mean(dim=0) for i in range(4)])
    return torch.nn.functional.normalize(means - means.mean(dim=0), dim=-1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_counts_do_not_depend_on_how_the_work_is_cut(clip, tower, pictures, precision) -> None:
    projection = open_base(str(clip), Progress()).projection
    head, fields = spread(tower, projection, pictures), clip_default(16)

    def counts(batch_size: int, workers: int, shards: int) -> tuple[list[list[int]], int]:
        total, bad = torch.zeros(4, 4, dtype=torch.int64), 0
        machine = Machine.on(CPU, precision, workers, batch_size)
        for shard in range(shards):
            scorer = Scorer(tower.model, projection, fields, machine)
            found, undecodable = score(
                Pictures(pictures), [scorer], head, machine,
                shard=shard, shards=shards, progress=Progress(),
            )  # fmt: skip
            total, bad = total + found[0], bad + undecodable
        return total.tolist(), bad

    first = counts(32, 1, 1)
    assert sum(map(sum, first[0])) == 237 and first[1] == 2
    for cut in ((1, 2, 1), (7, 1, 1), (64, 3, 1), (32, 1, 3), (5, 2, 2)):
        assert counts(*cut) == first

    # The same restated: one image at a time, in float64, with transformers' processor.
    model = CLIPVisionModel.from_pretrained(clip).double()
    processor = CLIPImageProcessorPil.from_pretrained(clip)
    right = [[0] * 4 for _ in range(4)]
    for i, file in enumerate(pictures[:237]):
        picture = Image.open(io.BytesIO(file)).convert("RGB")
        with torch.no_grad():
            features = model(processor(images=picture, return_tensors="pt")["pixel_values"].double()).pooler_output
        right[i % 4][int((features @ projection.double().T @ head.double().T).argmax())] += 1
    if precision == "float32":
        assert first[0] == right


@pytest.mark.parametrize(
    ("images", "most", "shards", "sizes"),
    [
        (239, 256, 1, [30] * 7 + [29]),
        (239, 16, 1, [16] * 14 + [15]),
        (30, 256, 1, [16, 14]),
        (239, 256, 3, [16] * 14 + [15]),
        (0, 256, 1, []),
    ],
)
def test_every_worker_has_a_batch(
    clip, tower, pictures, monkeypatch, images: int, most: int, shards: int, sizes: list[int]
) -> None:
    """Where the images are few, batches are smaller than what was asked for; and all shards are cut alike."""
    seen: list[int] = []
    monkeypatch.setattr(Scorer, "predict", lambda _, some, head: torch.zeros(len(some), dtype=torch.int64))
    scorer = Scorer(tower.model, torch.eye(24, 32), clip_default(16), Machine.on(CPU, "float32"))

    class Cut(Progress):
        def advance(self, amount: int) -> None:
            seen.append(amount)

    for shard in range(shards):
        score(Pictures(pictures[:images]), [scorer], torch.eye(4, 24), Machine.on(CPU, "float32", 1, most),
              shard=shard, shards=shards, progress=Cut())  # type: ignore[arg-type]  # fmt: skip
    assert sorted(seen, reverse=True) == sizes


def test_near_ties_are_decided_in_float64(clip, tower, pictures) -> None:
    """Two classes a millionth apart: float32 would decide by how the sums are cut, float64 knows."""
    projection = open_base(str(clip), Progress()).projection
    one = spread(tower, projection, pictures)[:1]
    nudge = torch.nn.functional.normalize(torch.randn(1, one.shape[1], generator=torch.Generator().manual_seed(0)))
    head = torch.nn.functional.normalize(torch.cat([one, one + 2e-7 * nudge]), dim=-1)
    assert 0 < float((head[0] - head[1]).abs().max()) < 1e-5
    fields = clip_default(16)
    images = torch.stack([to_pixels(decode(p), fields) for p in pictures[:60]])
    model, exact = CLIPVisionModel.from_pretrained(clip).double(), []
    for picture in normalised(images, fields).double():
        with torch.no_grad():
            features = model(pixel_values=picture[None]).pooler_output @ projection.double().T
        cosines = torch.nn.functional.normalize(features, dim=-1) @ head.double().T
        exact.append(int(cosines.argmax()))
    assert 0 < sum(exact) < 60  # both classes win somewhere
    for precision in ("float32", "bfloat16"):
        scorer = Scorer(tower.model, projection, fields, Machine.on(CPU, precision))
        for size in (1, 9, 60):
            found = torch.cat([scorer.predict(part, head) for part in images.split(size)])
            assert found.tolist() == exact


def test_a_broken_tower_is_named(clip, pictures) -> None:
    broken = load_tower(str(clip), Progress())
    with torch.no_grad():
        broken.model.post_layernorm.weight.fill_(float("nan"))
    base = open_base(str(clip), Progress())
    scorer = Scorer(broken.model, base.projection, base.preprocessor, Machine.on(CPU, "float32"), label="user/x")
    with pytest.raises(NonFiniteError, match="user/x gives NaN"):
        score(Pictures(pictures), [scorer], torch.eye(4, 24), Machine.on(CPU, "float32"), progress=Progress())  # type: ignore[arg-type]
