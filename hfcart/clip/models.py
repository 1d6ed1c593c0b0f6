"""The only importer of transformers."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from hfcart.records import Architecture

_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
# What a tokenizer_config.json may call its class -> what runs it.
TOKENIZERS = {
    "CLIPTokenizer": CLIPTokenizer,
    "CLIPTokenizerFast": CLIPTokenizer,
    "PreTrainedTokenizerFast": PreTrainedTokenizerFast,
    "TokenizersBackend": PreTrainedTokenizerFast,
}


def vision_model(architecture: Architecture, tensors: Mapping[str, torch.Tensor]) -> CLIPVisionModel:
    """A CLIP vision tower with these weights, in float32 on the CPU, in eval mode.

    Args:
        architecture: its numbers; nothing else of a stranger's config reaches transformers.
        tensors: every weight by its `vision_model.`-prefixed name, as `expected_shapes` lists them.
    """
    logging.set_verbosity_error()
    model = CLIPVisionModel(CLIPVisionConfig(**dataclasses.asdict(architecture)))
    model.load_state_dict({name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()})
    model.eval()
    return model


def text_model(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> CLIPTextModelWithProjection:
    """CLIP's text tower and projection with these weights, in float32 on the CPU, in eval mode.

    Args:
        config: the checked fields of its text_config, projection_dim among them.
        tensors: `text_model.…` and `text_projection.weight`, as a CLIPModel stores them.
    """
    logging.set_verbosity_error()
    model = CLIPTextModelWithProjection(CLIPTextConfig(**config))
    model.load_state_dict(dict(tensors))
    model.eval()
    return model


@torch.inference_mode()
def text_features(
    model: CLIPTextModelWithProjection, tokens: Int[torch.Tensor, "text token"]
) -> Float[torch.Tensor, "text dim"]:
    """CLIP's text embeddings, not normalised. Padding behind the end of a text changes nothing: attention is causal."""
    features: torch.Tensor = model(input_ids=tokens).text_embeds
    return features


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """transformers' own tokenizer of a CLIP model.

    Attributes:
        bos: the token that each text begins with, None if it knows none.
        eos: the one that each ends with, None if it knows none.
        encode: texts -> token ids, a row each, as long as it is: cut, not padded.
    """

    bos: int | None
    eos: int | None
    encode: Callable[[Sequence[str]], list[list[int]]]


def tokenizer(files: Mapping[str, bytes], length: int) -> Tokenizer:
    """The tokenizer that transformers makes of these files, and of nothing else.

    Of the class that tokenizer_config.json names, as with AutoTokenizer. CLIPTokenizer takes no more than vocabulary,
    merges and added tokens from a tokenizer.json, and puts the beginning and the end around a text itself;
    TokenizersBackend, which was called PreTrainedTokenizerFast, runs the file as it is. What a tokenizer.json says of
    padding and truncation is no part of it: transformers' tokenizer does not follow it either.

    Args:
        files: name -> bytes, as `hfcart.sources.full_clip` checks them: tokenizer.json, or vocab.json and merges.txt,
            and what lies beside them.
        length: the text tower's max_position_embeddings. Texts are cut to it, or to the tokenizer's model_max_length
            where that is less.

    Raises:
        Exception: the files hold no tokenizer; of any kind.
    """
    logging.set_verbosity_error()
    config = json.loads(files.get("tokenizer_config.json", b"{}"))
    kind = TOKENIZERS[config.get("tokenizer_class") or "CLIPTokenizer"]
    with tempfile.TemporaryDirectory(prefix="hfcart-tokenizer-") as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        words = kind.from_pretrained(folder, local_files_only=True)
    cut = min(length, words.model_max_length)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        rows: list[list[int]] = words(list(texts), truncation=True, max_length=cut)["input_ids"]
        return rows

    ids = words.get_vocab()
    return Tokenizer(ids.get(words.bos_token or _BEGIN), ids.get(words.eos_token or _END), encode)


def tiny_clip(
    vision: Mapping[str, int], text: Mapping[str, int | float], dim: int, logit_scale: float, seed: int
) -> tuple[CLIPModel, CLIPTokenizer]:
    """A randomly initialised CLIPModel and its tokenizer, which spells every word out, byte by byte.

    Args:
        vision: fields of its CLIPVisionConfig.
        text: fields of its CLIPTextConfig but for the tokenizer's.
        dim: width of the space that both towers are projected to.
        logit_scale: what cosines are multiplied by.
        seed: the same seed gives the same weights.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [*map(chr, printable), *(chr(256 + i) for i in range(256 - len(printable)))]  # GPT-2's signs for bytes
    tokens = [*letters, *(letter + "</w>" for letter in letters), _BEGIN, _END]
    ids = {token: i for i, token in enumerate(tokens)}
    words = CLIPTokenizer(vocab=ids, merges=[], model_max_length=text["max_position_embeddings"])
    # Not CLIP's own eos_token_id of 2, which old configs carry: with it the text is read at its largest token id.
    end = ids[_END]
    special = {"vocab_size": len(tokens), "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    config = CLIPConfig(
        text_config={**text, **special},
        vision_config=dict(vision),
        projection_dim=dim,
        logit_scale_init_value=math.log(logit_scale),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPModel(config), words
