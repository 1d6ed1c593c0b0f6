"""The proof that all towers are one architecture, from their configs and headers alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from hfcart.clip.architecture import differences, expected_shapes
from hfcart.clip.open_clip import CONFIG, architecture_of
from hfcart.clip.tensor_names import PROJECTION, is_matrix
from hfcart.errors import MismatchError, NotATowerError
from hfcart.formats.safetensors_file import TensorSpec
from hfcart.quoting import plural, some
from hfcart.records import Architecture
from hfcart.sources.towers import Tower, with_bases

FLOATS = ("F32", "F16", "BF16")
Row = tuple[str, str, str, str]  # of a table: source, what, expected, found
_NUMBER = re.compile(r"(?<=\.)(\d{1,4})(?=\.)")
_ROWS = 25  # a tower of which everything is named otherwise differs in 23 ways


def describe(towers: Sequence[Tower], base: Tower | None = None, activation: str | None = None) -> None:
    """Let towers that came without a config say by their shapes what they are; their headers are read.

    Args:
        towers: the sources.
        base: whose config, if it has one, says which activation they have.
        activation: which one, said by the user.

    Raises:
        NotATowerError: no CLIP tower. (Of which nothing says the activation: once its architecture is asked for.)
    """
    for tower in with_bases([*([base] if base else []), *towers]):
        if tower.base is not None:
            tower.described = tower.base.described
            continue
        if tower.described is not None:
            continue
        shapes = {name: spec.shape for name, spec in tower.tensors.items()}
        if any(".lora_" in spec.name for spec in tower.stored):
            raise NotATowerError(
                f"{tower.label} holds LoRA's matrices and no adapter_config.json, which says what they are added to "
                "and by which factor.",
                hint="Put the adapter_config.json that peft saved with them beside them.",
            )
        if not any(is_matrix(name) for name in shapes):
            raise NotATowerError(
                f"{tower.label} holds no config.json, and its weights are no CLIP vision tower's.",
                hint="Give repos or folders that hold a CLIPVisionModel or a CLIPModel, of transformers or OpenCLIP.",
            )
        if known := activation or (base and base.described and base.described.hidden_act):
            tower.described = architecture_of(shapes, known, tower.label)


def check_alike(towers: Sequence[Tower], base: Tower | None, *, projection: bool) -> Architecture:
    """Prove from configs and headers that all towers are one architecture. Returns it.

    Each file is held against its own config, each config against the one that most sources share (the first of them
    in a draw).

    Raises:
        MismatchError: with a row for every difference, by repo and name.
    """
    reference = Counter(tower.architecture for tower in towers).most_common(1)[0][0]
    found: list[tuple[str, list[Row], list[Row]]] = []
    told: set[str] = set()
    for tower in (*towers, *([base] if base else [])):
        label = tower.label + (" (base)" if tower is base else "")
        if not projection:
            tower.tensors.pop(PROJECTION, None)
        expected = expected_shapes(tower.architecture, projection=projection)
        differ = [
            (label, what.replace("config.json", _told_by(tower), 1), expected_here, held)
            for what, expected_here, held in differences(tower.architecture, reference, projection=projection)
        ]
        misfit = [(label, *row) for row in tensor_differences(tower.tensors, expected)]
        found.append((label, differ, misfit))
        told |= {_told_by(tower)} if misfit else set()
    if any(differ or misfit for _, differ, misfit in found):
        raise _mismatch(found, " or ".join(sorted(told)))
    return reference


def _told_by(tower: Tower) -> str:
    """What says which architecture a tower has."""
    names = (tower.base or tower).store.sizes
    return next((name for name in ("config.json", CONFIG) if name in names), "its shapes")


def _mismatch(found: Sequence[tuple[str, list[Row], list[Row]]], told: str) -> MismatchError:
    """Say which configs differ from the rest, and which files hold other tensors than their own config describes."""
    odd = sorted(label for label, differ, _ in found if differ)
    broken = sorted(label for label, _, misfit in found if misfit)
    left = sum(not (differ or misfit) for _, differ, misfit in found)
    of, parts = f"of {plural(len(found), 'tower')}", []
    if odd:
        parts.append(f"{len(odd)} {of} differ from the rest in architecture: {some(odd)}.")
    if len(found) == 1:  # it is to be loaded, and its file may be here already
        parts.append(f"{broken[0]} holds other tensors than its own {told} describes.")
    else:
        if broken:
            parts.append(f"{len(broken)} {of} hold other tensors than their own {told} describes: "
                         f"{some(broken)}.")  # fmt: skip
        parts.append("Nothing was downloaded.")
    rows = [row for _, differ, misfit in found for row in (*differ, *misfit)]
    hint = "Leave out the towers that differ, or name a revision that fits: user/name@revision."
    if not left:
        hint = "Name revisions whose files and config belong together: user/name@revision."
    if all(row[1] == PROJECTION and row[3] == "missing" for row in rows):
        hint = "Merge without --with-projection, which asks for a visual projection in every tower."
    return MismatchError(" ".join(parts), rows, hint=hint)


def tensor_differences(held: dict[str, TensorSpec], expected: dict[str, tuple[int, ...]]) -> list[tuple[str, str, str]]:
    """Every (tensor, expected, found) in which what is stored differs, equal ones of several layers in one row.

    At most `_ROWS` rows of names that are expected and as many of others, then one that counts what is left out.
    """
    wrong, foreign = _Rows(), _Rows()
    for name, shape in expected.items():
        spec = held.get(name)
        want = f"float {list(shape)}"
        if spec is None:
            wrong.add(name, want, "missing")
        elif spec.dtype not in FLOATS:
            wrong.add(name, "F32, F16 or BF16", spec.dtype)
        elif spec.shape != shape:
            wrong.add(name, want, f"{spec.dtype} {str(list(spec.shape))[:60]}")
    for name, spec in held.items():
        if name not in expected:
            foreign.add(name[:120], "no such tensor", f"{spec.dtype} {str(list(spec.shape))[:60]}")
    return [*wrong.folded(), *foreign.folded()]


class _Rows:
    """Rows of differences, those that repeat from layer to layer folded into one."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, ...], list[list[int]]] = {}

    def add(self, name: str, want: str, found: str) -> None:
        """Note a difference. A number between two points of its name counts as a layer's."""
        texts = _NUMBER.split(name)
        self._seen.setdefault((want, found, *texts[::2]), []).append([int(number) for number in texts[1::2]])

    def folded(self) -> list[tuple[str, str, str]]:
        """`...layers.{0-3,7}.mlp...` for a difference that repeats."""
        rows = []
        for (want, found, *texts), numbers in list(self._seen.items())[:_ROWS]:
            columns = [_numbers(sorted(set(column))) for column in zip(*numbers, strict=True)]
            name = "".join(text + number for text, number in zip(texts, [*columns, ""], strict=True))
            rows.append((name, want, found))
        if rest := sum(map(len, list(self._seen.values())[_ROWS:])):
            rows.append((f"and {rest:,} more", "", ""))
        return rows


def _numbers(layers: list[int]) -> str:
    """`3` or `{0-3,7}`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    text = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return text if len(layers) == 1 else "{" + text + "}"
