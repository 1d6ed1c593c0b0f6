"""The proof that all towers are one architecture, from their configs and headers alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from hfcart.architecture import differences, expected_shapes
from hfcart.errors import MismatchError
from hfcart.names import PROJECTION
from hfcart.reader import TensorSpec
from hfcart.records import Architecture
from hfcart.sources import Tower

FLOATS = ("F32", "F16", "BF16")


def check_alike(towers: Sequence[Tower], base: Tower | None, *, projection: bool) -> Architecture:
    """Prove from configs and headers that all towers are one architecture. Returns it.

    The reference is the config that most sources share (the first of them in a draw).

    Raises:
        MismatchError: with a row for every difference, by repo and name.
    """
    reference = Counter(tower.architecture for tower in towers).most_common(1)[0][0]
    expected = expected_shapes(reference, projection=projection)
    rows: list[tuple[str, str, str, str]] = []
    for tower in (*towers, *([base] if base else [])):
        label = tower.label + (" (base)" if tower is base else "")
        rows += [(label, *row) for row in differences(tower.architecture, reference, projection=projection)]
        if not projection:
            tower.tensors.pop(PROJECTION, None)
        rows += [(label, *row) for row in tensor_differences(tower.tensors, expected)]
    if rows:
        labels = sorted({row[0] for row in rows})
        raise MismatchError(
            f"{len(labels)} of {len(towers) + (base is not None)} towers differ from the rest in architecture: "
            f"{', '.join(labels)}. Nothing was downloaded.",
            rows,
            hint="Leave out the towers that differ, or name a revision that fits: user/name@revision.",
        )
    return reference


def tensor_differences(held: dict[str, TensorSpec], expected: dict[str, tuple[int, ...]]) -> list[tuple[str, str, str]]:
    """Every (tensor, expected, found) in which what is stored differs; equal ones of several blocks in one row."""
    rows: dict[tuple[str, str, str], list[int]] = {}

    def add(name: str, want: str, found: str) -> None:
        block = re.fullmatch(r"((?:vision|text)_model\.encoder\.layers\.)(\d{1,4})(\..+)", name)
        key = (f"{block[1]}{{}}{block[3]}" if block else name, want, found)
        rows.setdefault(key, []).append(int(block[2]) if block else -1)

    for name, shape in expected.items():
        spec = held.get(name)
        want = f"float {list(shape)}"
        if spec is None:
            add(name, want, "missing")
        elif spec.dtype not in FLOATS:
            add(name, "F32, F16 or BF16", spec.dtype)
        elif spec.shape != shape:
            add(name, want, f"{spec.dtype} {list(spec.shape)}")
    for name, spec in held.items():
        if name not in expected:
            add(name[:120], "no such tensor", f"{spec.dtype} {list(spec.shape)}")
    return [(_with_layers(name, sorted(layers)), want, found) for (name, want, found), layers in rows.items()]


def _with_layers(name: str, layers: list[int]) -> str:
    """`...layers.{0-3,7}.mlp...` for a difference that repeats in several blocks."""
    if layers[0] < 0:
        return name
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    text = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return name.replace("{}", text if len(layers) == 1 else "{" + text + "}")
