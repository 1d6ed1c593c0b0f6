"""The only importer of transformers."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
)
from transformers.utils import logging

from hfcart.records import Architecture


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


def tokenizer(files: Mapping[str, bytes], length: int) -> Callable[[Sequence[str]], Int[torch.Tensor, "text token"]]:
    """CLIP's tokenizer from its files: texts -> token ids, padded to the longest of them, cut to `length` tokens.

    Args:
        files: tokenizer.json, or vocab.json and merges.txt.
        length: the text tower's max_position_embeddings.

    Raises:
        ValueError: the files hold no tokenizer.
    """
    if "tokenizer.json" in files:
        backend = Tokenizer.from_str(files["tokenizer.json"].decode("utf-8"))
    else:
        merges: Any = [tuple(line.split(" ")) for line in files["merges.txt"].decode("utf-8").splitlines()[1:] if line]
        slow = CLIPTokenizer(vocab=json.loads(files["vocab.json"]), merges=merges)
        backend = slow.backend_tokenizer
    backend.enable_truncation(length)
    backend.no_padding()

    def encode(texts: Sequence[str]) -> torch.Tensor:
        rows = [encoding.ids for encoding in backend.encode_batch(list(texts))]
        longest = max(map(len, rows))
        # A text ends with its end token: repeating it is what CLIP's own padding does.
        return torch.tensor([row + row[-1:] * (longest - len(row)) for row in rows])

    return encode


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
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(tokens)}
    words = CLIPTokenizer(vocab=ids, merges=[], model_max_length=text["max_position_embeddings"])
    # Not CLIP's own eos_token_id of 2, which old configs carry: with it the text is read at its largest token id.
    end = ids["<|endoftext|>"]
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
