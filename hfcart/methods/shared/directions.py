"""Which singular directions of each tower stay, where that is learned (AdaRank): as a recipe has it.

A direction is a column of a tower's factors, the strongest first. A recipe has a tower's choice for a matrix as
hexadecimal digits: the first direction is the highest bit of the first digit, and bits behind the last one are zero.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_HEX = re.compile(r"[0-9a-f]+")


def as_hex(kept: Sequence[bool]) -> str:
    """A tower's choice as a recipe has it. Args: whether each direction, of one at least, is kept."""
    bits = "".join("1" if one else "0" for one in kept)
    digits = -(-len(bits) // 4)
    return f"{int(bits.ljust(4 * digits, '0'), 2):0{digits}x}"


def from_hex(text: str, count: int) -> list[int]:
    """The places of the directions kept, ascending, of `count`.

    Raises:
        ValueError: the text is no choice among so many.
    """
    digits = -(-count // 4)
    if len(text) != digits or not _HEX.fullmatch(text):
        raise ValueError(f"a choice among {count} directions has {digits} hexadecimal digits, this one has {len(text)}")
    bits = f"{int(text, 16):0{4 * digits}b}"
    if "1" in bits[count:]:
        raise ValueError(f"there are {count} directions, and one behind the last is chosen")
    return [place for place, bit in enumerate(bits) if bit == "1"]
