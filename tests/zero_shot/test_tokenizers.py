"""Prompts become the token ids that transformers gives them from the same folder, or the base is refused."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from clips import END, START, TEXT, write_clip
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.utils import logging

import hfcart
from hfcart.clip.models import TOKENIZERS
from hfcart.errors import CorruptFileError, HfcartError, SourceError
from hfcart.progress import Progress
from hfcart.sources.full_clip import TOKENIZER_CLASSES
from hfcart.tasks.task_cards import TaskCard
from hfcart.zero_shot.heads import make_head, open_base
from hfcart.zero_shot.prompts import encoder

PROMPTS = [
    *("a photo of a cat.", "A Photo, of the CAT!", "the photograph  of\tphotos\n", "", " ", "it's 1984; they'll 10x"),
    *("ein Ärger, ﬁne: é é", "写真 of a 猫 🐈‍⬛", "\u200bzero\u00a0width", "İstanbul ǅ ß", "<|endoftext|>", "\x00\x7f"),
    *(f"a {START} inside", "<cat-toy> and photo<cat-toy>", "!!! ... ---", "the " * 100, "photograph" * 30, "é" * 90),
]
MERGES = [("p", "h"), ("ph", "o"), ("t", "h"), ("th", "e</w>"), ("pho", "t"), ("a", "t</w>"), ("c", "at</w>")]


def words() -> CLIPTokenizer:
    """CLIP's tokenizer with a few merges, the begin and end tokens last, as in CLIP's own."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = [*map(chr, printable), *(chr(256 + i) for i in range(256 - len(printable)))]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *map("".join, MERGES), START, END]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=MERGES, model_max_length=77)


BOS = len(words()) - 2
TOWER = {"vocab_size": BOS + 5, "max_position_embeddings": 77, "bos_token_id": BOS, "eos_token_id": BOS + 1}


def edit(folder: Path, file: str, **fields: object) -> None:
    path = folder / file
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in {**found, **fields}.items() if value is not ...}))


