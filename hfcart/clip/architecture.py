"""What a CLIP vision tower is: config.json -> Architecture -> the exact tensors it must hold.

Shapes alone do not prove that two towers compute the same function: the number of heads, the
activation, the layer norm's epsilon and the patch size's stride change not one shape. So both the
config and the headers are checked, each against the other and across sources.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from hfcart.errors import NotATowerError
from hfcart.quoting import quoted
from hfcart.records import Architecture

# CLIPVisionConfig's own defaults: configs written by older releases leave out what equals them.
_DEFAULTS: dict[str, int | float | str] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 512,
}
# The activations that transformers knows, but for prelu and xielu, which bring weights that no CLIP tower stores.
# A list of its own, since transformers takes seconds to import; a test holds it against ACT2FN.
ACTIVATIONS = (
    *("gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh"),
    *("gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2"),
    *("relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh"),
)
# A config is hostile input; these bounds only keep nonsense from becoming gigabytes of expected names.
_LARGEST = {"num_hidden_layers": 1_000, "num_channels": 1_000}
_LARGEST_INT = 1_000_000


def read_architecture(config: object, where: str) -> Architecture:
    """The vision side of a parsed config.json.

    Args:
        config: what json.loads gave: of a CLIPVisionModel, a CLIPVisionModelWithProjection or a CLIPModel.
        where: the source's label, for messages.

    Raises:
        NotATowerError: not CLIP, or a field that is no number in range.
    """
    config = config if isinstance(config, dict) else {}
    kind = config.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise NotATowerError(
            f"{where} is not a CLIP tower: config.json says model_type {quoted(kind)}, "
            "expected 'clip_vision_model' or 'clip'.",
            hint="Give repos or folders that hold a CLIPVisionModel or a CLIPModel saved by transformers.",
        )
    vision = config
    if kind == "clip":
        vision = _vision_config(config, where)
    values = {**_DEFAULTS, **{k: vision[k] for k in _DEFAULTS if k in vision}}
    if kind == "clip":  # a CLIPModel projects to the top level's width, whatever its vision_config repeats
        values["projection_dim"] = config.get("projection_dim", _DEFAULTS["projection_dim"])
    for name, default in _DEFAULTS.items():
        values[name] = checked(name, values[name], default, where)
    if values["hidden_size"] % values["num_attention_heads"]:
        raise NotATowerError(
            f"{where}: config.json has hidden_size {values['hidden_size']}, "
            f"not a multiple of num_attention_heads {values['num_attention_heads']}."
        )
    if values["image_size"] < values["patch_size"]:
        raise NotATowerError(
            f"{where}: config.json has image_size {values['image_size']}, below patch_size {values['patch_size']}."
        )
    return Architecture(**values)


def _vision_config(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Of a CLIPModel's config. Beside vision_config there may be an old vision_config_dict, which must say the same.

    Where both are there, a CLIPModel takes the old one as a whole, defaults included, a CLIPVisionModel the new one.
    """
    new, old = config.get("vision_config") or {}, config.get("vision_config_dict")
    if not isinstance(new, dict) or not (old is None or isinstance(old, dict)):
        raise NotATowerError(f"{where}: config.json has a vision_config that is not a mapping.")
    if old is None or not new:
        return old or new
    for name, default in _DEFAULTS.items():
        one, other = new.get(name, default), old.get(name, default)
        if one != other and name != "projection_dim":
            raise NotATowerError(
                f"{where}: config.json has {name} = {str(one)[:60]!r} in vision_config and {str(other)[:60]!r} in "
                "vision_config_dict; which one counts would depend on the class that loads it."
            )
    return new


def checked(name: str, value: object, default: int | float | str, where: str) -> int | float | str:
    """A config's field, of its default's type and in range. Raises NotATowerError if it is not.

    Whatever passes is loaded by transformers: no merge writes a config that it refuses.
    """
    if isinstance(default, str):  # hidden_act
        good = isinstance(value, str) and value in ACTIVATIONS
    elif isinstance(default, float):
        good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
    else:
        top = _LARGEST.get(name, _LARGEST_INT)
        good = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= top
    if not good:
        known = f"; transformers knows {', '.join(ACTIVATIONS)}" if name == "hidden_act" else ""
        raise NotATowerError(
            f"{where}: config.json has {name} = {quoted(value, 60)}, which no CLIP tower can have{known}."
        )
    return float(value) if isinstance(default, float) else value  # type: ignore[arg-type, return-value]


def expected_shapes(arch: Architecture, *, projection: bool) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the tower, `vision_model.`-prefixed, in output order.

    Output order is embeddings, the norm before the encoder, the blocks by number, the norm after, and
    last the projection if asked for.
    """
    d, f, p = arch.hidden_size, arch.intermediate_size, arch.patch_size
    positions = (arch.image_size // p) ** 2 + 1  # one per patch, and the class token
    out: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (d,),
        "embeddings.patch_embedding.weight": (d, arch.num_channels, p, p),
        "embeddings.position_embedding.weight": (positions, d),
        "pre_layrnorm.weight": (d,),
        "pre_layrnorm.bias": (d,),
    }
    out |= encoder_shapes(d, f, arch.num_hidden_layers)
    out |= {"post_layernorm.weight": (d,), "post_layernorm.bias": (d,)}
    out = {"vision_model." + name: shape for name, shape in out.items()}
    if projection:
        out["visual_projection.weight"] = (arch.projection_dim, d)
    return out


def encoder_shapes(d: int, f: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the blocks of a CLIP encoder, of vision or text: width d, MLP width f; from `encoder.` on."""
    out: dict[str, tuple[int, ...]] = {}
    for i in range(layers):
        block = f"encoder.layers.{i}."
        for proj in ("q_proj", "k_proj", "v_proj", "out_proj"):
            out[f"{block}self_attn.{proj}.weight"] = (d, d)
            out[f"{block}self_attn.{proj}.bias"] = (d,)
        out |= {f"{block}layer_norm1.weight": (d,), f"{block}layer_norm1.bias": (d,)}
        out |= {f"{block}mlp.fc1.weight": (f, d), f"{block}mlp.fc1.bias": (f,)}
        out |= {f"{block}mlp.fc2.weight": (d, f), f"{block}mlp.fc2.bias": (d,)}
        out |= {f"{block}layer_norm2.weight": (d,), f"{block}layer_norm2.bias": (d,)}
    return out


def differences(arch: Architecture, reference: Architecture, *, projection: bool) -> list[tuple[str, str, str]]:
    """Every (field, expected, found) in which two towers differ; the projection's width only if it is merged."""
    fields = [f.name for f in dataclasses.fields(Architecture) if projection or f.name != "projection_dim"]
    return [
        (f"config.json: {name}", str(getattr(reference, name)), str(getattr(arch, name)))
        for name in fields
        if getattr(arch, name) != getattr(reference, name)
    ]


def output_config(arch: Architecture, model_class: str, dtype: str) -> dict[str, Any]:
    """The config.json of a merged tower: what the class needs, and nothing left over from a source."""
    return {
        "architectures": [model_class],
        "model_type": "clip_vision_model",
        "dtype": dtype,
        **dataclasses.asdict(arch),
    }
