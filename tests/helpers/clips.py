"""Small real CLIP models, and small image data sets in the form that the Hub keeps them in."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from towers import TINY, config
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer
from transformers.utils import logging

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
START, END = "<|startoftext|>", "<|endoftext|>"
# Red, green, blue, ...: what tells the classes of `write_images` apart.
COLOURS = [(200, 40, 40), (40, 180, 60), (50, 70, 210), (220, 200, 40), (190, 60, 200), (60, 200, 200)]


def tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary of single bytes: 256 inside a word, 256 at its end, START and END last."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [chr(256 + i) for i in range(256 - len(printable))]  # GPT-2's stand-ins for the bytes one cannot see
    alphabet = [*map(chr, printable), *others]
    vocab = [*alphabet, *(letter + "</w>" for letter in alphabet), START, END]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(vocab)}, merges=[], model_max_length=77)


def write_clip(
    folder: Path, seed: int, cfg: dict = TINY, text: dict | None = None, words: CLIPTokenizer | None = None
) -> Path:
    """Write a CLIPModel with this vision config, its tokenizer and its preprocessor, saved by transformers itself.

    `text` has fields of its text config, `words` is another tokenizer than that of single bytes.

    The weights are random, the text tower's large enough that prompts of different classes point apart; the
    text tower pools at END (not, as with eos_token_id = 2, at the largest token id).
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    words = words or tokenizer()
    end, start = words.convert_tokens_to_ids(END), words.convert_tokens_to_ids(START)
    vision = {k: v for k, v in cfg.items() if k != "projection_dim"}
    ids = {"vocab_size": len(words), "bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    own = {**TEXT, **ids, "max_position_embeddings": 77, "hidden_act": cfg["hidden_act"], "initializer_factor": 8.0}
    whole = CLIPConfig(text_config=own | (text or {}), vision_config=vision, projection_dim=cfg["projection_dim"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(whole)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    side = cfg["image_size"]
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    CLIPImageProcessor(**size).save_pretrained(folder)
    return folder


def write_towers_of(clip: Path, folder: Path, count: int) -> list[Path]:
    """Towers t1, t2, ... as if fine-tuned from the CLIPModel in `clip`, each saved as a CLIPVisionModel."""
    base = load_file(clip / "model.safetensors")
    vision = json.loads((clip / "config.json").read_text())["vision_config"]
    towers = []
    for i in range(1, count + 1):
        own = torch.Generator().manual_seed(i)
        tower = {
            name: tensor + 0.05 * tensor.norm() / tensor.numel() ** 0.5 * torch.randn(tensor.shape, generator=own)
            for name, tensor in base.items()
            if name.startswith("vision_model.")
        }
        towers.append(folder / f"t{i}")
        towers[-1].mkdir()
        save_file(tower, towers[-1] / "model.safetensors", {"format": "pt"})
        (towers[-1] / "config.json").write_text(json.dumps(config(vision)))
    return towers


def image(label: int, seed: int, side: int = 24) -> Image.Image:
    """A noisy square of the class's colour."""
    noise = torch.randn(side, side, 3, generator=torch.Generator().manual_seed(seed)) * 40
    pixels = (torch.tensor(COLOURS[label]) + noise).clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.numpy())


def png(picture: Image.Image) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def parquet(
    images: list[bytes],
    labels: list[int],
    names: list[str] | None = None,
    *,
    image_column: str = "image",
    label_column: str = "label",
) -> bytes:
    """A parquet file as `datasets` pushes it: encoded images, labels, and the features in its metadata.

    Args:
        images: encoded images.
        labels: one an image.
        names: class names of a ClassLabel feature; None for plain integers.
    """
    label = {"dtype": "int64", "_type": "Value"} if names is None else {"names": names, "_type": "ClassLabel"}
    features = {image_column: {"_type": "Image"}, label_column: label}
    columns = {
        image_column: pa.array([{"bytes": data, "path": None} for data in images],
                               pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        label_column: pa.array(labels, pa.int64()),
    }  # fmt: skip
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), buffer)
    return buffer.getvalue()


def write_images(count: int, classes: int, seed: int, *, names: list[str] | None = None) -> bytes:
    """A parquet data set of `count` images in `classes` colours, label i % classes; nothing of it needs a network."""
    labels = [i % classes for i in range(count)]
    return parquet([_drawn(label, seed * 1_000_003 + i) for i, label in enumerate(labels)], labels, names)


@functools.cache
def _drawn(label: int, seed: int) -> bytes:
    return png(image(label, seed))
