"""Which images each tower recognises is kept image by image, and tells it from the best one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_scoring import CPU, Pictures, pictures, spread, tower  # noqa: F401 (fixtures)

from hfcart.clip.images import decode
from hfcart.clip.pixels import to_pixels
from hfcart.progress import Progress
from hfcart.sources.preprocessor import clip_default
from hfcart.system.device import Machine
from hfcart.zero_shot.heads import open_base
from hfcart.zero_shot.loaded_tower import LoadedTower, load_tower
from hfcart.zero_shot.outcomes import Outcomes, beside_best
from hfcart.zero_shot.scoring import Scorer, score

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize(("batch_size", "workers"), [(32, 1), (7, 3)])
def test_each_image_is_noted_in_its_place_broken_ones_as_not_recognised(
    clip: Path,
    tower: LoadedTower,  # noqa: F811
    pictures: list[bytes],  # noqa: F811
    batch_size: int,
    workers: int,
) -> None:
    base, fields = open_base(str(clip), Progress()), clip_default(16)
    files = [pictures[0], b"no image", *pictures[1:70], b"", b"", *pictures[70:90]]
    head, machine = spread(tower, base.projection, pictures), Machine.on(CPU, "float32", workers, batch_size)
    other = load_tower(str(clip), Progress())
    with torch.no_grad():
        other.model.post_layernorm.weight[::3] = 0
    scorers = [Scorer(each.model, base.projection, fields, machine) for each in (tower, other)]
    outcomes = Outcomes(len(files), 2)
    found, undecodable = score(Pictures(files), scorers, head, machine, outcomes=outcomes, progress=Progress())  # type: ignore[arg-type]
    assert undecodable == 3
    right: list[list[bool]] = [[], []]
    for i, file in enumerate(files):
        broken = i in (1, 71, 72)
        for scorer, kept in zip(scorers, right, strict=True):
            pixels = None if broken else torch.stack([to_pixels(decode(file), fields)])
            kept.append(pixels is not None and int(scorer.predict(pixels, head)) == i % 4)
    for text, kept, counted in zip(outcomes.packed(), right, found, strict=True):
        bits = bin(int(text, 16) | 1 << 4 * len(text))[3:]  # the first image first; the last byte is filled up
        assert bits[: len(files)] == "".join("01"[each] for each in kept) and "1" not in bits[len(files) :]
        assert sum(kept) == int(counted.diagonal().sum())
    lines = [{"correct": [sum(k)], "images": [90], "right": [t]} for k, t in zip(right, outcomes.packed(), strict=True)]
    (own, none), (differ, p) = beside_best(0, lines)
    assert own == (0,) and none is None
    assert differ == (sum(a != b for a, b in zip(*right, strict=True)),) and differ[0] > 5
    assert p is not None and 0 <= p <= 1
