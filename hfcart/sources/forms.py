"""The forms in which files store one and the same tower, seen through to the canonical names.

transformers' names and OpenCLIP's, each behind any one prefix that a wrapper left (`module.`, `clip.`,
`vision_tower.vision_tower.`, `base_model.model.`), with or without a text tower or a classifier beside it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from hfcart.clip import open_clip
from hfcart.clip.tensor_names import canonical
from hfcart.errors import CorruptFileError, NotATowerError
from hfcart.formats.safetensors_file import TensorSpec
from hfcart.quoting import plural, quoted, some

# The tensor that every tower has and nothing else: what stands before it is the wrapper's prefix.
_ANCHOR = re.compile(r"(.*?)(?:vision_model\.)?embeddings\.patch_embedding\.weight")
_OPEN_CLIP_ANCHOR = re.compile(r"(.*?)((?:visual\.)?)conv1\.weight")
_CLASSIFIER = re.compile(r"(?:classifier|classification_head|head)\.[\w.]+")


@dataclass(frozen=True)
class Found:
    """What of a source's files is its tower.

    Attributes:
        tensors: canonical name (or the stored one, of what belongs to no tower) -> where it is stored.
        note: what was seen through or left out, the end of a sentence that begins with the source; None for nothing.
        beside: canonical name -> where the text side of an OpenCLIP model is stored, and its logit scale.
    """

    tensors: dict[str, TensorSpec]
    note: str | None = None
    beside: dict[str, TensorSpec] = field(default_factory=dict)


def find_tower(stored: Sequence[TensorSpec], where: str) -> Found:
    """The tower among the tensors that a source's headers list, in whichever form.

    Args:
        stored: everything the headers list.
        where: the source's label, for messages.

    Raises:
        NotATowerError: it is a ResNet, or holds several towers.
        CorruptFileError: it holds a tensor twice.
    """
    names = {spec.name for spec in stored}
    anchors = {found[1] for name in names if (found := _ANCHOR.fullmatch(name))}
    others = {found.group(1, 2) for name in names if (found := _OPEN_CLIP_ANCHOR.fullmatch(name))}
    towers = {
        (root, inner) for root, inner in others if f"{root}{inner}transformer.resblocks.0.attn.in_proj_weight" in names
    }
    if not anchors and not towers and any(f"{root}{inner}layer1.0.conv1.weight" in names for root, inner in others):
        raise NotATowerError(
            f"{where} holds a ResNet: CLIP's vision transformers can be merged, its ResNets cannot.",
            hint="Leave it out.",
        )
    if len(anchors) + len(towers) > 1:
        prefixes = sorted([*anchors, *(root + inner for root, inner in towers)])
        raise NotATowerError(
            f"{where} holds {plural(len(prefixes), 'tower')}, under {some([quoted(p, 60) for p in prefixes])}.",
            hint="Save the one that is meant in a file of its own.",
        )
    if towers:
        ((root, inner),) = towers
        return _of_open_clip(stored, root, inner, where)
    return _of_transformers(stored, next(iter(anchors), ""), where)


def _of_transformers(stored: Sequence[TensorSpec], root: str, where: str) -> Found:
    tensors: dict[str, TensorSpec] = {}
    left: list[str] = []
    for spec in stored:
        name = spec.name.removeprefix(root)
        if _CLASSIFIER.fullmatch(name) or _CLASSIFIER.fullmatch(spec.name):
            left.append(spec.name)
        elif own := canonical(name if spec.name.startswith(root) else spec.name):
            _add(tensors, own, spec, where)
    said = [f"is read behind the prefix {quoted(root, 80)}"] if root else []
    said += [f"has a classifier ({some(sorted(left))}), which is left out"] if left else []
    return Found(tensors, " and ".join(said) or None)


def _of_open_clip(stored: Sequence[TensorSpec], root: str, inner: str, where: str) -> Found:
    """A tower under `root` + `inner`; what is not under `inner` is the text side, unless the tower was saved alone."""
    tensors: dict[str, TensorSpec] = {}
    beside: dict[str, TensorSpec] = {}
    text = False
    for spec in stored:
        name = spec.name.removeprefix(root)
        own = spec.name.startswith(root) and name.startswith(inner)
        into = tensors if own else beside
        parts = open_clip.names_of(name.removeprefix(inner)) if own else open_clip.beside_names_of(name)
        for part, place in zip(parts, _thirds(spec) if len(parts) == 3 else (spec,), strict=False):
            _add(into, part, _transposed(place) if part in open_clip.TRANSPOSED else place, where)
        if own and not parts:
            _add(tensors, spec.name, spec, where)
        text = text or not own
    prefix = f", read behind the prefix {quoted(root, 80)}" if root else ""
    note = f"is an OpenCLIP tower{prefix}" + ("; the text side beside it is not merged" if text else "")
    return Found(tensors, note, beside)


def _thirds(spec: TensorSpec) -> tuple[TensorSpec, ...]:
    """The rows of q, k and v, which lie one below the other; of what cannot be cut in three, itself (to be refused)."""
    rows = spec.shape[0] if spec.shape else 1
    if rows % 3:
        return (spec,)
    shape, size = (rows // 3, *spec.shape[1:]), (spec.end - spec.start) // 3
    return tuple(
        dataclasses.replace(spec, shape=shape, start=spec.start + i * size, end=spec.start + (i + 1) * size)
        for i in range(3)
    )


def _transposed(spec: TensorSpec) -> TensorSpec:
    """OpenCLIP's projection is width × dim; of another shape, itself (to be refused)."""
    return dataclasses.replace(spec, shape=spec.shape[::-1], transposed=True) if len(spec.shape) == 2 else spec


def _add(tensors: dict[str, TensorSpec], own: str, spec: TensorSpec, where: str) -> None:
    if own in tensors:
        raise CorruptFileError(
            f"{where}/{spec.file} holds {own} twice, as {tensors[own].name} and as {spec.name}."
            if tensors[own].file == spec.file
            else f"{where} holds {own} twice, in {tensors[own].file} and in {spec.file}."
        )
    tensors[own] = spec
