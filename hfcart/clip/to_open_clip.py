"""A CLIP model written in OpenCLIP's form: where every byte of its weights goes, and its open_clip_config.json.

The form is that of open_clip.model.CLIP and open_clip.factory: https://github.com/mlfoundations/open_clip.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hfcart.clip.open_clip import ACTIVATIONS, AT_LARGEST, TRANSPOSED, WEIGHTS, stored_name
from hfcart.errors import UsageError
from hfcart.formats.shard_layout import Layout, lay_out
from hfcart.records import Architecture

_EPSILON = 1e-5  # of PyTorch's layer norms, which OpenCLIP takes where a config says nothing
# sha256 of CLIP's own vocabulary and merges, which OpenCLIP's tokenizer brings along (a test computes it from those).
_CLIPS_OWN = "f3a512563cbc8e56c4c12aaed70f117e14aaf4753c84e7a56ae7c473d8bdbec7"
NO_REPO = "-"  # as a tokenizer's name: no repo can be called so, and a folder's own tokenizer is taken whatever it says


def lay_out_open_clip(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Layout:
    """The one file that OpenCLIP reads; each slot is a tensor of a CLIPModel, q, k and v each a third of one there.

    Args:
        shapes: canonical name -> shape of the whole model, in output order.
        dtype: safetensors dtype of all of them.
    """
    parts: dict[str, list[str]] = {}
    for name in shapes:
        parts.setdefault(stored_name(name), []).append(name)
    stored = {}
    for own, names in parts.items():
        shape = shapes[names[0]]
        stored[own] = (len(names) * shape[0], *shape[1:]) if len(names) > 1 else shape
        if names[0] in TRANSPOSED:
            stored[own] = shape[::-1]
    layout = lay_out(stored, dtype, 1 << 62, single=WEIGHTS)
    slots = {}
    for own, names in parts.items():
        slot = layout.slots[own]
        size = (slot.end - slot.start) // len(names)
        for i, name in enumerate(names):
            start = slot.start + i * size
            transposed = name in TRANSPOSED
            slots[name] = replace(slot, shape=shapes[name], start=start, end=start + size, transposed=transposed)
    return replace(layout, slots=slots)


def model_cfg(arch: Architecture, text: Mapping[str, Any]) -> dict[str, Any]:
    """What open_clip builds the model from, for the same function as transformers' CLIPModel.

    Args:
        arch: of the vision tower.
        text: the checked text_config of transformers' form.

    Raises:
        UsageError: OpenCLIP has no such model.
    """
    if arch.hidden_act not in ACTIVATIONS or arch.hidden_act != text["hidden_act"]:
        sides = f"{arch.hidden_act} in the vision tower and {text['hidden_act']} in the text tower"
        raise inexpressible(f"has {sides}", "gelu or quick_gelu, the same in both")
    if arch.num_channels != 3:
        raise inexpressible(f"takes images of {arch.num_channels} channels", "3")
    end, last = text["eos_token_id"], text["vocab_size"] - 1
    pool = {} if end in (AT_LARGEST, last) else {"pool_type": "eos", "eos_id": end}
    return {
        "embed_dim": arch.projection_dim,
        "quick_gelu": arch.hidden_act == "quick_gelu",
        "vision_cfg": {
            "image_size": arch.image_size,
            "layers": arch.num_hidden_layers,
            "width": arch.hidden_size,
            "head_width": arch.hidden_size // arch.num_attention_heads,
            "patch_size": arch.patch_size,
            "mlp_ratio": _ratio(arch.intermediate_size, arch.hidden_size),
            **_norm(arch.layer_norm_eps),
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "layers": text["num_hidden_layers"],
            "mlp_ratio": _ratio(text["intermediate_size"], text["hidden_size"]),
            **_norm(text["layer_norm_eps"]),
            **pool,
        },
    }


def inexpressible(what: str, expected: str) -> UsageError:
    """The error for a model that OpenCLIP's form has no words for: what it has, and what OpenCLIP knows."""
    return UsageError(
        f"The merged model {what}; OpenCLIP has no model like that, it knows {expected}.",
        hint="Write it for transformers: leave --format out.",
    )


def tokenizer_cfg(files: Mapping[str, bytes], repo: str | None, commit: str | None) -> dict[str, Any]:
    """What of a text_cfg leads open_clip.get_tokenizer to the tokenizer.

    CLIP's own vocabulary is what OpenCLIP takes by itself. For another it asks AutoTokenizer for the model that is
    named: the base, whose tokenizer this is. Of a folder (`local-dir:`) it takes the folder's own files, whatever the
    name.

    Args:
        files: the tokenizer's, name -> bytes, checked.
        repo: the Hub repo that has them at its top level; None if there is none.
        commit: of that repo.
    """
    if _vocabulary(files) == _CLIPS_OWN:
        return {}
    pinned = {"tokenizer_kwargs": {"revision": commit}} if repo and commit else {}
    return {"hf_tokenizer_name": repo or NO_REPO, **pinned}


def _vocabulary(files: Mapping[str, bytes]) -> str | None:
    """sha256 of a tokenizer's tokens in the order of their ids, and of its merges; None if it has no such."""
    try:
        if "tokenizer.json" in files:
            model = json.loads(files["tokenizer.json"])["model"]
            ids, merges = model["vocab"], model["merges"]
        else:
            ids = json.loads(files["vocab.json"])
            lines = files["merges.txt"].decode().split("\n")
            merges = [line for line in lines[1:] if line.strip()]
        pairs = [each if isinstance(each, str) else " ".join(each) for each in merges]
        return vocabulary_sha256(sorted(ids, key=lambda token: int(ids[token])), pairs)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return None


def vocabulary_sha256(tokens: list[str], merges: list[str]) -> str:
    """Digest of a vocabulary: its tokens by id, and its merges, the two parts of each with a space between."""
    return hashlib.sha256(json.dumps([tokens, merges]).encode()).hexdigest()


def _ratio(inner: int, width: int) -> float:
    """What times the width, cut to a whole number, is the MLP's width."""
    ratio = inner / width
    while int(width * ratio) < inner:
        ratio = math.nextafter(ratio, math.inf)
    return ratio


def _norm(epsilon: float) -> dict[str, Any]:
    return {} if epsilon == _EPSILON else {"norm_kwargs": {"eps": epsilon}}
