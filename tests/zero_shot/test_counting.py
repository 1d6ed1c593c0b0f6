"""Images shared among processes give the counts of one process, and each is decoded in one of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from clips import image, png
from teams import in_team
from test_scoring import CPU, Pictures, pictures, spread, tower  # noqa: F401 (fixtures)

from hfcart.errors import HfcartError, NonFiniteError, SourceError
from hfcart.progress import Progress
from hfcart.sources.preprocessor import clip_default
from hfcart.system.device import Machine
from hfcart.system.processes import Team
from hfcart.zero_shot import scoring
from hfcart.zero_shot.counting import Counted, count
from hfcart.zero_shot.heads import open_base
from hfcart.zero_shot.loaded_tower import LoadedTower
from hfcart.zero_shot.scoring import Scorer

pytestmark = pytest.mark.usefixtures("own_cache")


class Done(Progress):
    def __init__(self) -> None:
        self.images = 0

    def advance(self, amount: int) -> None:
        assert amount >= 0
        self.images += amount


class Named(Pictures):
    """What an error says of a split."""

    task = SimpleNamespace(title="Pictures")
    dataset = SimpleNamespace(split="test", label="pictures")

    def where(self, index: int) -> str:
        return f"row {index}"


@dataclass
class Work:
    """What all count: threads share it, so that nothing of it has to be sent."""

    files: list[bytes]
    scorers: list[Scorer]
    head: torch.Tensor
    done: Done
    broken: list[set[int]]
    fails: type[HfcartError] | None = None


work: list[Work] = []


def part(team: Team) -> Counted:
    """This process's part of what is counted, on a split of its own."""
    (now,) = work
    if team.place == 1 and now.fails:
        raise now.fails("not here")
    split: Any = Named(now.files)
    machine = Machine.on(CPU, "float32", 2, 7)
    counted = count(split, now.scorers, now.head, machine, now.done if team.first else Progress(), team)
    now.broken.append(split.broken)
    return counted


def lead(team: Team) -> Counted:
    team.call(part)
    return part(team)


@pytest.fixture
def images(
    clip: Any,
    tower: LoadedTower,  # noqa: F811
    pictures: list[bytes],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Work:
    base, fields = open_base(str(clip), Progress()), clip_default(16)
    head = spread(tower, base.projection, pictures)
    scorers = [Scorer(tower.model, base.projection * sign, fields, Machine.on(CPU, "float32")) for sign in (1, -1)]
    files = [pictures[0], b"no image", *pictures[1:50], b""]
    monkeypatch.setattr("test_counting.work", [Work(files, scorers, head, Done(), [])])
    return work[0]


@pytest.mark.parametrize("number", [2, 3, 9])
def test_the_counts_are_those_of_one_process(images: Work, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Also where some processes are left without an image."""
    split: Any = Named(images.files)
    alone = count(split, images.scorers, images.head, Machine.on(CPU, "float32", 2, 7), Progress())
    assert alone.images == 50 and alone.undecodable == 2 and len(set(alone.correct)) == 2
    seen, decode = Counter[bytes](), scoring.decode
    monkeypatch.setattr(scoring, "decode", lambda data: [seen.update([data]), decode(data)][1])
    assert in_team(number, lead) == [alone] * number
    assert seen == Counter(images.files)
    assert images.done.images == len(images.files)
    assert images.broken == [{1, 51}] * number  # whose names a warning tells


def test_a_tower_of_nan_is_told_in_every_process_and_the_work_can_go_on(images: Work) -> None:
    """It is for the first to say what is measured next: the others wait for it."""

    def measured(team: Team) -> tuple[str, int]:
        good, images.scorers = images.scorers, [*images.scorers, broken]
        team.call(forgiving)
        with pytest.raises(NonFiniteError, match="the broken one gives NaN") as error:
            part(team)
        images.scorers = good
        return error.value.message, lead(team).images

    broken = Scorer(images.scorers[0]._model, images.scorers[0]._projection * torch.nan, clip_default(16),
                    Machine.on(CPU, "float32"), label="the broken one")  # fmt: skip
    assert in_team(2, measured) == [("the broken one gives NaN or Inf for an image.", 50)] * 2


def forgiving(team: Team) -> None:
    with pytest.raises(NonFiniteError):
        part(team)


def test_no_image_and_another_s_failure_are_raised_by_the_first(images: Work) -> None:
    images.files = [b"none"] * 30
    with pytest.raises(SourceError, match="Of 30 images of Pictures none could be decoded"):
        in_team(2, lead)
    images.files, images.fails = [png(image(i % 4, i)) for i in range(30)], SourceError
    with pytest.raises(SourceError, match="not here"):
        in_team(2, lead)
