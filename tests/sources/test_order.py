"""The two orders of the sources: one is the other's inverse, and what towers hold decides, not who was named first."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import permutations
from pathlib import Path

import pytest
from towers import write_tower

from hfcart.progress import Progress
from hfcart.sources.headers import read_headers
from hfcart.sources.order import OrderedTowers
from hfcart.sources.places import pin
from hfcart.sources.towers import Tower, fetch_all


def pinned(folder: Path, numbers: Iterable[int]) -> list[Tower]:
    return [pin(str(write_tower(folder / f"t{i}", i)), Progress()) for i in numbers]


def fetched(folder: Path, numbers: Iterable[int]) -> list[Tower]:
    towers = pinned(folder, numbers)
    read_headers(towers, folder / "converted", Progress())
    fetch_all(towers, Progress(), stream=False)
    return towers


def test_each_order_undoes_the_other(tmp_path: Path) -> None:
    towers = tuple(pinned(tmp_path, range(4)))
    for places in permutations(range(4)):
        order = OrderedTowers(towers, places)
        assert order.given_order(order.towers) == towers
        assert order.canonical(order.given_order("abcd")) == order.given_order(order.canonical("abcd")) == tuple("abcd")
        assert order.towers == tuple(towers[place] for place in places)


def test_the_canonical_order_is_that_of_the_contents(tmp_path: Path) -> None:
    found = []
    for numbers in ((1, 2, 3), (3, 1, 2)):
        towers = fetched(tmp_path / str(numbers), numbers)
        before = OrderedTowers.as_given(towers)
        assert before.towers == tuple(towers)
        after = before.by_content()
        digests = [tower.source.sha256 for tower in after.towers]
        assert after.given == tuple(towers) and digests == sorted(digests)
        found.append([tower.label for tower in after.towers])
    assert found[0] == found[1]


def test_a_value_for_each_tower_or_an_error() -> None:
    order = OrderedTowers((), ())
    for reorder in (order.canonical, order.given_order):
        with pytest.raises(ValueError, match="1 value for 0 towers"):
            reorder([1])
