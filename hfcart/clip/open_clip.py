"""OpenCLIP's form of a CLIP model: its tensor names, both ways, its config, and what a tower's shapes alone tell.

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
_TEXT_PREFIX = "text_model."
_BESIDE = {  # the text side, which lies at the top level
    "token_embedding.weight": f"{_TEXT_PREFIX}embeddings.token_embedding.weight",
    "positional_embedding": f"{_TEXT_PREFIX}embeddings.position_embedding.weight",
    **{f"ln_final.{kind}": f"{_TEXT_PREFIX}final_layer_norm.{kind}" for kind in ("weight", "bias")},
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
TRANSPOSED = (PROJECTION, "text_projection.weight")  # canonical names of what OpenCLIP stores as width × dim
_BLOCK = re.compile(r"transformer\.resblocks\.(\d{1,3})\.(.+)")
_CANONICAL_BLOCK = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d{1,3})\.(.+)")
_FUSED = re.compile(r"self_attn\.[qkv]_proj\.(weight|bias)")
_STORED_INSIDE = {own: stored for stored, own in _OF_BLOCK.items()}
_STORED = {
    PROJECTION: "visual.proj",
    **{PREFIX + own: f"visual.{stored}" for stored, own in _NAMES.items()},
    **{own: stored for stored, own in _BESIDE.items()},
}
# Of a vision_cfg and a text_cfg: what is read, and what changes nothing of a model that is loaded to be used.
_READ = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "norm_kwargs"}
_WITHOUT_EFFECT = {"patch_dropout", "output_tokens"}
_DEFAULTS: dict[str, Any] = {"layers": 12, "width": 768, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224}
_TEXT_READ = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type", "eos_id"}
_TEXT_READ |= {"norm_kwargs", "hf_tokenizer_name", "tokenizer_kwargs"}
_TEXT_WITHOUT_EFFECT = {"output_tokens", "pad_id"}
_TEXT_DEFAULTS: dict[str, Any] = {"width": 512, "layers": 12, "heads": 8, "mlp_ratio": 4.0, "context_length": 77}
_TEXT_DEFAULTS |= {"vocab_size": 49408, "pool_type": "argmax", "eos_id": 2}
_WIDEST = 1_000_000  # a bound that only keeps nonsense from being computed with
AT_LARGEST = 2  # as an eos_token_id, it makes transformers read a text at its largest token id


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
    return _of_block(stored, PREFIX)


def beside_names_of(stored: str) -> tuple[str, ...]:
    """The same for a tensor beside the tower, at the top level: of the text side, or the logit scale."""
    return (_BESIDE[stored],) if stored in _BESIDE else _of_block(stored, _TEXT_PREFIX)


def _of_block(stored: str, prefix: str) -> tuple[str, ...]:
    block = _BLOCK.fullmatch(stored)
    if block is None:
        return ()
    inside = f"{prefix}encoder.layers.{int(block[1])}."
    if block[2] in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = block[2].rpartition("_")[2]
        return tuple(f"{inside}self_attn.{part}_proj.{kind}" for part in "qkv")
    return (inside + _OF_BLOCK[block[2]],) if block[2] in _OF_BLOCK else ()


def stored_name(name: str) -> str:
    """What OpenCLIP calls a tensor of a CLIPModel, `visual.` included; q, k and v lie in one, in this order."""
    block = _CANONICAL_BLOCK.fullmatch(name)
    if block is None:
        return _STORED[name]
    fused = _FUSED.fullmatch(block[3])
    inside = f"attn.in_proj_{fused[1]}" if fused else _STORED_INSIDE[block[3]]
    return f"{'visual.' if block[1] == 'vision' else ''}transformer.resblocks.{block[2]}.{inside}"


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
    odd = _odd(vision, _READ | _WITHOUT_EFFECT)
    if odd or not isinstance(vision.get("layers", 12), int):
        what = odd or "layers"
        raise NotATowerError(
            f"{where} is no plain CLIP vision transformer: {CONFIG} has {quoted(what, 60)} = "
            f"{quoted(vision[what], 60)} in its vision_cfg.",
            hint="ResNets, timm towers and those with other pooling have another form than a CLIPVisionModel.",
        )
    found = {**_DEFAULTS, **vision}
    width, head, ratio = found["width"], found.get("head_width", _HEAD_WIDTH), found["mlp_ratio"]
    if not _is_width(width) or not _is_width(head) or width % head or not _is_ratio(ratio):
        raise NotATowerError(
            f"{where}: {CONFIG} has width {quoted(width, 20)}, head_width {quoted(head, 20)} and mlp_ratio "
            f"{quoted(ratio, 20)}, which no CLIP tower can have."
        )
    return _architecture(
        where,
        hidden_size=width,
        intermediate_size=int(width * ratio),
        num_hidden_layers=found["layers"],
        num_attention_heads=width // head,
        image_size=_side(found["image_size"]),
        patch_size=_side(found["patch_size"]),
        hidden_act=_activation(model, where),
        layer_norm_eps=_epsilon(vision),
        projection_dim=model.get("embed_dim", 512),
    )


def read_open_clip_text(config: object, where: str) -> dict[str, Any]:
    """The text side of a parsed open_clip_config.json, in the words of transformers' text_config; values unchecked.

    Args:
        config: what json.loads gave.
        where: the source's label, for messages.

    Raises:
        NotATowerError: it is not CLIP's own text transformer.
    """
    model = config.get("model_cfg") if isinstance(config, dict) else None
    text = model.get("text_cfg") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(text, dict):
        raise NotATowerError(f"{where}: {CONFIG} has no model_cfg with a text_cfg.")
    found = {**_TEXT_DEFAULTS, **text}
    odd = _odd(text, _TEXT_READ | _TEXT_WITHOUT_EFFECT)
    odd = odd or ("pool_type" if found["pool_type"] not in ("argmax", "eos") else None)
    width, ratio = found["width"], found["mlp_ratio"]
    odd = odd or ("width" if not _is_width(width) else None if _is_ratio(ratio) else "mlp_ratio")
    if odd:
        raise NotATowerError(
            f"{where} has no plain CLIP text tower: {CONFIG} has {quoted(odd, 60)} = {quoted(found[odd], 60)} in its "
            "text_cfg."
        )
    return {
        "vocab_size": found["vocab_size"],
        "hidden_size": width,
        "intermediate_size": int(width * ratio),
        "num_hidden_layers": found["layers"],
        "num_attention_heads": found["heads"],
        "max_position_embeddings": found["context_length"],
        "hidden_act": _activation(model, where),
        "layer_norm_eps": _epsilon(text),
        "eos_token_id": found["eos_id"] if found["pool_type"] == "eos" else AT_LARGEST,
    }


def _odd(part: dict[str, Any], known: set[str]) -> str | None:
    """The first key of a vision_cfg or text_cfg that makes it another network than CLIP's; None for none."""
    odd = {key for key, value in part.items() if key not in known and value}
    norm = part.get("norm_kwargs")
    if norm and not (isinstance(norm, dict) and set(norm) == {"eps"}):
        odd.add("norm_kwargs")
    return min(odd, default=None)


def _epsilon(part: dict[str, Any]) -> object:
    """Of its layer norms: PyTorch's, or what norm_kwargs says."""
    return part["norm_kwargs"]["eps"] if part.get("norm_kwargs") else 1e-5


def _activation(model: dict[str, Any], where: str) -> str:
    quick = model.get("quick_gelu", False)
    if not isinstance(quick, bool):
        raise NotATowerError(f"{where}: {CONFIG} has quick_gelu = {quoted(quick, 20)}, expected true or false.")
    return "quick_gelu" if quick else "gelu"


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


def _is_width(value: object) -> bool:
    return type(value) is int and 0 < value <= _WIDEST


def _is_ratio(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 64


def _side(value: object) -> object:
    """Of [224, 224] its one side; another list stays, to be refused."""
    return value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value
