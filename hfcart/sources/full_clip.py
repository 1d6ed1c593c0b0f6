"""What a whole CLIPModel has beside its vision tower, taken from the base as it is.

The text tower, both projections, the logit scale and the tokenizer. All of it is a stranger's: exactly the
tensors that the config's numbers ask for are taken, a few known fields of the config, and a few known files.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from hfcart.clip import open_clip
from hfcart.clip.architecture import checked, encoder_shapes
from hfcart.clip.tensor_names import PROJECTION
from hfcart.errors import CorruptFileError, MismatchError, NotATowerError, SourceError, together
from hfcart.formats.safetensors_file import TensorSpec, strict_json
from hfcart.quoting import quoted
from hfcart.records import Architecture
from hfcart.sources.one_architecture import tensor_differences
from hfcart.sources.stores import SMALL
from hfcart.sources.towers import Tower, known_base

# CLIPTextConfig's own defaults: configs leave out what equals them.
_TEXT: dict[str, int | float | str] = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# eos_token_id changes the function: the text tower pools at that token, or, where it is 2, at the largest token id.
_TOKEN_IDS = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
_LARGEST_ID = 1_000_000
_LOGIT_SCALE = 2.6592  # CLIPConfig's default: log(1 / 0.07)

_LARGE = 16 << 20  # bytes; CLIP's own tokenizer.json has 2 to 4 million
_TOKENIZER = {
    "tokenizer.json": _LARGE,
    "tokenizer_config.json": SMALL,
    "vocab.json": _LARGE,
    "merges.txt": _LARGE,
    "special_tokens_map.json": SMALL,
    "added_tokens.json": SMALL,
}
# The keys of hfcart.clip.models.TOKENIZERS, for whose import transformers takes seconds.
TOKENIZER_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
# auto_map is code to run; the others are paths that from_pretrained would open in place of the folder's own files, or
# arguments that no save_pretrained writes.
_FOLLOWED = (
    *("auto_map", "tokenizer_file", "vocab_file", "merges_file", "gguf_file"),
    *("fast_tokenizer_files", "tokenizer_object", "vocab", "merges", "post_processor", "init_inputs"),
)


@dataclass(frozen=True)
class BaseParts:
    """What is copied from the base.

    Attributes:
        tensors: name -> where the base stores it, in output order.
        text_config: the text tower's config.
        logit_scale_init_value: CLIPConfig's; the logit scale itself is one of the tensors.
        tokenizer: file name -> bytes.
    """

    tensors: dict[str, TensorSpec]
    text_config: dict[str, Any]
    logit_scale_init_value: float
    tokenizer: dict[str, bytes]


def read_base_parts(base: Tower) -> BaseParts:
    """All that a base has beside its vision tower, checked; of the weights only the headers are read.

    Raises:
        SourceError: the base is a vision tower only, or has no tokenizer, or one that needs code of its own.
        MismatchError: its tensors are not those of the CLIPModel that its config describes.
        CorruptFileError: a file of the tokenizer is too large, or broken.
    """
    label = f"{base.label} (base)"
    config = _config(base)
    held = _stored_parts(base)
    if config.get("model_type") != "clip" or not any(name.startswith("text_model.") for name in held):
        raise SourceError(
            f"{label} is a vision tower only: the whole CLIPModel that such towers come from is needed, "
            "with its text tower and projections.",
            hint=together(
                f"Name it: --base {known_base(base.architecture) or 'user/name'}",
                "Of `hfcart finetune` it is the BASE, which comes first.",
            ),
        )
    text_config = read_text_config(config, label)
    expected = _expected(text_config, base.architecture)
    if rows := tensor_differences(held, expected):
        raise MismatchError(
            f"{label} does not hold the text tower and the projections that its config.json describes. "
            "Nothing was downloaded.",
            [(label, *row) for row in rows],
            hint="Name a revision of it that fits: user/name@revision.",
        )
    scale = config.get("logit_scale_init_value", _LOGIT_SCALE)
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not math.isfinite(scale):
        scale = _LOGIT_SCALE
    return BaseParts(
        {name: held[name] for name in expected}, text_config, float(scale), _tokenizer(base, label, config)
    )


def is_whole(tower: Tower) -> bool:
    """Whether a source whose headers are read is a whole CLIP model, text tower and all.

    Of OpenCLIP's files, which nearly always have the text side, only those that come with config and tokenizer.
    """
    names = tower.store.sizes
    if tower.beside:
        described = "config.json" in names or open_clip.CONFIG in names
        return described and ("tokenizer.json" in names or {"vocab.json", "merges.txt"} <= names.keys())
    return any(spec.name.startswith("text_model.") for spec in tower.stored)


def _config(base: Tower) -> dict[str, Any]:
    """The base's config.json, or what its open_clip_config.json says in the words of that."""
    data = base.store.small("config.json")
    if data is None and base.beside and (own := base.store.small(open_clip.CONFIG)) is not None:
        text = open_clip.read_open_clip_text(strict_json(own), f"{base.label} (base)")
        return {"model_type": "clip", "text_config": text}
    found: dict[str, Any] = strict_json(data or b"{}")
    return found


