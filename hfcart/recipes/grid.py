"""The grid of a sweep: which ranks and scales, from what was asked."""

from __future__ import annotations

from hfcart.methods import METHODS
from hfcart.quoting import quoted
from hfcart.recipes.fields import number

_RANKS = (0.02, 0.04, 0.08, 0.16, 0.32, 1.0)
_OF_CART = (1.0, 1.5, 2.0, 2.5)
_THIRDS = range(1, 7)  # of every other method's default


def usual_ranks(method: str) -> tuple[float, ...]:
    """Fractions of the full rank, where none are asked for; () for a method without rank."""
    return _RANKS if method not in METHODS or METHODS[method].parameter("rank") is not None else ()


def usual_scales(method: str) -> tuple[float, ...]:
    """Values of λ, where none are asked for."""
    usual = METHODS[method].parameter("scale") if method in METHODS else None
    default = usual.default if usual else None
    if method == "cart" or not isinstance(default, float):
        return _OF_CART
    return tuple(float(f"{default * third / 3:.2g}") for third in _THIRDS)


def numbers(text: str, *, ratios: bool) -> list[int | float]:
    """A list with commas, or low:high[:count], which is so many of them evenly apart.

    Args:
        text: as typed.
        ratios: whether they are apart by equal ratios (ranks; six unless told) or by equal steps (scales; five).

    Raises:
        ValueError: neither of the two.
    """
    try:
        if ":" not in text:
            return [number(part) for part in text.split(",")]
        low, high, *rest = text.split(":")
        start, end, count = float(number(low)), float(number(high)), int(rest[0]) if rest else (6 if ratios else 5)
        if len(rest) > 1 or count < 2 or not 0 < start < end:
            raise ValueError
        steps = [i / (count - 1) for i in range(count)]
        if ratios:
            return [float(f"{start * (end / start) ** step:.4g}") for step in steps]
        return [float(f"{start + (end - start) * step:.4g}") for step in steps]
    except (ValueError, IndexError):
        raise ValueError(f"{quoted(text)} is neither a list nor low:high[:count]") from None
