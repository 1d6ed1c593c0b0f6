"""`--format open_clip`: what open_clip itself loads of a merge computes what the same merge does in transformers."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from clips import tokenizer, write_clip, write_towers_of
from merging import Listener, Stop
from PIL import Image
from running import HELPERS, ROOT, Commands, contents, ended
from safetensors.torch import load_file
from three_towers import TOWERS
from towers import TINY
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, CLIPTokenizer

import hfcart
from hfcart.clip.pixels import normalised as normalised_pixels
from hfcart.clip.pixels import to_pixels
from hfcart.clip.to_open_clip import tokenizer_cfg, vocabulary_sha256
from hfcart.commands.merge_and_publish import run_dry, run_merge
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.errors import UsageError
from hfcart.recipes.finished_merge import read_record
from hfcart.recipes.merge_recipe import make
from hfcart.report.merge_card import render_card
from hfcart.sources.preprocessor import clip_default, preprocess_cfg, read_preprocessor
from hfcart.sources.stores import LocalStore

LIBRARIES = ROOT / ".open-clip"  # open_clip and what it imports, where `make test` has put it
TEXTS = ["a photo of a cat.", "the number four", "x"]
# No side's crop is odd here but the last: there torchvision rounds 17.5 up, and transformers down.
IMAGES = [Image.effect_noise(size, 90).convert("RGB") for size in ((40, 30), (33, 47), (16, 16), (21, 22), (64, 20))]


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    if not (LIBRARIES / ".ready").is_file():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("`make .open-clip/.ready` installs open_clip.")


def in_open_clip(inputs: dict[str, dict[str, Any]], folder: Path, env: dict[str, str]) -> dict[str, Any]:
    """What open_clip makes of each model's inputs, both by the name that it loads the model by."""
    torch.save(inputs, folder / "inputs.pt")
    command = [sys.executable, HELPERS / "open_clip_reader.py", LIBRARIES, folder / "inputs.pt", folder / "outputs.pt"]
    env = {name: value for name, value in env.items() if name != "PYTHONPATH"}
    done = ended([*map(str, command), *inputs], env=env)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "outputs.pt", weights_only=True)


