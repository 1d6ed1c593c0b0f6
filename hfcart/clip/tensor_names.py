"""The tower's canonical tensor names, and which tensors are merged together.

One tower comes to us in three forms: `vision_model.encoder.layers…` (transformers < 5.6, and every
CLIPVisionModelWithProjection), `encoder.layers…` (CLIPVisionModel saved by >= 5.6), and inside a whole
CLIPModel. The prefixed form is canonical: transformers 4.x silently re-initialises the flat one.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass

PREFIX = "vision_model."
PROJECTION = "visual_projection.weight"
COPIED = "copied from the base"  # the rule of what is beside the tower in a whole CLIPModel
_FLAT_ROOTS = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
# What a CLIPModel holds beside its tower. position_ids is a constant (0, 1, 2, ...) that old releases stored.
_BESIDE = re.compile(r"text_model\..+|text_projection\.weight|logit_scale|(vision_model\.)?embeddings\.position_ids")
_COPIED = re.compile(
    r"text_model\.(?:embeddings\.(?:token|position)_embedding\.weight|final_layer_norm\.(?:weight|bias)"
    r"|encoder\.layers\.\d{1,3}\.(?:self_attn\.(?:[qkv]|out)_proj|mlp\.fc[12]|layer_norm[12])\.(?:weight|bias))"
    r"|visual_projection\.weight|text_projection\.weight|logit_scale"
)
_MATRIX = re.compile(
    r"vision_model\.encoder\.layers\.(\d+)\.(self_attn|mlp)\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)\.weight"
)


def canonical(stored: str) -> str | None:
    """The prefixed name of a stored tensor; None for what belongs beside the tower, not in it.

    A name of none of the three forms is returned as it is, so that the caller can report it.
    """
    if _BESIDE.fullmatch(stored):
        return None
    if stored.startswith(_FLAT_ROOTS):
        return PREFIX + stored
    return stored


def is_copied(name: str) -> bool:
    """Whether a whole CLIPModel has a tensor of this name beside its tower."""
    return _COPIED.fullmatch(name) is not None


def is_matrix(name: str) -> bool:
    """Whether a canonical name is one of the encoder's attention or MLP weights ("matrix" in the papers)."""
    return _MATRIX.fullmatch(name) is not None


def layer_and_matrix(name: str) -> tuple[int, str] | None:
    """(3, "fc1") for the fc1 weight of block 3; None for whatever is not a matrix."""
    found = _MATRIX.fullmatch(name)
    return (int(found[1]), found[3]) if found else None


@dataclass(frozen=True)
class Group:
    """Tensors that one call of a method merges: one tensor, or q, k and v fused along the rows.

    Attributes:
        names: canonical names, in the order in which their rows are stacked.
        matrix: whether the method's matrix rule applies.
        copied: whether it is no part of the tower, and taken from the base as it is.
    """

    names: tuple[str, ...]
    matrix: bool
    copied: bool = False

    @property
    def key(self) -> str:
        """Name of the group in the journal: its first tensor's."""
        return self.names[0]


def groups(names: Iterable[str], qkv: str, also: Container[str] = ()) -> list[Group]:
    """Cut the tower's names into groups, in output order.

    Args:
        names: canonical names in output order.
        qkv: "split" merges q, k and v one by one; "fused" as one 3d × d matrix, as OpenCLIP stores them.
        also: names that get the matrix rule although they are no attention or MLP weights.
    """
    out: list[Group] = []
    for name in names:
        if qkv == "fused" and name.endswith("self_attn.q_proj.weight"):
            out.append(Group(tuple(name.replace("q_proj", f"{x}_proj") for x in "qkv"), matrix=True))
        elif qkv == "fused" and name.endswith(("self_attn.k_proj.weight", "self_attn.v_proj.weight")):
            continue
        else:
            out.append(Group((name,), matrix=is_matrix(name) or name in also))
    return out
