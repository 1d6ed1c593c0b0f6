"""Noise told from difference: against enumeration, against simulation, and in words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from hfcart.report.paired_test import LEVEL, against, holm, mark, mcnemar, verdict


def enumerated(wins: Sequence[int], losses: Sequence[int], images: Sequence[int]) -> float:
    """Every way in which the coins can fall, in exact fractions: the share beyond what was found, and half of it."""
    found = abs(sum(Fraction(w - lost, n) for w, lost, n in zip(wins, losses, images, strict=True)))
    beyond = Fraction(0)
    discordant = [w + lost for w, lost in zip(wins, losses, strict=True)]
    for fallen in itertools.product(*(range(m + 1) for m in discordant)):
        ways = math.prod(math.comb(m, k) for m, k in zip(discordant, fallen, strict=True))
        value = abs(sum(Fraction(2 * k - m, n) for k, m, n in zip(fallen, discordant, images, strict=True)))
        beyond += ways * (Fraction(value > found) + Fraction(value == found, 2))
    return float(beyond / 2 ** sum(discordant))


@pytest.mark.parametrize(
    ("wins", "losses", "images"),
    [
        ([5], [0], [100]),
        ([10], [3], [100]),
        ([3], [3], [9]),
        ([1], [0], [1]),
        ([4, 9], [1, 12], [50, 50]),
        ([4, 0, 3], [1, 2, 3], [10, 10, 10]),
        ([6, 2], [1, 9], [40, 1000]),
        ([3, 4, 2], [0, 2, 5], [30, 47, 500]),
    ],
)
def test_the_chance_is_that_of_all_ways_in_which_the_coins_can_fall(
    wins: list[int], losses: list[int], images: list[int]
) -> None:
    assert mcnemar(wins, losses, images) == pytest.approx(enumerated(wins, losses, images), abs=1e-3)
    assert mcnemar(losses, wins, images) == pytest.approx(mcnemar(wins, losses, images), abs=1e-12)


def test_one_task_is_mcnemar_s_own_test_and_equal_predictions_are_no_difference() -> None:
    wins, losses = 150, 200
    tail = sum(math.comb(350, k) for k in range(wins)) / 2**350
    assert mcnemar([wins], [losses], [5000]) == pytest.approx(2 * tail + math.comb(350, wins) / 2**350, rel=1e-9)
    assert mcnemar([0], [0], [10]) == 1.0 == mcnemar([0, 0], [0, 0], [10, 3000])
    assert mcnemar([20], [20], [50]) > 0.9
    assert 0 <= mcnemar([5000], [0], [5000]) < 1e-12


def test_each_task_counts_once_however_many_images_it_has() -> None:
    """Pooled over the images the second tower is ahead, and of the mean over tasks the first is."""
    wins, losses, images = [15, 20], [0, 60], [50, 5000]
    assert mcnemar([sum(wins)], [sum(losses)], [sum(images)]) < LEVEL
    ahead = Fraction(15, 50) - Fraction(40, 5000)
    assert ahead > 0 and mcnemar(wins, losses, images) < 1e-3


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
def test_large_tasks_beside_small_ones_keep_their_weights(share: float) -> None:
    """Sizes as the benchmark's twenty test splits have them: with so many coins their sum is normal."""
    images = [19850, 8041, 6300, 2700, 26032, 12630, 10000, 1880, 6149, 32768, 7178, 3669, 8000, 10000, 10000]
    images += [10000, 25250, 10000, 1821, 39999]
    rng = np.random.default_rng(int(10 * share))
    for shift in (0.0, 0.004, -0.008):
        discordant = [round(share * n) for n in images]
        wins = [int(rng.binomial(m, 0.5 + shift)) for m in discordant]
        losses = [m - won for m, won in zip(discordant, wins, strict=True)]
        ahead = sum((won - lost) / n for won, lost, n in zip(wins, losses, images, strict=True))
        scatter = math.sqrt(sum(m / n**2 for m, n in zip(discordant, images, strict=True)))
        assert mcnemar(wins, losses, images) == pytest.approx(math.erfc(abs(ahead) / scatter / 2**0.5), abs=0.02)


def test_of_equal_methods_hardly_any_table_has_a_loser() -> None:
    """Twelve towers, three tasks of unlike size, 100 tables: the best is picked by the images that it is tested on."""
    rng = np.random.default_rng(0)
    images = [60, 200, 90]
    losers = stars = 0
    for _ in range(100):
        right = [(rng.normal(size=n) + 0.7 * rng.normal(size=(12, n))) > -0.3 for n in images]
        correct = [[int(task[i].sum()) for task in right] for i in range(12)]
        best = max(range(12), key=lambda i: sum(c / n for c, n in zip(correct[i], images, strict=True)))
        others = [i for i in range(12) if i != best]
        differ = [[int((task[best] ^ task[i]).sum()) for task in right] for i in others]
        found = against(correct[best], [correct[i] for i in others], differ, images)
        losers += min(found) < LEVEL
        stars += max(found) < LEVEL
    assert losers <= 5 and stars == 0


def test_a_difference_that_is_there_is_found() -> None:
    (found,) = against([900, 450], [[860, 430]], [[60, 26]], [1000, 500])
    assert found < 1e-4 and found == round(found, 6)
    assert against([900, 450], [[895, 449]], [[65, 27]], [1000, 500])[0] > 0.3
    assert against([10], [], [], [20]) == []


def test_holm_steps_down_over_all_pairs() -> None:
    assert holm([0.04]) == [0.04]
    # Three others, six pairs: the smallest counts six times, the next five; none falls below one before it.
    assert holm([0.011, 0.001, 0.5]) == pytest.approx([0.055, 0.006, 1.0])
    assert holm([0.010, 0.0095, 0.9]) == pytest.approx([0.057, 0.057, 1.0])


@pytest.mark.parametrize(
    ("others", "text"),
    [
        ([], ""),
        ([("b", 0.2)], "a and b are not distinguishable on 2,982 validation images."),
        ([("b", 0.2), ("c", 0.01)], "a and b are not distinguishable on 2,982 validation images; c is worse."),
        ([("b", 0.0), ("c", 0.01)], "a is better than b and c on 2,982 validation images."),
        (
            [("b", 0.05), ("c", 1.0), ("d", 0.0), ("e", 0.0499)],
            "a has the highest mean, and b and c are not distinguishable from it on 2,982 validation images; "
            "d and e are worse.",
        ),
        ([(f"x{i}", 0.0) for i in range(7)], "a is better than 7 others on 2,982 validation images."),
    ],
)
def test_the_sentence(others: list[tuple[str, float]], text: str) -> None:
    assert verdict("a", others, 2982, "validation") == text


def test_a_star_is_for_what_stands_out() -> None:
    assert [mark(None, best=True, stands_out=out) for out in (True, False)] == [" *", " ≈"]
    assert [mark(p, best=False, stands_out=False) for p in (0.05, 0.0499, None)] == [" ≈", "", ""]
