"""Names as people type them: case, `-` and `_` do not matter, and what is no name is answered with the nearest ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from hfcart.quoting import some

# How else the numbers of a tower or of a forward pass are called.
_DTYPES = {
    **dict.fromkeys(("fp32", "f32", "float", "torch.float32"), "float32"),
    **dict.fromkeys(("fp16", "f16", "half", "torch.float16"), "float16"),
    **dict.fromkeys(("bf16", "torch.bfloat16"), "bfloat16"),
}


def key(name: str) -> str:
    """What all spellings of a name have in common: TSV-M, tsv_m and Tsvm are one."""
    return name.strip().casefold().replace("_", "").replace("-", "")


def spelled(name: str, known: Iterable[str]) -> str | None:
    """The known name that a typed one spells; None if it spells none. One that is exact goes first."""
    found = [one for one in known if key(one) == key(name)]
    return name if name in found else found[0] if found else None


def near(name: str, known: Iterable[str]) -> str:
    """ "Did you mean ties?", or nothing where no known name is like the one that was typed."""
    spellings = {key(one): one for one in known}
    *rest, last = [spellings[one] for one in difflib.get_close_matches(key(name), spellings, n=3)] or [""]
    return f"Did you mean {', '.join(rest)}{' or ' if rest else ''}{last}?" if last else ""


def meant(name: str, known: Iterable[str]) -> str:
    """What to answer a name that is none: "Did you mean ties?", or which there are."""
    there = list(known)
    return near(name, there) or f"Known: {some(there, 30)}."


def dtype(name: object) -> object:
    """The full name of a kind of numbers (`bf16` is bfloat16); anything else as it is."""
    if not isinstance(name, str):
        return name
    return _DTYPES.get(name.strip().casefold()) or spelled(name, _DTYPES.values()) or name
