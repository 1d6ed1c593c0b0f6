"""The adapters beside a merged tower: what is recorded of each, and what they and their files may be called."""

from __future__ import annotations

import re
from dataclasses import dataclass

FOLDER = "adapters"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # as peft calls them
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,70}[a-z0-9])?")
_FILE = re.compile(rf"{FOLDER}/([^/]*)/(?:{re.escape(CONFIG)}|{re.escape(WEIGHTS)})")
_BASE = re.compile(rb'^(  "base_model_name_or_path": )(?:null|"([^"\\\\\n]*)")(,)$', re.MULTILINE)
# A module of torch's has attributes of these names, so peft can keep no adapter there that is called so; the last two
# lines are parts of tensors' names, by which peft would take one adapter's tensors for another's.
_WORDS = """
add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double dump_patches eval extra_repr
float forward get_buffer get_extra_state get_parameter get_submodule half ipu items keys load_state_dict modules mtia
named_buffers named_children named_modules named_parameters parameters pop register_backward_hook register_buffer
register_forward_hook register_forward_pre_hook register_full_backward_hook register_full_backward_pre_hook
register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module register_parameter
register_state_dict_post_hook register_state_dict_pre_hook set_extra_state set_submodule share_memory smart_apply
state_dict to to_empty train training type update values xpu zero_grad
base_layer base_model bias embeddings encoder layers mlp model modules_to_save original_module self_attn vision_model
weight
"""
_TAKEN = frozenset(_WORDS.split())


@dataclass(frozen=True)
class AdapterRecord:
    """One adapter: with the tower, what it makes of it is its source again, as far as its rank reaches.

    Attributes:
        name: of its folder in `adapters/`.
        source: label of the source it was made of.
        rank: singular directions kept of each matrix, the most where they differ.
        parameters: numbers in it.
        size: bytes of its weight file.
        sha256: of its weight file.
        energy: share of the squared norm of the source's difference from the tower that rank keeps, all matrices
            together, in [0, 1]; 1 if there is no difference.
        fallbacks: the tensors of the tower on whose part of it the solver did not converge, and float64 LAPACK took
            over.
    """

    name: str
    source: str
    rank: int
    parameters: int
    size: int
    sha256: str
    energy: float
    fallbacks: tuple[str, ...] = ()


def is_adapter_name(text: str) -> bool:
    """Whether an adapter may be called so: a safe folder's name everywhere, and one that peft takes."""
    return _NAME.fullmatch(text) is not None and text not in _TAKEN


def is_adapter_file(text: str) -> bool:
    """Whether it is the path of one of the two files of an adapter: adapters/<name>/adapter_config.json."""
    found = _FILE.fullmatch(text)
    return found is not None and is_adapter_name(found[1])


def with_base(config: bytes, repo: str) -> bytes:
    """An adapter_config.json that names the repo of the tower it lies beside; `without_base` is the way back."""
    return _BASE.sub(rb'\1"' + repo.encode() + rb'"\3', config, count=1)


def without_base(config: bytes) -> bytes:
    """An adapter_config.json as it was before it was published anywhere, which is what its recorded digest is of."""
    return _BASE.sub(rb"\1null\3", config, count=1)


def base_of(config: bytes) -> str | None:
    """The repo that an adapter_config.json of ours names as its base; None before it was published."""
    found = _BASE.search(config)
    return found[2].decode(errors="replace") if found and found[2] is not None else None


def adapter_file(name: str, file: str) -> str:
    """Where a file of an adapter lies in the folder of its tower."""
    return f"{FOLDER}/{name}/{file}"
