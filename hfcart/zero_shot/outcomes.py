"""Which images each of several towers recognises: a bit an image, so that towers can be compared image by image."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from hfcart.report.paired_test import against


class Outcomes:
    """The outcomes of one split: filled by `hfcart.zero_shot.scoring.score`, kept as text.

    An image that cannot be decoded is recognised by none.
    """

    def __init__(self, images: int, towers: int) -> None:
        """Nothing is recognised yet, of so many images, by so many towers."""
        self._right = torch.zeros(towers, images, dtype=torch.bool)

    def note(self, places: Sequence[int], right: Sequence[Bool[torch.Tensor, " b"]]) -> None:
        """Take a batch: the places of its images in the split, and for each tower which of them it recognises."""
        self._right[:, list(places)] = torch.stack(list(right))

    def packed(self) -> list[str]:
        """For each tower a text that `beside_best` reads: the bits of its images in hex digits."""
        return [np.packbits(row).tobytes().hex() for row in self._right.numpy()]


def put_together(shards: Sequence[Sequence[str]]) -> list[str]:
    """What `Outcomes.packed` would give for all images, from what it gives for the images of each shard alone."""
    return [
        f"{functools.reduce(operator.or_, (int(text, 16) for text in texts)):0{len(texts[0])}x}"
        for texts in zip(*shards, strict=True)
    ]


def beside_best(best: int, measured: Sequence[Mapping[str, Any]]) -> list[tuple[tuple[int, ...], float | None]]:
    """What tells each of several towers, measured on the same images, from the one with the highest mean.

    Args:
        best: the place of that one.
        measured: of each, a number or text for each task: images that it recognises (`correct`), which (`right`, as
            `Outcomes` packs them), and how many were scored (`images`).

    Returns:
        Of each, how many images exactly one of it and the best recognises, by task, and the p of `against`; None for
        the best itself.
    """
    images, right = measured[best]["images"], measured[best]["right"]
    differ = [
        tuple((int(a, 16) ^ int(b, 16)).bit_count() for a, b in zip(right, line["right"], strict=True))
        for line in measured
    ]
    others = [i for i in range(len(measured)) if i != best]
    found = against(
        measured[best]["correct"], [measured[i]["correct"] for i in others], [differ[i] for i in others], images
    )
    p = dict(zip(others, found, strict=True))
    return [(counts, p.get(i)) for i, counts in enumerate(differ)]