def slow(
    folder: Path, added: dict[str, int] | None = None, *, first: str = "#version: 0.2\n", keep: bool = False
) -> None:
    """vocab.json and merges.txt, as repos of older releases have them, in place of tokenizer.json or beside it."""
    vocab = sorted(words().get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.json").write_text(json.dumps(dict(vocab)))
    (folder / "merges.txt").write_text(first + "".join(" ".join(pair) + "\n" for pair in MERGES[: 3 if keep else None]))
    if added is not None:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    if not keep:
        (folder / "tokenizer.json").unlink()


Change = Callable[[Path], object]


def json_(**fields: object) -> Change:
    return lambda folder: edit(folder, "tokenizer.json", **fields)


def config(**fields: object) -> Change:
    return lambda folder: edit(folder, "tokenizer_config.json", **fields)


def token(content: str, **fields: object) -> dict:
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": True, "single_word": False, **fields}


TOY = {"id": BOS + 2, **token("<cat-toy>", special=False)}
ADDED = [{"id": BOS, **token(START, special=True)}, {"id": BOS + 1, **token(END, special=True)}]
PADDED = {"strategy": {"Fixed": 20}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
          "pad_token": "!"}  # fmt: skip
CUT = {"direction": "Left", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
# What a folder's files may say; one of each row at a time, or any together.
FILES: list[tuple[Change, ...]] = [
    (
        lambda folder: None,
        slow,
        lambda folder: slow(folder, first=""),
        lambda folder: slow(folder, {"<cat-toy>": BOS + 2}),
        lambda folder: slow(folder, {"photo": 3, "<cat-toy>": 99}),
        lambda folder: slow(folder, {"<cat-toy>": BOS + 2}, keep=True),
        json_(post_processor=None),
        json_(normalizer=None),
        json_(normalizer={"type": "Replace", "pattern": {"Regex": ".*"}, "content": ""}),
        json_(pre_tokenizer=None),
        json_(truncation=CUT, padding=PADDED),
        json_(added_tokens=[*ADDED, TOY]),
        json_(added_tokens=...),
    ),
    (
        lambda folder: None,
        lambda folder: (folder / "tokenizer_config.json").unlink(),
        *(config(tokenizer_class=name) for name in (..., None, "CLIPTokenizerFast", "PreTrainedTokenizerFast")),
        config(tokenizer_class="TokenizersBackend"),
        config(tokenizer_class="TokenizersBackend", bos_token=..., eos_token=...),
    ),
    (
        lambda folder: None,
        config(model_max_length=8),
        config(model_max_length=..., max_len=9),
        config(model_max_length=10**30),
        config(padding_side="left", truncation_side="left", model_max_length=12),
    ),
    (
        lambda folder: None,
        config(bos_token=token(START), eos_token=token(END), unk_token=token(END), pad_token="!"),
        config(pad_token="<pad>", unk_token="<unk>"),
        config(bos_token="<s>"),
        config(eos_token="!"),
        config(bos_token=None),
        config(add_bos_token=False, add_eos_token=False, split_special_tokens=True, add_prefix_space=True),
        config(added_tokens_decoder={str(BOS + 2): token("<cat-toy>", special=True)}),
        config(additional_special_tokens=["<cat-toy>"], toy_token="photo", auto_map={}, save_pretrained="x"),
        lambda folder: edit(folder, "special_tokens_map.json", eos_token=token(END), pad_token="!", cat_token="cat"),
    ),
]


def theirs(folder: Path) -> list[list[int]] | None:
    """The ids that AutoTokenizer gives, cut for the text tower; None if it fails, or they do not fit the tower."""
    logging.set_verbosity_error()
    try:
        found = AutoTokenizer.from_pretrained(folder)
        rows = found(PROMPTS, truncation=True, max_length=min(found.model_max_length, 77))["input_ids"]
    except Exception:  # of any kind
        return None
    begin = BOS if found.bos_token is None else found.bos_token_id
    fit = (
        row[:1] == [begin] and row[-1] == BOS + 1 and len(row) <= 77 and max(row) < TOWER["vocab_size"] for row in rows
    )
    return rows if all(fit) else None


def ours(folder: Path) -> list[list[int]] | None:
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "config.json"}
    try:
        tokens = encoder("user/clip", files, TOWER, Progress())(PROMPTS)
    except HfcartError as error:
        assert "user/clip: its tokenizer" in error.message and "Traceback" not in error.message
        assert "tokenizer.json" in error.message or "vocab.json and merges.txt" in error.message
        return None
    return tokens.tolist()


def unpadded(rows: list[list[int]], like: list[list[int]]) -> list[list[int]]:
    """Without what was added behind the end: nothing else than the end token again."""
    assert all(set(row[len(other) :]) <= {BOS + 1} for row, other in zip(rows, like, strict=True))
    return [row[: len(other)] for row, other in zip(rows, like, strict=True)]


def test_ids_are_those_of_transformers(tmp_path: Path) -> None:
    """Every change alone, and 80 of their combinations; what transformers cannot load or misses an end is refused."""
    plain = [row[0] for row in FILES]
    alone = [[*plain[:i], change, *plain[i + 1 :]] for i, row in enumerate(FILES) for change in row]
    mixed = random.Random(0).sample(list(itertools.product(*FILES)), 80)
    equal = refused = 0
    for number, changes in enumerate([*alone, *mixed]):
        folder = tmp_path / str(number)
        words().save_pretrained(folder)
        (folder / "config.json").write_text('{"model_type": "clip"}')
        for change in changes:
            change(folder)
        expected, found = theirs(folder), ours(folder)
        assert (expected is None) == (found is None), [i.index(c) for i, c in zip(FILES, changes, strict=True)]
        if expected is not None and found is not None:
            assert unpadded(found, expected) == expected
            equal += 1
        else:
            refused += 1
    assert equal > 50 and refused > 20


# --- heads ----------------------------------------------------------------------------------------------------------


class Told(Progress):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel with this tokenizer, and room for three more tokens."""
    folder = write_clip(tmp_path_factory.mktemp("clip") / "clip", 3)
    settings = CLIPConfig.from_pretrained(folder).to_dict()
    settings["text_config"] |= {**TEXT, **TOWER, "initializer_factor": 8.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        CLIPModel(CLIPConfig(**settings)).save_pretrained(folder)
    words().save_pretrained(folder)
    return folder


@pytest.fixture
def clip(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to spoil, and a cache of heads of its own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return Path(shutil.copytree(whole, tmp_path / "clip"))


TASK = TaskCard(
    id="animals",
    title="Animals",
    dataset={"repo": "user/animals"},
    templates=["a photo of {}.", "{}", "the {} the other day, seen from afar"],
    classnames=["cat", "Photo", "<cat-toy>", "写真"],
)


def legacy(folder: Path) -> None:
    found = json.loads((folder / "config.json").read_text())
    found["text_config"] |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    (folder / "config.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    "changes",
    [
        (json_(post_processor=None),),
        (json_(normalizer=None), legacy),
        (lambda folder: slow(folder, {"<cat-toy>": BOS + 2}),),
        (lambda folder: slow(folder, {"<cat-toy>": BOS + 2}), legacy),
        (config(model_max_length=7, pad_token="<pad>", padding_side="left", truncation_side="left"),),
        (config(pad_token="<pad>"), legacy),
        (json_(truncation=CUT, padding=PADDED), config(tokenizer_class="PreTrainedTokenizerFast")),
    ],
    ids=["no post-processor", "no normalizer", "added", "added, legacy", "sides", "pad, legacy", "fast"],
)
def test_a_head_is_what_transformers_computes(clip: Path, changes: tuple[Change, ...]) -> None:
    """Of each prompt alone, so that nothing is padded: what stands behind the end changes nothing."""
    for change in changes:
        change(clip)
    told = Told()
    head = make_head(open_base(str(clip), told), TASK, told)
    model, rows = CLIPModel.from_pretrained(clip).eval(), []
    words = CLIPProcessor.from_pretrained(clip).tokenizer
    for label in range(len(TASK.classnames)):
        each = []
        for prompt in TASK.prompts(label):
            with torch.no_grad():
                inputs = words([prompt], truncation=True, return_tensors="pt")
                each.append(torch.nn.functional.normalize(model.get_text_features(**inputs).pooler_output, dim=-1))
        rows.append(torch.nn.functional.normalize(torch.cat(each).mean(dim=0), dim=0))
    assert torch.allclose(head, torch.stack(rows), atol=1e-5)
    read_inside = any("and not at its end" in warning for warning in told.warnings)
    assert read_inside == (len(changes) == 2 and changes[1] is legacy and (clip / "added_tokens.json").exists())


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ((json_(post_processor=None), config(tokenizer_class="PreTrainedTokenizerFast")), r"ids from 320 to 269"),
        ((config(eos_token="!"),), rf"ids from {BOS} to 0: expected {BOS} at the beginning and {BOS + 1} at the end"),
        ((config(bos_token=END), legacy), rf"ids from {BOS + 1} to {BOS + 1}"),  # read at its first token
        ((config(eos_token="<eos>"), legacy, json_(model=...)), "cannot be read"),
        ((config(bos_token=None),), "cannot be read: TypeError"),
        ((json_(added_tokens=...),), "cannot be read: KeyError"),
        ((slow, lambda folder: (folder / "merges.txt").write_text("a b c\n")), "vocab.json and merges.txt"),
    ],
)
def test_a_prompt_without_begin_or_end_is_refused(clip: Path, changes: tuple[Change, ...], found: str) -> None:
    for change in changes:
        change(clip)
    with pytest.raises(CorruptFileError, match=found) as error:
        make_head(open_base(str(clip), Progress()), TASK, Progress())
    assert error.value.message.startswith("clip: its tokenizer") and "user/name@revision" in str(error.value.hint)
    assert "tokenizer.json" in error.value.message or "merges.txt" in error.value.message
    assert "cannot be read" in error.value.message or "the prompt 'a photo of cat.'" in error.value.message


@pytest.mark.parametrize(
    "change",
    [
        *(config(**{name: "/etc/hostname"}) for name in ("tokenizer_file", "vocab_file", "merges_file", "gguf_file")),
        *(config(**{name: "x"}) for name in ("vocab", "merges", "tokenizer_object", "post_processor", "auto_map")),
        config(fast_tokenizer_files=["../tokenizer.4.0.json"]),
        config(init_inputs=["/etc/hostname"]),
        config(tokenizer_class="LlamaTokenizer"),
        lambda folder: edit(folder, "special_tokens_map.json", vocab_file="/etc/hostname"),
        lambda folder: (
            edit(folder, "config.json", tokenizer_class="LlamaTokenizer") or config(tokenizer_class=...)(folder)
        ),
    ],
)
def test_nothing_leads_out_of_the_files(clip: Path, change: Change) -> None:
    change(clip)
    with pytest.raises(SourceError, match=r"^clip \(base\): (tokenizer_config|special_tokens_map|config)\.json "):
        open_base(str(clip), Progress())
    assert tuple(TOKENIZERS) == TOKENIZER_CLASSES


def test_a_whole_clip_model_has_the_tokenizer_of_its_base(clip: Path, tmp_path: Path) -> None:
    slow(clip, {"<cat-toy>": BOS + 2})
    edit(clip, "special_tokens_map.json", eos_token=token(END), pad_token="!")
    hfcart.merge([str(clip)], out=str(tmp_path / "m"), base=str(clip), full_clip=True)
    assert theirs(tmp_path / "m") == theirs(clip) is not None
