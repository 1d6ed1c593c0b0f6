"""Which of a source's files are its weights, and which sources have a form that cannot be read."""

from __future__ import annotations

import re

from hfcart.clip import open_clip
from hfcart.errors import NotATowerError
from hfcart.formats.safetensors_file import MAX_INDEX, parse_index, strict_json
from hfcart.formats.shard_layout import INDEX, SINGLE, WEIGHTS
from hfcart.quoting import quoted, some
from hfcart.sources.stores import Store

# What trainers save beside the weights.
_OF_TRAINING = re.compile(
    r"(training_args|trainer_state|(lr_|grad_)?(optimizer|optim|scheduler|scaler|sampler)|rng_state|random_states?"
    r"|custom_checkpoint)([._-].*)?\.(bin|pt|pth)|.*[._-]optim_states\.pt",
    re.IGNORECASE,
)


def refuse_other_forms(store: Store) -> None:
    """Name a source's form where it is one that cannot be merged: a GGUF file, quantized weights.

    Raises:
        NotATowerError: it is one of these; the hint says what to do.
    """
    names = [store.chosen] if store.chosen else sorted(store.sizes)
    if names and not any(name.endswith(WEIGHTS) for name in names) and any(n.endswith(".gguf") for n in names):
        raise NotATowerError(
            f"{store.label} holds GGUF files, whose weights are quantized.",
            hint="Give the repo that they were made of, whose weights are safetensors.",
        )
    stated = _mapping(store, "config.json").get("quantization_config")
    if stated is not None:
        method = stated.get("quant_method") if isinstance(stated, dict) else None
        raise NotATowerError(
            f"{store.label} is quantized ({quoted(method or 'as its config.json says', 60)}): what was rounded away "
            "cannot be merged.",
            hint="Give the repo that it was made of, whose weights are float32, float16 or bfloat16.",
        )


def _mapping(store: Store, name: str) -> dict[str, object]:
    """A small JSON object of the source; empty where there is none, or none that can be read."""
    try:
        found = strict_json(store.small(name) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def choose_weights(store: Store) -> tuple[list[str], dict[str, str] | None]:
    """The file that was asked for, else what from_pretrained would load: safetensors, shards by their index, a pickle.

    Else what open_clip would, else the only file there is that may hold weights.
    """
    if store.chosen and store.chosen != INDEX:
        if not store.chosen.endswith(WEIGHTS):
            raise NotATowerError(
                f"{store.label} is no file of weights: expected one that ends with {', '.join(WEIGHTS)}.",
                hint="Give the folder that holds it, or one of its weight files.",
            )
        return [store.chosen], None
    if SINGLE in store.sizes:
        return [SINGLE], None
    if INDEX in store.sizes:
        index = parse_index(store.small(INDEX, MAX_INDEX) or b"", list(store.sizes), f"{store.label}/{INDEX}")
        return sorted(set(index.values())), index
    for name in (open_clip.WEIGHTS, "pytorch_model.bin", open_clip.PICKLE):
        if name in store.sizes:
            return [name], None
    others = sorted(name for name in store.sizes if name.endswith(".safetensors"))
    if len(others) == 1:
        return others, None
    every = sorted(name for name in store.sizes if name.endswith(WEIGHTS[1:]))
    pickles = [name for name in every if not _OF_TRAINING.fullmatch(name)]
    shards = [name for name in pickles if re.fullmatch(r"pytorch_model-\d+-of-\d+\.bin", name)]
    if shards or len(pickles) == 1:
        return shards or pickles, None
    if several := others or pickles:
        raise NotATowerError(
            f"{store.label} holds several files of weights: {some(several)}.",
            hint=f"Say which one: {store.ref or store.label}:{several[0]}",
        )
    raise NotATowerError(
        f"{store.label} holds no weights: expected {SINGLE}, {INDEX} or pytorch_model.bin at its top level, "
        f"found {some(sorted(store.sizes)) or 'nothing'}."
        + (f" The state of a training, as in {every[0]}, is no weights." if every and not pickles else ""),
        hint=f"Say which of its folders: {store.ref or store.label}:{store.deeper[0]} is one of "
        f"{len(store.deeper)} with weights."
        if store.deeper
        else "Name a revision that has them: user/name@revision.",
    )
