"""The toy zoo's pictures: six small tasks, drawn at 32 × 32 pixels from a seed with numpy alone.

A task is a painter: labels and a random generator in, clean pictures out. Its `spoil` then does to them what the
world does to photographs: less contrast, uneven light, things in front and noise. The base model learns the clean
pictures, the towers the spoiled ones. The digits are real: scikit-learn's copy of the UCI handwritten digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

SIDE = 32
Array = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Painter = Callable[[Labels, np.random.Generator], Array]

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "dome")
FIGURES = (*SHAPES, "arrow")
TEXTURES = ("flat stripes", "upright stripes", "rising stripes", "falling stripes", "checks", "dots", "rings", "rays")
# Hue (a fraction of the circle), saturation and value.
COLOURS = {
    "red": (0.0, 0.85, 0.85),
    "orange": (0.08, 0.9, 0.95),
    "yellow": (0.155, 0.85, 0.95),
    "green": (0.34, 0.8, 0.65),
    "turquoise": (0.49, 0.8, 0.8),
    "blue": (0.62, 0.85, 0.8),
    "violet": (0.76, 0.75, 0.75),
    "pink": (0.91, 0.5, 0.95),
}
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
COMPASS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _grid() -> tuple[Array, Array]:
    """x to the right and y downwards at the pixels' centres, both in (−1, 1); each 1 × side × side."""
    axis = (np.arange(SIDE) + 0.5) * 2 / SIDE - 1
    x, y = np.meshgrid(axis, axis)
    return x[None], y[None]


def _spread(values: Array | Labels) -> Array:
    """n numbers as n × 1 × 1, to be combined with pixels."""
    return values.astype(np.float64)[:, None, None]


def _outline(kind: int, u: Array, v: Array) -> Array:
    """The gauge of one of FIGURES: at most 1 inside it, growing outwards; as many numbers as u and v have."""
    r = np.hypot(u, v)
    match FIGURES[kind]:
        case "square":
            return np.maximum(abs(u), abs(v)) / 0.85
        case "triangle":
            return np.maximum(v, 0.866 * abs(u) - 0.5 * v) / 0.55
        case "star":
            return r / (0.68 + 0.34 * np.cos(5 * (np.arctan2(v, u) + np.pi / 2)))
        case "cross":
            return np.minimum(np.maximum(abs(u) / 0.3, abs(v)), np.maximum(abs(u), abs(v) / 0.3))
        case "ring":
            return 1 + 2 * (abs(r - 0.75) - 0.25)
        case "crescent":
            return np.maximum(r, 1.75 - np.hypot(u - 0.5, v))
        case "dome":
            return np.maximum(r, 0.9 + v)
        case "arrow":  # to the right
            return np.minimum(np.maximum(abs(u + 0.4) / 0.6, abs(v) / 0.2), np.maximum(1 - u, u + abs(v) / 0.8))
    return r


def _figure(kind: Labels, x: Array, y: Array, radius: Array, turn: Array) -> Array:
    """How much of each pixel a shape covers, in [0, 1].

    Args:
        kind: n indices into FIGURES.
        x: n centres, in (−1, 1).
        y: the same.
        radius: n radii; 1 is half the picture.
        turn: n angles in radians.
    """
    gx, gy = _grid()
    dx, dy = (gx - _spread(x)) / _spread(radius), (gy - _spread(y)) / _spread(radius)
    c, s = _spread(np.cos(turn)), _spread(np.sin(turn))
    u, v = c * dx + s * dy, c * dy - s * dx
    gauge = np.empty_like(u)
    for one in np.unique(kind):
        gauge[kind == one] = _outline(one, u[kind == one], v[kind == one])
    return np.clip((1 - gauge) * _spread(radius) * SIDE / 2 + 0.5, 0, 1)


def _rgb(hue: Array, saturation: Array, value: Array) -> Array:
    """n colours from hue, saturation and value, n × 3."""
    k = (np.array([5.0, 3.0, 1.0]) + 6 * hue[:, None]) % 6
    share: Array = np.clip(np.minimum(k, 4 - k), 0, 1)
    return value[:, None] * (1 - saturation[:, None] * share)