def clips_own() -> tuple[list[str], list[str]]:
    """CLIP's own vocabulary and merges, of open_clip's file, with the names that transformers has for the last two."""
    file = LIBRARIES / "open_clip" / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(file.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    own = tokenizer().get_vocab()
    single = sorted(own, key=own.__getitem__)
    return [*single[:-2], *("".join(merge.split()) for merge in merges), *single[-2:]], merges


VARIANTS: dict[str, tuple[dict, dict, dict]] = {  # of the vision config, the text config, and the merge
    "cart": ({}, {}, {"rank": 0.25}),
    "gelu": ({"hidden_act": "gelu"}, {}, {"method": "ties", "qkv": "fused"}),
    # Heads that are not 64 wide, an MLP of no whole ratio, patches that leave a rest, another epsilon on each side, and
    # an end token that is not the last.
    "odd": (
        {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 101, "image_size": 20, "patch_size": 6,
         "layer_norm_eps": 1e-3},
        {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 77, "max_position_embeddings": 40,
         "layer_norm_eps": 1e-2, "vocab_size": 600},
        {"method": "iso_c", "qkv": "fused"},
    ),
    "old": ({}, {"eos_token_id": 2}, {"method": "karcher", "dtype": "float16"}),
    "own words": ({}, {}, {"method": "task_arithmetic", "scale": 0.3, "dtype": "bfloat16"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, clean_env: dict[str, str]) -> tuple[Path, dict[str, Any]]:
    """Every variant merged in both forms, into `NAME/transformers` and `NAME/open_clip`, and what open_clip makes."""
    root = tmp_path_factory.mktemp("variants")
    found = {}
    for name, (vision, text, fields) in VARIANTS.items():
        words = None
        if name == "own words":
            tokens, merges = clips_own()
            words = CLIPTokenizer({token: i for i, token in enumerate(tokens)}, [tuple(m.split()) for m in merges])
        folder = root / name
        clip = write_clip(folder / "base", 1, {**TINY, **vision}, text, words)
        towers = write_towers_of(clip, folder, 3)
        for form in ("transformers", "open_clip"):
            more = {"base": clip, "full_clip": True, "format": form, "out": folder / form, "progress": Listener()}
            hfcart.merge(towers, **more, **fields)
        inputs = as_given(folder / "transformers")
        found[name] = inputs, f"local-dir:{folder / 'open_clip'}"
    offline = clean_env | {"HF_HUB_OFFLINE": "1"}
    made = in_open_clip({where: given for given, where in found.values()}, root, offline)
    return root, {name: made[where] | given for name, (given, where) in found.items()}


def as_given(folder: Path) -> dict[str, Any]:
    """Pixels, texts and token ids for a CLIPModel."""
    config = json.loads((folder / "config.json").read_text())
    side, length = config["vision_config"]["image_size"], config["text_config"]["max_position_embeddings"]
    words = AutoTokenizer.from_pretrained(folder)
    tokens = words(TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids
    pixels = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    return {"pixels": pixels, "images": IMAGES, "texts": TEXTS, "tokens": tokens}


def features(folder: Path, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers makes of the inputs: image and text features."""
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        image = model.get_image_features(pixel_values=inputs["pixels"])
        text = model.get_text_features(input_ids=inputs["tokens"])
    return image.pooler_output, text.pooler_output


@pytest.mark.parametrize("name", VARIANTS)
def test_open_clip_computes_what_transformers_does(loaded: tuple[Path, dict[str, Any]], name: str) -> None:
    root, out = loaded
    folder, found = root / name, out[name]
    for theirs, ours in zip((found["image"], found["text"]), features(folder / "transformers", found), strict=True):
        assert ours.abs().max() > 1e-2 and (ours[0] - ours[1]).abs().max() > 1e-3
        assert (theirs - ours).abs().max() <= 1e-5 * ours.abs().max()
    assert found["scale"] == CLIPModel.from_pretrained(folder / "transformers").logit_scale.float().exp()
    end = found["tokens"].argmax(dim=1) if name == "own words" else torch.full((3,), found["tokens"].shape[1] - 1)
    for own, theirs, last in zip(found["own_tokens"], found["tokens"], end.tolist(), strict=True):
        assert own[: last + 1].tolist() == theirs[: last + 1].tolist()  # behind its end nothing of a text is read


def test_open_clip_sees_the_same_pixels(loaded: tuple[Path, dict[str, Any]]) -> None:
    root, out = loaded
    process = CLIPImageProcessor.from_pretrained(root / "cart" / "transformers")
    pixels = [process(image, return_tensors="pt").pixel_values[0] for image in IMAGES]
    same = [torch.allclose(one, two, atol=1e-6) for one, two in zip(pixels, out["cart"]["preprocessed"], strict=True)]
    assert same == [True, True, True, True, False]
    # Of the last, whose crop has an odd margin, open_clip's begins a pixel further right.
    assert torch.allclose(pixels[-1][:, :, 1:], out["cart"]["preprocessed"][-1][:, :, :-1], atol=1e-6)


def test_the_same_numbers_are_in_both_forms(loaded: tuple[Path, dict[str, Any]]) -> None:
    root, _ = loaded
    for name in VARIANTS:
        ours, theirs = (root / name / form for form in ("transformers", "open_clip"))
        assert {path.name for path in theirs.glob("*.*")} == {
            *("README.md", "hfcart.json", "recipe.yaml", "open_clip_config.json", "open_clip_model.safetensors"),
            *("tokenizer.json", "tokenizer_config.json"),
        }
        stored, own = load_file(theirs / "open_clip_model.safetensors"), load_file(ours / "model.safetensors")
        assert sum(t.numel() for t in stored.values()) == sum(t.numel() for t in own.values())
        d = own["vision_model.post_layernorm.weight"].shape[0]
        fused = stored["visual.transformer.resblocks.1.attn.in_proj_weight"]
        assert torch.equal(fused[d : 2 * d], own["vision_model.encoder.layers.1.self_attn.k_proj.weight"])
        assert torch.equal(stored["text_projection"], own["text_projection.weight"].T)
        record, plain = (read_record((folder / "hfcart.json").read_bytes(), name) for folder in (theirs, ours))
        assert record.recipe["format"] == "open_clip" and "format" not in plain.recipe
        assert "format: open_clip\n" in (theirs / "recipe.yaml").read_text()
        assert [t.name for t in record.tensors] == [t.name for t in plain.tensors]
        front = (theirs / "README.md").read_text()
        assert "library_name: open_clip\npipeline_tag: zero-shot-image-classification\n" in front


def test_clips_own_words_are_known(loaded: tuple[Path, dict[str, Any]]) -> None:
    """Of them open_clip's own tokenizer is taken, of others that of the base's repo, pinned."""
    root, _ = loaded
    files = {path.name: path.read_bytes() for path in (root / "own words" / "base").glob("tokenizer*")}
    assert tokenizer_cfg(files, "user/clip", "a" * 40) == {}
    tokens, merges = clips_own()
    old = {
        "vocab.json": json.dumps({token: i for i, token in enumerate(tokens)}).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode(),
    }
    assert tokenizer_cfg(old, None, None) == {}
    assert vocabulary_sha256(tokens, merges[:-1]) != vocabulary_sha256(tokens, merges)
    other = {**old, "merges.txt": b"#version: 0.2\n"}
    pinned = {"hf_tokenizer_name": "user/clip", "tokenizer_kwargs": {"revision": "a" * 40}}
    assert tokenizer_cfg(other, "user/clip", "a" * 40) == pinned
    for vocab in (b"[]", b'{"a": []}', b'{"a": 1e999}'):
        broken = b'{"model": {"merges": [], "vocab": ' + vocab + b"}}"
        assert tokenizer_cfg({"tokenizer.json": broken}, "user/clip", "a" * 40) == pinned


@pytest.mark.usefixtures("drawn")
def test_a_stopped_merge_goes_on_to_the_same_bytes(
    loaded: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = loaded[0] / "gelu"
    towers = [folder / f"t{i}" for i in (1, 2, 3)]
    fields = {"base": folder / "base", "full_clip": True, "format": "open_clip", "out": tmp_path / "m", "workers": 1}
    fields |= VARIANTS["gelu"][2]
    lines = [0]
    while not (tmp_path / "m").exists():
        try:
            hfcart.merge(towers, **fields, progress=Stop(9))
        except KeyboardInterrupt:
            lines.append(len((tmp_path / "m.partial" / "journal.jsonl").read_text().splitlines()))
            assert lines[-1] > lines[-2]
    assert len(lines) > 4
    assert contents(tmp_path / "m") == contents(folder / "open_clip")
    monkeypatch.chdir(folder)  # where the folders lie that the recipe knows by name
    assert hfcart.verify(tmp_path / "m").identical


def test_it_is_read_again_as_tower_and_as_base(loaded: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The text side, too: what is merged with one of either form as the base has the same bytes."""
    for name in ("gelu", "odd"):
        folder = loaded[0] / name
        found = {}
        for form in ("transformers", "open_clip"):
            sources = [folder / "t1", folder / form]
            more = {"base": folder / form, "full_clip": True, "method": "task_arithmetic", "scale": 0.5}
            merged = hfcart.merge(sources, out=tmp_path / f"{name} {form}", progress=Listener(), **more)
            found[form] = load_file(tmp_path / f"{name} {form}" / "model.safetensors"), merged.architecture
        (one, same), (two, architecture) = found.values()
        assert same == architecture and one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
        given = loaded[1][name]
        (_, text), (_, again) = (features(tmp_path / f"{name} {form}", given) for form in found)
        assert torch.allclose(text, again, atol=1e-6)


# What OpenCLIP has no words for


REFUSED: dict[str, tuple[dict, dict, dict, str]] = {
    "activation": ({"hidden_act": "gelu_new"}, {}, {}, "gelu_new in the vision tower and gelu_new in the text tower"),
    "two activations": ({}, {"hidden_act": "gelu"}, {}, "has quick_gelu in the vision tower and gelu in the text"),
    "channels": ({"num_channels": 4}, {}, {}, "takes images of 4 channels"),
    "size": ({}, {}, {"size": {"shortest_edge": 20}}, "resizes images to {.shortest_edge.: 20} before"),
    "no resize": ({}, {}, {"do_resize": False}, "resizes images to not at all"),
    "filter": ({}, {}, {"resample": 1}, "Pillow's filter 1"),
    "factor": ({}, {}, {"rescale_factor": 0.5}, "multiplies pixels by 0.5"),
    "no factor": ({}, {}, {"do_rescale": False}, "multiplies pixels by 1;"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_open_clip_has_no_words_for_is_refused_first(tmp_path: Path, name: str) -> None:
    vision, text, images, words = REFUSED[name]
    clip = write_clip(tmp_path / "base", 1, {**TINY, **vision}, text)
    towers = write_towers_of(clip, tmp_path, 2)
    path = clip / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | images))
    fields = {"sources": tuple(map(str, towers)), "base": str(clip), "full_clip": True, "format": "open_clip"}
    recipe = make({**fields, "method": "average", "out": str(tmp_path / "m")})
    for run in (run_dry, run_merge):
        with pytest.raises(UsageError, match=words) as error:
            run(recipe, Listener())
        assert error.value.hint == "Write it for transformers: leave --format out."
        assert not list(tmp_path.glob("m*"))
    hfcart.merge(towers, base=clip, full_clip=True, method="average", out=tmp_path / "m", progress=Listener())


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("size", [{"shortest_edge": 16}, {"height": 16, "width": 16}])
def test_preprocessing_comes_back_as_it_was(size: dict, normalised: bool, tmp_path: Path) -> None:
    fields = clip_default(16) | {"size": size, "resample": 2, "do_normalize": normalised}
    cfg = preprocess_cfg(fields, 16)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": cfg}))
    found = read_preprocessor(LocalStore(tmp_path), 16)
    assert found is not None
    kept = ("size", "resample", "crop_size")
    assert [found[key] for key in kept] == [fields[key] for key in kept]
    image = IMAGES[0].resize((16, 16))
    one, two = (normalised_pixels(to_pixels(image, each)[None], each) for each in (fields, found))
    assert torch.allclose(one, two)


def test_what_does_not_go_together_is_a_sentence(four: list[Path], commands: Commands, hub: EmbeddedHub) -> None:
    ask = ["merge", *map(str, four), "--format", "open_clip"]
    alone, projected, shards, other = commands(
        hub,
        [ask, [*ask, "--with-projection"], [*ask, "--full-clip", "--max-shard-size", "1GB"], [*ask[:-1], "onnx"]],
    )
    for done in (alone, projected):
        assert done.returncode == 2 and "so full_clip has to be given too" in done.stderr
    assert shards.returncode == 2 and "OpenCLIP reads one file" in shards.stderr
    assert other.returncode == 2 and "'transformers' or 'open_clip'" in other.stderr


# On the Hub


def test_it_is_published_measured_and_loaded_by_its_name(
    zoo: tuple[EmbeddedHub, Path], commands: Commands, clean_env: dict[str, str], tmp_path: Path
) -> None:
    hub, root = zoo
    merge = ["merge", *TOWERS, "--rank", "0.25", "--full-clip"]
    task = f"{root}/images1.yaml"
    done = commands(
        hub,
        [
            [*merge, "--push-to", "user/both", "--out", "plain"],
            [*merge, "--push-to", "user/both", "--out", "m", "--format", "open_clip", "--dry-run"],
            [*merge, "--push-to", "user/both", "--out", "m", "--format", "open_clip"],
            ["eval", "plain", "--tasks", task, "--out", "of-plain"],
            ["eval", "user/both", "--tasks", task, "--base", "user/both", "--out", "of-m", "--push"],
            ["verify", "user/both"],
            ["merge", "--recipe", "user/both", "--out", "again", "--stream"],
            ["push", "again", "--push-to", "user/second"],
            ["space", "user/both", "--out", "space"],
            ["space", "user/t1", "--base", "user/both", "--out", "space"],
        ],
    )
    good, space = done[:-2], done[-2:]
    assert [each.returncode for each in good] == [0] * len(good), [each.stderr for each in good]
    assert "the tokenizer, for an OpenCLIP model" in done[1].stdout
    assert 'load     open_clip.create_model_and_transforms("hf-hub:user/both")' in done[2].stdout
    assert "not stored as transformers loads it" in space[0].stderr
    assert "user/both is in OpenCLIP's form: the Space reads the text tower with transformers" in space[1].stderr
    files = hub.files("user/both")
    assert {"open_clip_model.safetensors", "open_clip_config.json", "tokenizer.json"} <= files.keys()
    # What was there before was of the other form.
    assert not {"config.json", "preprocessor_config.json", "model.safetensors"} & files.keys()
    text = json.loads(files["open_clip_config.json"])["model_cfg"]["text_cfg"]
    assert text["hf_tokenizer_name"] == "user/clip"
    assert text["tokenizer_kwargs"] == {"revision": hub.head("user/clip")}
    assert "Identical" in done[5].stdout
    for name in ("open_clip_model.safetensors", "open_clip_config.json", "recipe.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == files[name] == hub.files("user/second")[name]
    hub.create("user/bare")  # as open_clip itself publishes one: its own base, since nothing says of another
    hub.commit("user/bare", {name: data for name, data in files.items() if name.startswith(("open_clip", "tokenizer"))})
    (bare,) = commands(hub, [["eval", "user/bare", "--tasks", task, "--out", "of-bare"]])
    assert bare.returncode == 0, bare.stderr
    scores = [
        [each["classes"] for each in json.loads((tmp_path / folder / "results.json").read_text())["results"]]
        for folder in ("of-plain", "of-m", "of-bare")
    ]
    assert scores[0] == scores[1] == scores[2]
    inputs = as_given(tmp_path / "plain")
    online = clean_env | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    found = in_open_clip({"hf-hub:user/both": inputs}, tmp_path, online)["hf-hub:user/both"]
    for theirs, ours in zip((found["image"], found["text"]), features(tmp_path / "plain", inputs), strict=True):
        assert (theirs - ours).abs().max() <= 1e-5 * ours.abs().max()
    assert torch.equal(found["own_tokens"], inputs["tokens"])
    again = tmp_path / "again"
    for card, folder in ((files["README.md"].decode(), tmp_path), ((again / "README.md").read_text(), again)):
        assert "library_name: open_clip\npipeline_tag: zero-shot-image-classification\n" in card
        says_which(card, folder, online)


@pytest.mark.parametrize("repo", ["user/mine", None])
def test_the_card_of_a_local_bases_merge_runs(
    loaded: tuple[Path, dict[str, Any]], hub: EmbeddedHub, clean_env: dict[str, str], tmp_path: Path, repo: str | None
) -> None:
    folder = loaded[0] / "odd" / "open_clip"
    record = read_record((folder / "hfcart.json").read_bytes(), "")
    if repo:
        hub.create(repo)
        hub.commit(repo, {path.name: path for path in folder.iterdir() if path.is_file()})
    online = clean_env | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    says_which(render_card(record, repo=repo), folder, online)


def says_which(card: str, folder: Path, env: dict[str, str]) -> None:
    """The card's snippet, run verbatim in the folder, with open_clip where Python finds it."""
    snippet = card.partition("```python\n")[2].partition("```")[0]
    before = f"import sys; sys.path.insert(1, {str(HELPERS)!r})\n"
    before += "from pathlib import Path\nfrom open_clip_library import make_importable\n"
    before += f"make_importable(Path({str(LIBRARIES)!r}))\n"
    env = {name: value for name, value in env.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", before + snippet]
    done = ended(command, cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    scores = {label: float(score) for score, label in (line.split("% ") for line in done.stdout.splitlines())}
    assert scores.keys() == {"cat", "dog"} and abs(sum(scores.values()) - 100) <= 0.11  # each to a tenth
