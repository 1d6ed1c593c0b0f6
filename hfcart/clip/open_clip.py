"""OpenCLIP's form of a tower: its tensor names, its config, and what its shapes alone tell.

The form is that of open_clip.model.CLIP: https://github.com/mlfoundations/open_clip.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hfcart.clip.architecture import read_architecture
from hfcart.clip.tensor_names import PREFIX, PROJECTION
from hfcart.errors import NotATowerError
from hfcart.quoting import quoted
from hfcart.records import Architecture

CONFIG = "open_clip_config.json"
WEIGHTS, PICKLE = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
ACTIVATIONS = ("quick_gelu", "gelu")  # OpenAI's weights have the first, most of LAION's the second
_HEAD_WIDTH = 64  # what open_clip takes where a config says nothing
_NAMES = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    **{f"ln_pre.{kind}": f"pre_layrnorm.{kind}" for kind in ("weight", "bias")},
    **{f"ln_post.{kind}": f"post_layernorm.{kind}" for kind in ("weight", "bias")},
}
_OF_BLOCK = {
    **{f"ln_{n}.{kind}": f"layer_norm{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")},
    **{f"attn.out_proj.{kind}": f"self_attn.out_proj.{kind}" for kind in ("weight", "bias")},
    **{f"mlp.c_fc.{kind}": f"mlp.fc1.{kind}" for kind in ("weight", "bias")},
    **{f"mlp.c_proj.{kind}": f"mlp.fc2.{kind}" for kind in ("weight", "bias")},
}
_BLOCK = re.compile(r"transformer\.resblocks\.(\d{1,3})\.(.+)")
# Of a vision_cfg: what is read, and what changes nothing of a tower that is loaded to be used.
_READ = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"}
_WITHOUT_EFFECT = {"patch_dropout", "output_tokens"}
_DEFAULTS: dict[str, Any] = {"layers": 12, "width": 768, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224}


def names_of(stored: str) -> tuple[str, ...]:
    """The canonical names of a tensor that OpenCLIP stores under `visual.`: q, k and v for the three it fuses.

    Args:
        stored: from behind `visual.` on.

    Returns:
        One name, three whose rows lie one below the other, or () where OpenCLIP's plain tower has no such tensor.
    """
    if stored == "proj":
        return (PROJECTION,)
    if stored in _NAMES:
        return (PREFIX + _NAMES[stored],)
    block = _BLOCK.fullmatch(stored)
    if block is None:
        return ()
    inside = f"{PREFIX}encoder.layers.{int(block[1])}."
    if block[2] in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = block[2].rpartition("_")[2]
        return tuple(f"{inside}self_attn.{part}_proj.{kind}" for part in "qkv")
    return (inside + _OF_BLOCK[block[2]],) if block[2] in _OF_BLOCK else ()


def read_open_clip_config(config: object, where: str) -> Architecture:
    """The vision side of a parsed open_clip_config.json.

    Args:
        config: what json.loads gave.
        where: the source's label, for messages.

    Raises:
        NotATowerError: no vision transformer, or one with a part that CLIP's tower does not have.
    """
    model = config.get("model_cfg") if isinstance(config, dict) else None
    vision = model.get("vision_cfg") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(vision, dict):
        raise NotATowerError(f"{where}: {CONFIG} has no model_cfg with a vision_cfg.")
    odd = sorted(key for key, value in vision.items() if key not in _READ | _WITHOUT_EFFECT and value)
    if odd or not isinstance(vision.get("layers", 12), int):
        what = odd[0] if odd else "layers"
        raise NotATowerError(
            f"{where} is no plain CLIP vision transformer: {CONFIG} has {quoted(what, 60)} = "
            f"{quoted(vision[what], 60)} in its vision_cfg.",
            hint="ResNets, timm towers and those with other pooling have another form than a CLIPVisionModel.",
        )
    found = {**_DEFAULTS, **vision}
    width, head, ratio = found["width"], found.get("head_width", _HEAD_WIDTH), found["mlp_ratio"]
    if not all(type(n) is int and n > 0 for n in (width, head)) or width % head or not _is_ratio(ratio):
        raise NotATowerError(
            f"{where}: {CONFIG} has width {quoted(width, 20)}, head_width {quoted(head, 20)} and mlp_ratio "
            f"{quoted(ratio, 20)}, which no CLIP tower can have."
        )
    quick = model.get("quick_gelu", False)
    if not isinstance(quick, bool):
        raise NotATowerError(f"{where}: {CONFIG} has quick_gelu = {quoted(quick, 20)}, expected true or false.")
    return _architecture(
        where,
        hidden_size=width,
        intermediate_size=int(width * ratio),
        num_hidden_layers=found["layers"],
        num_attention_heads=width // head,
        image_size=_side(found["image_size"]),
        patch_size=_side(found["patch_size"]),
        hidden_act="quick_gelu" if quick else "gelu",
        projection_dim=model.get("embed_dim", 512),
    )


def architecture_of(shapes: Mapping[str, tuple[int, ...]], activation: str, where: str) -> Architecture:
    """What a tower's shapes say of it, for towers that come without a config.

    Heads are 64 wide, as in every CLIP that OpenAI or OpenCLIP released; a norm's epsilon is 1e-5.

    Args:
        shapes: canonical name -> shape.
        activation: which no shape shows.
        where: the source's label, for messages.

    Raises:
        NotATowerError: they are no CLIP tower's, or its heads cannot be 64 wide.
    """
    patches = shapes.get(f"{PREFIX}embeddings.patch_embedding.weight", ())
    positions = shapes.get(f"{PREFIX}embeddings.position_embedding.weight", ())
    mlp = shapes.get(f"{PREFIX}encoder.layers.0.mlp.fc1.weight", ())
    grid = round(max(0, positions[0] - 1) ** 0.5) if positions else 0
    if len(patches) != 4 or not mlp or grid**2 + 1 != positions[0] or patches[0] % _HEAD_WIDTH:
        raise NotATowerError(
            f"{where} has no config.json, and its tensors do not tell which CLIP tower it is: expected square images "
            f"and a width that is a multiple of {_HEAD_WIDTH}, found patches {list(patches)}, "
            f"positions {list(positions)}.",
            hint="Put its config.json beside the weights.",
        )
    layers = {int(found[1]) for name in shapes if (found := re.match(r".*encoder\.layers\.(\d{1,3})\.", name))}
    return _architecture(
        where,
        hidden_size=patches[0],
        intermediate_size=mlp[0],
        num_hidden_layers=len(layers),
        num_attention_heads=patches[0] // _HEAD_WIDTH,
        num_channels=patches[1],
        image_size=grid * patches[2],
        patch_size=patches[2],
        hidden_act=activation,
        projection_dim=shapes.get(PROJECTION, (512,))[0],
    )


def _architecture(where: str, **fields: Any) -> Architecture:  # noqa: ANN401 (of a stranger's config, checked there)
    return read_architecture({"model_type": "clip_vision_model", "layer_norm_eps": 1e-5, **fields}, where)


def _is_ratio(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 64


def _side(value: object) -> object:
    """Of [224, 224] its one side; another list stays, to be refused."""
    return value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value
