"""Difference or noise? Several towers measured on the same images, each against the one with the highest mean.

What is compared is the mean of accuracies over tasks, each task counting once. Pooling the images into one table would
compare another number: the largest task would decide. So every task is a stratum, and an image in it weighs 1/n_t.
Images that both towers recognise, or neither, tell nothing of a difference. Of the others, if the towers are equally
good at each task, each is right for one tower or for the other as a coin falls (McNemar, Psychometrika 12, 1947; with a
single task, this is his test). The distribution of the sum of all these weighted coins is computed exactly, so there is
no seed, and no normal approximation that Edwards (Psychometrika 13, 1948) would have to correct. Half of the chance of
the very outcome is counted, the mid-p that Fagerland, Lydersen and Laake (BMC Med. Res. Methodol. 13:91, 2013) advise.
Where towers differ in both directions and only their means are equal, the coins scatter more than the means do: the
test then errs on the side of "not distinguishable".

A bootstrap of the images within each task was considered, and is too sure of itself where few images differ: if five
do, all in one direction, it says p = 0.013, where coins say 0.031 and without the mid-p 0.063.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LEVEL = 0.05  # a difference is told from noise where p is below
HOW = (
    "By McNemar's test, image by image, each task counting once, at 5 % over all comparisons (Holm). "
    "What is not distinguishable here may be so on more images."
)
MARKS = "* is better than all others, ≈ not distinguishable from the highest mean."
_LATTICE = 1 << 18  # steps to the largest sum that matters: the weight of a task is a whole number of steps
_DEVIATIONS = 12  # of the sum, beyond which no chance that a float can tell from zero is left
_NAMED = 6  # names in a sentence; more are counted


def mcnemar(wins: Sequence[int], losses: Sequence[int], images: Sequence[int]) -> float:
    """The chance of a difference between two means over tasks at least as large, if the towers are equally good.

    Args:
        wins: images that only the one tower recognises, a count for each task.
        losses: images that only the other recognises.
        images: how many were scored, at least 1 each.

    Returns:
        p in [0, 1], two-sided, with the mid-p. Exact, but that weights whose common denominator is too large are
        rounded, by a few per cent over the twenty tasks of the benchmark; equal ones stay equal.
    """
    discordant = [won + lost for won, lost in zip(wins, losses, strict=True)]
    reach = math.fsum(m / n for m, n in zip(discordant, images, strict=True))
    if not reach:
        return 1.0
    scatter = math.sqrt(math.fsum(m / n**2 for m, n in zip(discordant, images, strict=True)))
    ahead = math.fsum((won - lost) / n for won, lost, n in zip(wins, losses, images, strict=True))
    span = min(reach, max(_DEVIATIONS * scatter, abs(ahead)))
    whole = min(math.lcm(*images), _LATTICE / span)
    steps = [max(1, round(whole / n)) for n in images]
    found = abs(sum(step * (won - lost) for step, won, lost in zip(steps, wins, losses, strict=True)))
    # A coin of ±s has the characteristic function cos(s·u), a sum of coins their product, and the Fourier transform
    # of that on a circle wider than where the sum can be is the distribution itself.
    most = sum(step * m for step, m in zip(steps, discordant, strict=True))
    most = min(most, max(found, math.ceil(1.1 * span * whole)))
    circle = 2 * most + 2
    angles = 2 * np.pi / circle * np.arange(circle // 2 + 1)
    spectrum = np.ones_like(angles)
    for step, m in zip(steps, discordant, strict=True):
        spectrum *= np.cos(step * angles) ** m
    chances = np.fft.irfft(spectrum, circle)
    beyond = 2 * chances[found + 1 : most + 1].sum()
    same = chances[found] * (2 if found else 1)
    return float(np.clip(beyond + same / 2, 0, 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p of every comparison with the best, adjusted for there being many (Holm, Scand. J. Stat. 6, 1979).

    The best was picked by these very images, and any other might have been: the first of k − 1 comparisons counts as
    one of all k(k − 1)/2 pairs, not of k − 1, or else every fifth table of twenty equal methods would find a loser.

    Args:
        p_values: of each of the others against the best.

    Returns:
        In their order, in [0, 1]; at LEVEL, the chance of any false difference is LEVEL at most.
    """
    pairs = len(p_values) * (len(p_values) + 1) // 2
    adjusted, largest = [1.0] * len(p_values), 0.0
    for place, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (pairs - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def against(
    best: Sequence[int], others: Sequence[Sequence[int]], discordant: Sequence[Sequence[int]], images: Sequence[int]
) -> list[float]:
    """The adjusted p of each of the others, rounded to six digits, as records have it.

    Args:
        best: images that the best recognises, a count for each task.
        others: the same of each other.
        discordant: images that exactly one of the best and each other recognises.
        images: how many were scored.
    """
    found = []
    for correct, differ in zip(others, discordant, strict=True):
        wins = [(m + b - c) // 2 for m, b, c in zip(differ, best, correct, strict=True)]
        found.append(mcnemar(wins, [m - won for m, won in zip(differ, wins, strict=True)], images))
    return [round(p, 6) for p in holm(found)]


def verdict(best: str, others: Sequence[tuple[str, float]], images: int, part: str) -> str:
    """What the evidence says, in a sentence; "" where there was nothing to compare.

    Args:
        best: what has the highest mean.
        others: name and adjusted p of each other.
        images: scored of all tasks.
        part: of which part they are.
    """
    alike, worse = ([name for name, p in others if (p >= LEVEL) is noise] for noise in (True, False))
    on = f"on {images:,} {part} images"
    if not alike:
        return f"{best} is better than {_listed(worse)} {on}." if worse else ""
    if len(alike) == 1:
        text = f"{best} and {alike[0]} are not distinguishable {on}"
    else:
        text = f"{best} has the highest mean, and {_listed(alike)} are not distinguishable from it {on}"
    return text + (f"; {_listed(worse)} {'is' if len(worse) == 1 else 'are'} worse." if worse else ".")


def _listed(names: Sequence[str]) -> str:
    if len(names) > _NAMED:
        return f"{len(names)} others"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def mark(p: float | None, *, best: bool, stands_out: bool) -> str:
    """What a table shows behind a mean: a star for the best that stands out, "≈" for what cannot be told from it."""
    if best:
        return " *" if stands_out else " ≈"
    return " ≈" if p is not None and p >= LEVEL else ""
