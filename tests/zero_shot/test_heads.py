"""Heads and bases: what transformers' own CLIPModel gives, computed once; and one base only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from clips import END, image, write_clip
from three_towers import card, prompted
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from hfcart.clip.pixels import normalised, to_pixels
from hfcart.errors import CorruptFileError, MismatchError, SourceError, UsageError, VerifyError
from hfcart.progress import Progress
from hfcart.system.device import Machine
from hfcart.tasks.task_cards import TaskCard
from hfcart.zero_shot.heads import base_of, check_base, make_head, open_base
from hfcart.zero_shot.loaded_tower import load_tower
from hfcart.zero_shot.scoring import Scorer

pytestmark = pytest.mark.usefixtures("own_cache")
CPU = torch.device("cpu")


class Steps(Progress):
    def __init__(self) -> None:
        self.steps: list[str] = []
        self.warnings: list[str] = []

    def step(self, text: str) -> None:
        self.steps.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json and merges.txt"])
def test_a_head_is_the_prompts_mean_direction(clip: Path, tmp_path: Path, files: str) -> None:
    words = CLIPTokenizer.from_pretrained(clip)
    if files != "tokenizer.json":  # as repos of older releases have it
        folder = tmp_path / "old"
        folder.mkdir()
        for path in clip.iterdir():
            if path.name != "tokenizer.json":
                (folder / path.name).write_bytes(path.read_bytes())
        vocab = sorted(words.get_vocab().items(), key=lambda item: item[1])
        (folder / "vocab.json").write_text(json.dumps(dict(vocab)))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        clip = folder
    task = TaskCard(**card())
    head = make_head(open_base(str(clip), Progress()), task, Progress())
    assert torch.allclose(head, prompted(CLIPModel.from_pretrained(clip), words, task), atol=1e-5)
    assert float((head @ head.T - torch.eye(4)).abs().max()) > 1e-3  # four different directions, not one


def test_logits_are_those_of_the_clip_model(clip: Path) -> None:
    """One prompt a class, so that CLIPModel itself can say what they should be."""
    task = TaskCard(**card() | {"templates": ["a photo of {}."]})
    base, tower = open_base(str(clip), Progress()), load_tower(str(clip), Progress())
    model, words = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    processor = CLIPImageProcessorPil.from_pretrained(clip)
    pictures = [image(i % 4, i) for i in range(24)]
    with torch.no_grad():
        theirs = model(
            **words([task.prompts(i)[0] for i in range(4)], padding=True, return_tensors="pt"),
            **processor(images=pictures, return_tensors="pt"),
        ).logits_per_image
    scorer = Scorer(tower.model, base.projection, base.preprocessor, Machine.on(CPU, "float32"))
    pixels = normalised(torch.stack([to_pixels(p, base.preprocessor) for p in pictures]), base.preprocessor)
    with torch.inference_mode():
        ours = base.logit_scale * scorer.features(pixels, "float32") @ make_head(base, task, Progress()).T
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_head_is_computed_once_and_again_if_its_file_is_broken(clip: Path) -> None:
    from hfcart import hub

    base, task = open_base(str(clip), Progress()), TaskCard(**card())
    first = Steps()
    head = make_head(base, task, first)
    assert any("Computing" in step for step in first.steps)
    again = Steps()
    assert torch.equal(make_head(base, task, again), head) and not again.steps
    (kept,) = hub.assets("heads").rglob("*.safetensors")
    for broken in (b"", b"\x00" * 64, kept.read_bytes()[:-8]):
        kept.write_bytes(broken)
        assert torch.equal(make_head(base, task, Steps()), head)
    other = task.model_copy(update={"templates": ("{}",)})
    told = Steps()
    assert not torch.allclose(make_head(base, other, told), head) and told.steps


TWO_ENDS = {"SpecialToken": {"id": END, "type_id": 0}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"post_processor": None, "normalizer": {"type": "Replace", "pattern": {"Regex": ".*"}, "content": ""}}, "0"),
        ({"post_processor": {"type": "TemplateProcessing", "single": [TWO_ENDS] * 100, "pair": [],
                             "special_tokens": {END: {"id": END, "ids": [513], "tokens": [END]}}}}, "100"),
    ],
)  # fmt: skip
def test_a_stranger_s_tokenizer_is_held_against_the_text_tower(clip: Path, tmp_path: Path, change, said) -> None:
    for path in clip.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    fields = json.loads((clip / "tokenizer.json").read_text()) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(CorruptFileError, match=f"its tokenizer gives {said} tokens for a prompt"):
        make_head(open_base(str(tmp_path), Progress()), TaskCard(**card()), Progress())


def tower_of(clip: Path, folder: Path, readme: str = "") -> Path:
    CLIPModel.from_pretrained(clip).vision_model.save_pretrained(folder)
    (folder / "README.md").write_text(readme)
    return folder


def test_the_base_is_what_the_tower_says(clip: Path, tmp_path: Path) -> None:
    plain = load_tower(str(tower_of(clip, tmp_path / "tower", "---\nbase_model: user/clip\n---\n")), Progress())
    assert base_of(plain, Progress()) == "user/clip"
    whole = load_tower(str(clip), Progress())
    assert whole.is_clip and str(base_of(whole, Progress())) == str(clip)
    silent = load_tower(str(tower_of(clip, tmp_path / "silent")), Progress())
    with pytest.raises(UsageError, match="--base|tells which") as error:
        base_of(silent, Progress())
    assert error.value.hint == "Give it: --base user/name"


@pytest.mark.parametrize("record", [b"{}", b"[", b'{"kind": "finetune"}'])
def test_a_record_that_is_none_says_which_option_helps(clip: Path, tmp_path: Path, record: bytes) -> None:
    folder = tower_of(clip, tmp_path / "tower", "---\nbase_model: user/clip\n---\n")
    (folder / "hfcart.json").write_bytes(record)
    with pytest.raises(VerifyError, match=r"tower/hfcart.json is not a") as error:
        base_of(load_tower(str(folder), Progress()), Progress())
    assert "--base user/name" in str(error.value.hint)


@pytest.mark.parametrize(
    ("config", "field"),
    [({"patch_size": 4}, "patch_size"), ({"hidden_size": 64}, "hidden_size"), ({"image_size": 32}, "image_size")],
)
def test_another_base_is_refused(clip: Path, tmp_path: Path, config: dict, field: str) -> None:
    """The trap: a head of another patch size has the right width, and scores at random without an error."""
    from towers import TINY

    other = open_base(str(write_clip(tmp_path / "other", 1, {**TINY, **config})), Progress())
    tower = load_tower(str(tower_of(clip, tmp_path / "tower")), Progress())
    with pytest.raises(MismatchError, match="at random") as error:
        check_base(tower, other, Progress())
    assert any(field in what for _, what, _, _ in error.value.rows)


def test_a_projection_of_its_own_that_differs_is_told(clip: Path, tmp_path: Path) -> None:
    tower = load_tower(str(clip), Progress())
    told = Steps()
    check_base(tower, open_base(str(clip), Progress()), told)
    assert not told.warnings
    check_base(tower, open_base(str(write_clip(tmp_path / "other", 1)), Progress()), told)
    assert "projection of its own" in told.warnings[0]


def test_a_vision_tower_is_no_base(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="vision tower only"):
        open_base(str(tower_of(clip, tmp_path / "tower")), Progress())
