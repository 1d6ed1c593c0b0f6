"""Prompts to token ids, held against the text tower that is to read them: the tokenizer is a stranger's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int

from hfcart.errors import CorruptFileError
from hfcart.progress import Progress
from hfcart.quoting import plural

if TYPE_CHECKING:
    from hfcart.clip.models import Tokenizer

Encode = Callable[[Sequence[str]], Int[torch.Tensor, "text token"]]
_LEGACY_END = 2  # the eos_token_id of old configs, an error: with it the tower reads a text at its largest token id


def encoder(label: str, files: Mapping[str, bytes], text_config: Mapping[str, Any], progress: Progress) -> Encode:
    """What turns prompts into the ids that transformers' tokenizer gives them, padded to the longest of them.

    Args:
        label: the CLIP model's name, for messages.
        files: of its tokenizer, checked by `hfcart.sources.full_clip`.
        text_config: of its text tower, checked too.
        progress: warned once if the tower reads a prompt elsewhere than at its end.

    Raises:
        CorruptFileError: the files hold no tokenizer; from what is returned: it fails on a prompt, or gives it tokens
            that the tower does not know, too many, or others than the expected ones at its beginning and its end.
    """
    source = "tokenizer.json" if "tokenizer.json" in files else "vocab.json and merges.txt"

    def bad(what: str) -> CorruptFileError:
        return CorruptFileError(
            f"{label}: its tokenizer {what} (of {source}).",
            hint="Name a base, or a revision of this one, with a tokenizer that fits it: user/name@revision.",
        )

    words = _made(files, text_config["max_position_embeddings"], bad)
    warned = False

    def encode(prompts: Sequence[str]) -> torch.Tensor:
        nonlocal warned
        try:
            rows = words.encode(prompts)
        except BaseException as error:
            raise _told(error, "fails on the prompts", bad) from None
        for prompt, row in zip(prompts, rows, strict=True):
            if wrong := _wrong(row, words, text_config):
                raise bad(f"{wrong}, seen with the prompt {prompt[:80]!r}")
            if not warned and _read_at(row, text_config) != len(row) - 1:
                warned = True
                progress.warn(
                    f"The text tower of {label} reads {prompt[:80]!r} at token {row[_read_at(row, text_config)]} and "
                    f"not at its end, since its eos_token_id is {text_config['eos_token_id']}; so does transformers."
                )
        # A text ends with its end token: repeating it is what CLIP's own padding does, and nothing behind it is read.
        longest = max(map(len, rows))
        return torch.tensor([row + row[-1:] * (longest - len(row)) for row in rows])

    return encode


def _made(files: Mapping[str, bytes], length: int, bad: Callable[[str], CorruptFileError]) -> Tokenizer:
    from hfcart.clip.models import tokenizer

    try:
        return tokenizer(files, length)
    except BaseException as error:  # a broken file raises bare Exceptions, or what is none: a panic of Rust's
        raise _told(error, "cannot be read", bad) from None


def _told(error: BaseException, what: str, bad: Callable[[str], CorruptFileError]) -> BaseException:
    return error if isinstance(error, KeyboardInterrupt | SystemExit) else bad(f"{what}: {type(error).__name__}")


def _wrong(row: Sequence[int], words: Tokenizer, text_config: Mapping[str, Any]) -> str | None:
    known, longest = text_config["vocab_size"], text_config["max_position_embeddings"]
    if not 0 < len(row) <= longest:
        return f"gives {plural(len(row), 'token')} for a prompt, its text tower takes 1 to {longest}"
    if max(row) >= known:
        return f"gives token {max(row)}, its text tower knows {known}"
    end = words.eos if text_config["eos_token_id"] == _LEGACY_END else text_config["eos_token_id"]
    if row[0] != words.bos or row[-1] != end or _read_at(row, text_config) == 0:
        return (
            f"gives token ids from {row[0]} to {row[-1]}: expected {words.bos} at the beginning and {end} at the end, "
            "where the text tower reads them"
        )
    return None


def _read_at(row: Sequence[int], text_config: Mapping[str, Any]) -> int:
    """Where the text tower takes a text's features from: the first place of its end token."""
    end = text_config["eos_token_id"]
    return row.index(max(row) if end == _LEGACY_END else end)