def _inks(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """n pairs of colours, a light one and a dark one; each n × 1 × 1 × 3."""
    light = _rgb(rng.random(n), rng.uniform(0, 0.5, n), rng.uniform(0.8, 1, n))
    dark = _rgb(rng.random(n), rng.uniform(0, 0.8, n), rng.uniform(0, 0.3, n))
    return light[:, None, None], dark[:, None, None]


def _painted(cover: Array, rng: np.random.Generator) -> Array:
    """Pictures of covers in random inks; n × side × side × 3."""
    ink, ground = _inks(len(cover), rng)
    return ground + (ink - ground) * cover[..., None]


def _shapes(labels: Labels, rng: np.random.Generator) -> Array:
    n = len(labels)
    x, y = rng.uniform(-0.3, 0.3, (2, n))
    return _painted(_figure(labels, x, y, rng.uniform(0.45, 0.7, n), rng.uniform(-0.35, 0.35, n)), rng)


def _textures(labels: Labels, rng: np.random.Generator) -> Array:
    n = len(labels)
    gx, gy = _grid()
    pitch = _spread(rng.uniform(7, 12, n))  # radians a unit: two to four periods a picture
    a, b = _spread(rng.uniform(0, 2 * np.pi, n)), _spread(rng.uniform(0, 2 * np.pi, n))
    dx, dy = gx - 0.4 * np.sin(a), gy - 0.4 * np.sin(b)
    waves = (
        np.sin(pitch * gy + a) + 0 * gx,
        np.sin(pitch * gx + a) + 0 * gy,
        np.sin(pitch * 0.7 * (gx + gy) + a),
        np.sin(pitch * 0.7 * (gx - gy) + a),
        np.sin(pitch * gx + a) * np.sin(pitch * gy + b) * 2,
        np.sin(pitch * gx + a) + np.sin(pitch * gy + b) - 0.8,
        np.sin(pitch * np.hypot(dx, dy) + a),
        np.sin(np.rint(pitch) * np.arctan2(dy, dx) + a),
    )
    return _painted(np.clip(0.5 + 1.5 * np.choose(labels[:, None, None], waves), 0, 1), rng)


def _colours(labels: Labels, rng: np.random.Generator) -> Array:
    n = len(labels)
    x, y = rng.uniform(-0.3, 0.3, (2, n))
    cover = _figure(rng.integers(len(SHAPES), size=n), x, y, rng.uniform(0.4, 0.75, n), rng.uniform(0, 6, n))
    hue, saturation, value = np.array(list(COLOURS.values()))[labels].T
    ink = _rgb(hue + rng.normal(0, 0.012, n), saturation * rng.uniform(0.8, 1, n), value * rng.uniform(0.8, 1.05, n))
    ground = np.repeat(rng.uniform(0, 0.3, (n, 1)), 3, axis=1)
    return ground[:, None, None] + (ink - ground)[:, None, None] * cover[..., None]


def _positions(labels: Labels, rng: np.random.Generator) -> Array:
    n = len(labels)
    x, y = np.stack([labels % 3 - 1, labels // 3 - 1]) * 0.6 + rng.uniform(-0.12, 0.12, (2, n))
    kind, radius = rng.integers(len(SHAPES), size=n), rng.uniform(0.2, 0.32, n)
    return _painted(_figure(kind, x, y, radius, rng.uniform(0, 6, n)), rng)


def _arrows(labels: Labels, rng: np.random.Generator) -> Array:
    n = len(labels)
    x, y = rng.uniform(-0.25, 0.25, (2, n))
    turn = (labels - 2) * np.pi / 4 + rng.uniform(-0.2, 0.2, n)
    return _painted(_figure(np.full(n, FIGURES.index("arrow")), x, y, rng.uniform(0.5, 0.75, n), turn), rng)


@cache
def _scans() -> tuple[Array, Labels]:
    """scikit-learn's 1,797 digits in an order of their own: n × 8 × 8 in [0, 1], and their labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return images.reshape(-1, 8, 8)[order] / 16.0, labels[order].astype(np.int64)


def _digits(scans: Array, rng: np.random.Generator) -> Array:
    """Scans in random inks, a little off the centre."""
    n, side = len(scans), SIDE - 4
    cover = np.zeros((n, SIDE, SIDE))
    for picture, scan, (x, y) in zip(cover, _enlarged(scans, side), rng.integers(0, 5, (n, 2)), strict=True):
        picture[y : y + side, x : x + side] = scan
    return _painted(cover, rng)


def _enlarged(small: Array, side: int) -> Array:
    """n × a × b numbers, bilinearly enlarged to n × side × side."""

    def weights(length: int) -> Array:
        at = np.clip((np.arange(side) + 0.5) * length / side - 0.5, 0, length - 1)
        return np.clip(1 - abs(at[:, None] - np.arange(length)), 0, 1)

    return weights(small.shape[1]) @ small @ weights(small.shape[2]).T


# What the world does to the pictures of a task: pictures in, pictures out; the results may leave [0, 1].


def _dull(pictures: Array, rng: np.random.Generator, least: float = 0.3, most: float = 0.6) -> Array:
    return 0.5 + rng.uniform(least, most, (len(pictures), 1, 1, 1)) * (pictures - 0.5)


def _negative(pictures: Array, rng: np.random.Generator) -> Array:
    return 1 - _dull(pictures, rng)


def _shaded(pictures: Array, rng: np.random.Generator) -> Array:
    """Light from one side."""
    (gx, gy), turn = _grid(), _spread(rng.uniform(0, 2 * np.pi, len(pictures)))
    return _dull(pictures, rng) + 0.35 * (np.cos(turn) * gx + np.sin(turn) * gy)[..., None]


def _behind_blinds(pictures: Array, rng: np.random.Generator) -> Array:
    return _dull(pictures, rng) + 0.22 * _slats(_grid()[1], len(pictures), rng)


def _behind_bars(pictures: Array, rng: np.random.Generator) -> Array:
    return _dull(pictures, rng, 0.5, 0.8) + 0.2 * _slats(_grid()[0], len(pictures), rng)


def _slats(across: Array, n: int, rng: np.random.Generator) -> Array:
    """Light and dark in turn, 1 and −1, along `across`; n × side × side × 1."""
    return np.sign(np.sin(12 * across + _spread(rng.uniform(0, 2 * np.pi, n))))[..., None]


def _at_night(pictures: Array, rng: np.random.Generator) -> Array:
    light = rng.uniform(0.15, 0.3, (len(pictures), 1, 1, 1))
    return light * pictures + rng.normal(0, 0.04, pictures.shape)


@dataclass(frozen=True)
class Toy:
    """One task of the zoo.

    Attributes:
        name: id of its task card.
        title: for people.
        classes: names in label order.
        templates: prompts; `{}` stands for the class name.
        paint: labels to clean pictures; None for the digits, which are not drawn.
        spoil: clean pictures to the task's own.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    paint: Painter | None
    spoil: Callable[[Array, np.random.Generator], Array]


TOYS = {
    toy.name: toy
    for toy in (
        Toy("digits", "Digits", DIGITS, ("the digit {}.", "a handwritten {}."), None, _behind_bars),
        Toy("shapes", "Shapes", SHAPES, ("a {}.", "the shape of a {}."), _shapes, _negative),
        Toy("textures", "Textures", TEXTURES, ("a pattern of {}.", "{} all over."), _textures, _negative),
        Toy("colours", "Colours", tuple(COLOURS), ("something {}.", "the colour {}."), _colours, _shaded),
        Toy("positions", "Positions", PLACES, ("something at the {}.", "the {} of it."), _positions, _behind_blinds),
        Toy("arrows", "Arrows", COMPASS, ("an arrow to the {}.", "pointing {}."), _arrows, _at_night),
    )
}
Part = Literal["clean", "train", "test"]
PARTS: tuple[Part, ...] = ("clean", "train", "test")
TEST_SCANS = 497  # of the digits; the other 1,300 are for training


def draw(toy: Toy, part: Part, count: int) -> tuple[npt.NDArray[np.uint8], Labels]:
    """Pictures of one task, the same ones each time; every class is as frequent as any other, but for the digits.

    Args:
        toy: which task.
        part: `clean` for the base model, `train` and `test` for the towers; none shares a picture with another.
        count: how many; of the digits' `train` and `test` no more than there are scans.

    Returns:
        n × 32 × 32 × 3 pixels, and n labels.
    """
    rng = np.random.default_rng([list(TOYS).index(toy.name), PARTS.index(part)])
    if toy.paint is not None:
        labels = rng.permutation(np.arange(count) % len(toy.classes))
        pictures = toy.paint(labels, rng)
    else:
        share = slice(TEST_SCANS) if part == "test" else slice(TEST_SCANS, None)
        scans, labels = _scans()[0][share], _scans()[1][share]
        chosen = np.arange(count) % len(labels) if part == "clean" else np.arange(min(count, len(labels)))
        labels = labels[chosen]
        pictures = _digits(scans[chosen], rng)
    if part != "clean":
        pictures = toy.spoil(pictures, rng) + rng.normal(0, 0.04, pictures.shape)
    return np.rint(np.clip(pictures, 0, 1) * 255).astype(np.uint8), labels