def clip_config(arch: Architecture, parts: BaseParts, dtype: str) -> dict[str, Any]:
    """The config.json of a CLIPModel: the merged tower's, and what the base's text tower needs."""
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": dtype,
        "projection_dim": arch.projection_dim,
        "logit_scale_init_value": parts.logit_scale_init_value,
        "text_config": {
            "model_type": "clip_text_model",
            **parts.text_config,
            "projection_dim": arch.projection_dim,
        },
        "vision_config": {"model_type": "clip_vision_model", **dataclasses.asdict(arch)},
    }


def _stored_parts(base: Tower) -> dict[str, TensorSpec]:
    """What the base's headers list beside the tower; position_ids, a constant that old releases stored, is left."""
    held: dict[str, TensorSpec] = {}
    if base.beside:  # of OpenCLIP's form
        return base.beside | ({PROJECTION: base.projection} if base.projection else {})
    others = ("text_projection.weight", PROJECTION, "logit_scale")
    for spec in base.stored:
        beside = spec.name.startswith("text_model.") or spec.name in others
        if not beside or spec.name == "text_model.embeddings.position_ids":
            continue
        if spec.name in held:
            raise CorruptFileError(f"{base.label} (base) holds {spec.name[:120]} twice.")
        held[spec.name] = spec
    return held


def read_text_config(config: dict[str, Any], label: str) -> dict[str, Any]:
    """The text side of a parsed config.json, checked. Raises NotATowerError as `read_architecture` does."""
    # transformers lets an old text_config_dict replace text_config as a whole, defaults included; so do we.
    old = config.get("text_config_dict")
    found = config.get("text_config") or {} if old is None else old
    where = f"{label}: text_config"
    if not isinstance(found, dict):
        raise NotATowerError(f"{label}: config.json has a text_config that is not a mapping.")
    out: dict[str, Any] = {
        name: checked(name, found.get(name, default), default, where) for name, default in _TEXT.items()
    }
    for name, token in _TOKEN_IDS.items():
        value = found.get(name, token)
        known = type(value) is int and 0 <= value <= _LARGEST_ID
        if not known and (value is not None or name == "eos_token_id"):
            raise NotATowerError(f"{where}: config.json has {name} = {quoted(str(value), 60)}, which is no token.")
        out[name] = value
    if out["hidden_size"] % out["num_attention_heads"]:
        raise NotATowerError(
            f"{where}: config.json has hidden_size {out['hidden_size']}, "
            f"not a multiple of num_attention_heads {out['num_attention_heads']}."
        )
    return out


def _expected(text: dict[str, Any], arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what a CLIPModel has beside its vision tower, in output order."""
    d = text["hidden_size"]
    tower = {
        "embeddings.token_embedding.weight": (text["vocab_size"], d),
        "embeddings.position_embedding.weight": (text["max_position_embeddings"], d),
        **encoder_shapes(d, text["intermediate_size"], text["num_hidden_layers"]),
        "final_layer_norm.weight": (d,),
        "final_layer_norm.bias": (d,),
    }
    return {
        **{f"text_model.{name}": shape for name, shape in tower.items()},
        PROJECTION: (arch.projection_dim, arch.hidden_size),
        "text_projection.weight": (arch.projection_dim, d),
        "logit_scale": (),
    }


def _tokenizer(base: Tower, label: str, config: dict[str, Any]) -> dict[str, bytes]:
    hint = "Name a base with a plain CLIP tokenizer: openai/clip-vit-base-patch32, or the one of your size."
    files = {name: data for name, size in _TOKENIZER.items() if (data := base.store.small(name, size)) is not None}
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files.keys():
        raise SourceError(
            f"{label} has no tokenizer: expected tokenizer.json, or vocab.json and merges.txt.", hint=hint
        )
    named = None
    for name, data in files.items():
        try:
            found = strict_json(data) if name.endswith(".json") else {"": data.decode("utf-8")}
            if not isinstance(found, dict):
                raise ValueError("it is no mapping")
        except ValueError as error:
            raise CorruptFileError(f"{label}: {name} is broken: {str(error)[:200]}.", hint=hint) from None
        # What is no token there would be an argument of the tokenizer, a path among them.
        if name == "special_tokens_map.json" and (
            others := [k for k in found if not k.endswith(("_token", "_tokens"))]
        ):
            raise SourceError(
                f"{label}: special_tokens_map.json has {quoted(others[0], 60)}, expected special tokens only.",
                hint=hint,
            )
        if name != "tokenizer_config.json":
            continue
        named = found.get("tokenizer_class")
        if followed := [key for key in _FOLLOWED if found.get(key)]:
            raise SourceError(
                f"{label}: tokenizer_config.json has {followed[0]}, which leads to code or files elsewhere.", hint=hint
            )
    # Where tokenizer_config.json names no class, transformers looks into config.json, of which ours keeps no such name.
    for where, kind, known in (
        ("tokenizer_config.json", named, TOKENIZER_CLASSES),
        ("config.json", not named and config.get("tokenizer_class"), TOKENIZER_CLASSES[:2]),
    ):
        if kind and kind not in known:
            raise SourceError(
                f"{label}: {where} names the class {quoted(str(kind), 60)}, expected one of {', '.join(known)}.",
                hint=hint,
            )
    return files
