"""`--full-clip`: a whole CLIPModel around the merged tower, as transformers loads and runs it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from clips import START, tokenizer, write_clip, write_towers_of
from running import COMPAT, Run, ended
from safetensors.torch import load_file, save_file

import hfcart
from hfcart.clip.architecture import read_architecture
from hfcart.commands.merge import merge_folder
from hfcart.commands.verify import run_verify
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.errors import (
    CorruptFileError,
    DistantError,
    HfcartError,
    MismatchError,
    NonFiniteError,
    NotATowerError,
    SourceError,
    UsageError,
    VerifyError,
)
from hfcart.progress import Progress
from hfcart.recipes.merge_recipe import make
from hfcart.sources.towers import known_base

CARD = "---\nlicense: {}\nbase_model: {}\n---\n"


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CLIPModel `base` and towers `t1`, `t2` fine-tuned from it."""
    folder = tmp_path_factory.mktemp("zoo")
    write_towers_of(write_clip(folder / "base", 1), folder, 2)
    return folder


@pytest.fixture
def base(zoo: Path, tmp_path: Path) -> Path:
    """A copy of the base to spoil."""
    return Path(shutil.copytree(zoo / "base", tmp_path / "base"))


def merged(zoo: Path, out: Path, base: Path | None = None, **fields: object) -> dict[str, torch.Tensor]:
    sources = [str(zoo / "t1"), str(zoo / "t2")]
    hfcart.merge(sources, out=str(out), base=str(base or zoo / "base"), full_clip=True, **fields)
    return {k: v for path in sorted(out.glob("*.safetensors")) for k, v in load_file(path).items()}


def spoil(base: Path, file: str, **fields: object) -> None:
    """Set fields of a JSON file; with dots, inside a mapping of it."""
    content = json.loads((base / file).read_text())
    for name, value in fields.items():
        *inner, last = name.split("__")
        place = content[inner[0]] if inner else content
        place[last] = value
    (base / file).write_text(json.dumps(content))


class Listener(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


# What comes out

PIPELINE = """
import json, sys, torch, transformers
from PIL import Image
from transformers import AutoProcessor, CLIPModel, pipeline
folder, base = sys.argv[1:]
model, info = CLIPModel.from_pretrained(folder, output_loading_info=True)
assert not any(info.values()), info
image = Image.effect_noise((40, 30), 90).convert("RGB")
labels = ["a cat", "a dog", "the number four"]
processor = AutoProcessor.from_pretrained(folder)
inputs = processor(images=image, text=labels, padding=True, return_tensors="pt")
# The same function by hand: the base with the merged tower's weights in it.
whole = CLIPModel.from_pretrained(base)
whole.vision_model.load_state_dict(model.vision_model.state_dict())
with torch.inference_mode():
    logits = model.eval()(**inputs).logits_per_image[0]
    expected = whole.eval()(**inputs).logits_per_image[0]
classify = pipeline("zero-shot-image-classification", model=folder)
scores = {each["label"]: each["score"] for each in classify(image, candidate_labels=labels, hypothesis_template="{}")}
print(json.dumps([transformers.__version__, logits.tolist(), expected.tolist(), [scores[label] for label in labels]]))
"""


@pytest.mark.parametrize("slow_tokenizer", [False, True])
def test_the_pipeline_loads_and_runs_it(
    zoo: Path, base: Path, tmp_path: Path, clean_env: dict[str, str], slow_tokenizer: bool
) -> None:
    if slow_tokenizer:  # the two files that CLIP's first tokenizer had
        (base / "tokenizer.json").unlink()
        (base / "vocab.json").write_text(json.dumps(tokenizer().get_vocab()))
        (base / "merges.txt").write_text("#version: 0.2\n")
    merged(zoo, tmp_path / "m", base)
    results = []
    for extra in ("", f"{COMPAT}{os.pathsep}"):
        env = {**clean_env, "PYTHONPATH": extra + clean_env["PYTHONPATH"], "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", PIPELINE, str(tmp_path / "m"), str(base)]
        done = ended(command, warm=True, env=env)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout.splitlines()[-1]))
    for _, logits, expected, scores in results:
        assert max(logits) - min(logits) > 0.1  # the comparison means something
        assert torch.allclose(torch.tensor(logits), torch.tensor(expected), atol=1e-5)
        assert torch.allclose(torch.tensor(scores), torch.tensor(logits).softmax(0), atol=1e-4)
    assert results[0][0].startswith("5.") and results[1][0].startswith("4.57.")
    assert torch.allclose(torch.tensor(results[0][1]), torch.tensor(results[1][1]), atol=1e-4)


def test_the_tower_is_the_merge_and_the_rest_is_the_bases(zoo: Path, tmp_path: Path) -> None:
    found = merged(zoo, tmp_path / "m")
    own = load_file(zoo / "base" / "model.safetensors")
    assert found.keys() == own.keys()
    hfcart.merge([str(zoo / "t1"), str(zoo / "t2")], out=str(tmp_path / "tower"))
    tower = load_file(tmp_path / "tower" / "model.safetensors")
    assert 30 < len(tower) < len(found)
    for name, tensor in found.items():
        assert torch.equal(tensor, tower.get(name, own[name])), name
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "m" / name).read_bytes() == (zoo / "base" / name).read_bytes()


def test_the_record_tells_copied_from_merged(zoo: Path, tmp_path: Path) -> None:
    record = hfcart.merge([str(zoo / "t1")], out=str(tmp_path / "m"), base=str(zoo / "base"), full_clip=True)
    assert record.model_class == "CLIPModel" and record.recipe["full_clip"] is True
    assert record.base is not None and record.base.label == "base" and not record.method.uses_base
    copied = [t.name for t in record.tensors if t.rule == "copied from the base"]
    assert copied[-3:] == ["visual_projection.weight", "text_projection.weight", "logit_scale"]
    assert all(name.startswith("text_model.") for name in copied[:-3]) and len(copied) == 39
    assert all(t.name.startswith("vision_model.") for t in record.tensors if t.name not in copied)
    assert {"tokenizer.json", "tokenizer_config.json"} < record.files.keys()
    assert record.parameters == sum(v.numel() for v in load_file(tmp_path / "m" / "model.safetensors").values())
    assert "full_clip" not in hfcart.merge([str(zoo / "t1")], out=str(tmp_path / "tower")).recipe


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_everything_is_cast_once(zoo: Path, tmp_path: Path, dtype: str) -> None:
    found = merged(zoo, tmp_path / "m", dtype=dtype)
    own = load_file(zoo / "base" / "model.safetensors")
    for name in own:
        assert found[name].dtype == getattr(torch, dtype)
        if not name.startswith("vision_model."):
            assert torch.equal(found[name], own[name].to(found[name].dtype))
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == dtype


def test_same_bytes_in_shards_and_with_fused_attention(zoo: Path, tmp_path: Path) -> None:
    one = merged(zoo, tmp_path / "one", qkv="fused", workers=1)
    many = merged(zoo, tmp_path / "many", qkv="fused", workers=3, max_shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    assert one.keys() == many.keys() and all(torch.equal(one[k], many[k]) for k in one)
    text = "text_model.encoder.layers.0.self_attn.q_proj.weight"
    assert torch.equal(one[text], load_file(zoo / "base" / "model.safetensors")[text])


def test_every_field_that_changes_the_function_is_kept(zoo: Path, base: Path, tmp_path: Path) -> None:
    fields = {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": None, "layer_norm_eps": 1e-3, "hidden_act": "gelu"}
    spoil(base, "config.json", **{f"text_config__{k}": v for k, v in fields.items()}, logit_scale_init_value=1.5)
    spoil(
        base, "config.json", text_config__auto_map={"AutoModel": "x.Y"}, text_config__dropout="?", auto_map={"a": "b"}
    )
    merged(zoo, tmp_path / "m", base)
    written = json.loads((tmp_path / "m" / "config.json").read_text())
    assert {k: written["text_config"][k] for k in fields} == fields
    assert written["logit_scale_init_value"] == 1.5 and written["projection_dim"] == 24
    assert "auto_map" not in written and not {"auto_map", "dropout"} & written["text_config"].keys()


def test_text_config_dict_replaces_text_config_as_in_transformers(zoo: Path, base: Path, tmp_path: Path) -> None:
    from transformers import CLIPConfig

    config = json.loads((base / "config.json").read_text())
    keep = {k: v for k, v in config["text_config"].items() if not k.endswith("token_id")}
    spoil(base, "config.json", text_config__eos_token_id=2, text_config_dict=keep)
    merged(zoo, tmp_path / "m", base)
    theirs = CLIPConfig(**json.loads((base / "config.json").read_text())).text_config
    assert theirs.eos_token_id == 49407
    written = json.loads((tmp_path / "m" / "config.json").read_text())["text_config"]
    assert all(getattr(theirs, k) == v for k, v in written.items() if k != "projection_dim")


# Verify, resume, repeat


def test_verify_repeats_it(zoo: Path, tmp_path: Path) -> None:
    merged(zoo, tmp_path / "m", rank=0.25)
    with contextlib.chdir(zoo):  # local sources are known by their names
        assert run_verify(str(tmp_path / "m"), device="cpu", stream=False, progress=Progress()).identical
    vocabulary = (tmp_path / "m" / "tokenizer.json").read_bytes()
    (tmp_path / "m" / "tokenizer.json").write_bytes(vocabulary.replace(START.encode(), b"<|startofjext|>"))
    with pytest.raises(VerifyError, match="tokenizer.json has sha256"):
        run_verify(str(tmp_path / "m"), device="cpu", stream=False, progress=Progress())


@pytest.mark.usefixtures("drawn")
def test_a_stopped_merge_goes_on(zoo: Path, tmp_path: Path) -> None:
    """Stopped with all groups done, and two of the text side spoilt by a power cut: only those are done again."""
    far = Path(shutil.copytree(zoo / "t1", tmp_path / "far"))
    tensors = {k: 3 * torch.randn(v.shape) for k, v in load_file(far / "model.safetensors").items()}
    save_file(tensors, far / "model.safetensors", {"format": "pt"})
    fields = {"sources": (str(zoo / "t1"), str(zoo / "t2"), str(far)), "base": str(zoo / "base"), "full_clip": True}
    merge_folder(make({**fields, "out": str(tmp_path / "undisturbed"), "allow_distant": True}), Progress())
    with pytest.raises(DistantError, match=r"further than 0.5 of the norm from\s+base"):
        merge_folder(make({**fields, "out": str(tmp_path / "m")}), Progress())
    shard = tmp_path / "m.partial" / "model.safetensors"
    data = bytearray(shard.read_bytes())
    data[-200:] = bytes(200)
    shard.write_bytes(data)
    told = Listener()
    merge_folder(make({**fields, "out": str(tmp_path / "m"), "allow_distant": True}), told)
    assert told.notes == ["Resuming: 76 of 78 groups done already."]
    files = [p.relative_to(tmp_path / "m") for p in sorted((tmp_path / "m").rglob("*")) if p.is_file()]
    assert len(files) >= 9
    assert all((tmp_path / "m" / f).read_bytes() == (tmp_path / "undisturbed" / f).read_bytes() for f in files)


def test_another_projection_is_warned_of(zoo: Path, tmp_path: Path) -> None:
    own = load_file(zoo / "base" / "model.safetensors")["visual_projection.weight"]
    paths = []
    for name, projection in (("same", own), ("rounded", own.half()), ("other", own + 0.01), ("wider", own[:9])):
        path = Path(shutil.copytree(zoo / "t1", tmp_path / name))
        tensors = load_file(path / "model.safetensors") | {"visual_projection.weight": projection.contiguous()}
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        paths.append(str(path))
    told = Listener()
    fields = {"sources": tuple(paths), "base": str(zoo / "base"), "full_clip": True, "out": str(tmp_path / "m")}
    merge_folder(make(fields), told)
    (warning,) = [text for text in told.warnings if "projection" in text]
    named = warning.removeprefix("The visual projection of ").partition(" is not the base's")[0]
    assert sorted(named.split(", ")) == ["other", "wider"]
    written = load_file(tmp_path / "m" / "model.safetensors")
    assert torch.equal(written["visual_projection.weight"], own)


# A base that cannot give what is asked of it


def test_it_needs_a_whole_base(zoo: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "m")
    with pytest.raises(UsageError, match="needs the base model"):
        hfcart.merge([str(zoo / "t1")], out=out, full_clip=True)
    with pytest.raises(SourceError, match="t2 \\(base\\) is a vision tower only") as caught:
        hfcart.merge([str(zoo / "t1")], out=out, full_clip=True, base=str(zoo / "t2"))
    assert caught.value.hint.startswith("Name it: `base='user/name'`\n")
    with pytest.raises(UsageError, match="full_clip takes the visual projection from the base"):
        hfcart.merge([str(zoo / "t1")], out=out, full_clip=True, base=str(zoo / "base"), with_projection=True)
    assert not (tmp_path / "m").exists() and not (tmp_path / "m.partial").exists()


def test_the_hint_knows_openais_models() -> None:
    shape = {"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14, "image_size": 224}
    rest = {"num_attention_heads": 16, "intermediate_size": 4096, "projection_dim": 768}
    tower = read_architecture({"model_type": "clip_vision_model", **shape, **rest}, "x")
    assert known_base(tower) == "openai/clip-vit-large-patch14"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"logit_scale": None}, ("logit_scale", "float []", "missing")),
        ({"logit_scale": torch.zeros(1)}, ("logit_scale", "float []", "F32 [1]")),
        ({"text_projection.weight": torch.zeros(24, 8)}, ("text_projection.weight", "float [24, 32]", "F32 [24, 8]")),
        ({"visual_projection.weight": None}, ("visual_projection.weight", "float [24, 32]", "missing")),
        ({"text_model.final_layer_norm.bias": torch.zeros(32, dtype=torch.int32)},
         ("text_model.final_layer_norm.bias", "F32, F16 or BF16", "I32")),
        ({"text_model.adapter.weight": torch.zeros(2)}, ("text_model.adapter.weight", "no such tensor", "F32 [2]")),
        ({f"text_model.encoder.layers.{i}.mlp.fc1.bias": None for i in (0, 1)},
         ("text_model.encoder.layers.{0-1}.mlp.fc1.bias", "float [64]", "missing")),
    ],
)  # fmt: skip
def test_a_base_with_other_tensors(zoo: Path, base: Path, tmp_path: Path, change: dict, found: tuple) -> None:
    tensors = load_file(base / "model.safetensors") | change
    save_file({k: v for k, v in tensors.items() if v is not None}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(MismatchError) as caught:
        merged(zoo, tmp_path / "m", base)
    assert caught.value.rows == [("base (base)", *found)]


def test_a_base_as_old_releases_saved_it(zoo: Path, base: Path, tmp_path: Path) -> None:
    """A pickle, with the position_ids that were stored then: they are left."""
    tensors = load_file(base / "model.safetensors")
    old = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    old["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    torch.save(tensors | old, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    found = merged(zoo, tmp_path / "m", base)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], tensors[k]) for k in tensors if not k.startswith("vision_model."))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"num_hidden_layers": 1}, MismatchError, "does not hold the text tower"),
        ({"vocab_size": 10**9}, NotATowerError, "vocab_size = 1000000000, which no CLIP tower can have"),
        ({"num_hidden_layers": 10**5}, NotATowerError, "num_hidden_layers"),
        ({"hidden_act": "a\nb"}, NotATowerError, "hidden_act"),
        ({"layer_norm_eps": "0"}, NotATowerError, "layer_norm_eps"),
        ({"num_attention_heads": 5}, NotATowerError, "hidden_size 32, not a multiple of num_attention_heads 5"),
        ({"eos_token_id": None}, NotATowerError, "eos_token_id = 'None', which is no token"),
        ({"eos_token_id": [1, 2]}, NotATowerError, "eos_token_id"),
        ({"bos_token_id": True}, NotATowerError, "bos_token_id"),
        ({"pad_token_id": -1}, NotATowerError, "pad_token_id"),
    ],
)
def test_a_hostile_text_config(
    zoo: Path, base: Path, tmp_path: Path, fields: dict, error: type[HfcartError], message: str
) -> None:
    spoil(base, "config.json", **{f"text_config__{k}": v for k, v in fields.items()})
    with pytest.raises(error, match=re.escape(message)):
        merged(zoo, tmp_path / "m", base)


@pytest.mark.parametrize("value", ["no mapping", [1], 7])
def test_a_text_config_of_another_kind(zoo: Path, base: Path, tmp_path: Path, value: object) -> None:
    spoil(base, "config.json", text_config=value)
    with pytest.raises(NotATowerError, match="text_config that is not a mapping"):
        merged(zoo, tmp_path / "m", base)


@pytest.mark.parametrize(
    ("file", "content", "error", "message"),
    [
        (
            "tokenizer.json",
            None,
            SourceError,
            "has no tokenizer: expected tokenizer.json, or vocab.json and merges.txt",
        ),
        ("tokenizer.json", b'{"a": 1, "a": 2}', CorruptFileError, "the name 'a' occurs twice"),
        ("tokenizer.json", b"[]", CorruptFileError, "tokenizer.json is broken: it is no mapping"),
        ("tokenizer.json", b"{" * 100_000, CorruptFileError, "tokenizer.json is broken"),
        ("tokenizer.json", b"{}" + b" " * (16 << 20), CorruptFileError, "expected at most 16,777,216"),
        ("added_tokens.json", b'{"x": NaN}', CorruptFileError, "added_tokens.json is broken"),
        ("merges.txt", b"\xff\xfe", CorruptFileError, "merges.txt is broken"),
        ("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["x.Y", null]}}', SourceError, "has auto_map"),
        ("tokenizer_config.json", b'{"vocab_file": "/etc/passwd"}', SourceError, "has vocab_file"),
        ("tokenizer_config.json", b'{"tokenizer_class": "LlamaTokenizer"}', SourceError, "the class 'LlamaTokenizer'"),
        ("tokenizer_config.json", b'{"tokenizer_class": ["CLIPTokenizer"]}', SourceError, "names the class"),
    ],
)
def test_a_hostile_tokenizer(
    zoo: Path, base: Path, tmp_path: Path, file: str, content: bytes | None, error: type[HfcartError], message: str
) -> None:
    (base / file).unlink(missing_ok=True)
    if content is not None:
        (base / file).write_bytes(content)
    with pytest.raises(error, match=re.escape(message)) as caught:
        merged(zoo, tmp_path / "m", base)
    assert "base" in caught.value.message


@pytest.mark.usefixtures("drawn")
def test_only_known_files_are_taken(zoo: Path, base: Path, tmp_path: Path) -> None:
    for name in ("chat_template.jinja", "tokenization_own.py", "processor_config.json", "video_preprocessor.json"):
        (base / name).write_text("{}")
    (base / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>"}')
    merged(zoo, tmp_path / "m", base)
    assert {p.name for p in (tmp_path / "m").iterdir()} == {
        *("README.md", "config.json", "figures", "hfcart.json", "model.safetensors", "preprocessor_config.json"),
        *("recipe.yaml", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"),
    }


def test_what_the_dtype_cannot_hold_is_said(zoo: Path, base: Path, tmp_path: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    tensors["text_projection.weight"][0, 0] = 1e6
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(NonFiniteError, match="text_projection.weight of the base has values beyond") as caught:
        merged(zoo, tmp_path / "m", base, dtype="float16")
    assert caught.value.hint == "Give `dtype='float32'`."
    tensors["text_projection.weight"][0, 0] = float("nan")
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        NonFiniteError, match=r"base: tensor text_projection.weight holds NaN or Inf \(1 of 768 values\)"
    ):
        merged(zoo, tmp_path / "n", base)


# The command line, the card and the Hub


def front(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_from_the_hub_and_back(zoo: Path, tmp_path: Path, hub: EmbeddedHub, hfcart: Run) -> None:
    """The base is the one that the towers' cards name; the result is pushed, loaded, verified and streamed."""

    def upload(repo: str, folder: Path, card: str) -> None:
        hub.create(repo)
        hub.commit(repo, {**{p.name: p for p in folder.iterdir()}, "README.md": card.encode()}, message="up")

    upload("user/clip", zoo / "base", CARD.format("mit", "none/at-all"))
    for i in (1, 2):
        upload(f"user/t{i}", zoo / f"t{i}", CARD.format("apache-2.0", "user/clip"))
    plan = hfcart("merge", "user/t1", "user/t2", "--full-clip", "--dry-run", hub=hub)
    assert plan.returncode == 0, plan.stderr
    assert "Base model: user/clip (give --base to choose another)." in plan.stderr
    line = next(line for line in plan.stdout.splitlines() if line.startswith("copied from the base"))
    assert "39 of the tensors (37,601 parameters) and the tokenizer, for a CLIPModel" in line

    done = hfcart("merge", "user/t1", "user/t2", "--full-clip", "--push-to", "user/merged", "--workers", "1", hub=hub)
    assert done.returncode == 0, done.stderr
    assert 'load     pipeline("zero-shot-image-classification", model="user/merged")' in done.stdout
    files = hub.files("user/merged", "main")
    assert {"tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"} <= files.keys()
    card = files["README.md"].decode()
    assert front(card)["pipeline_tag"] == "zero-shot-image-classification"
    assert sorted(front(card)["base_model"]) == ["user/clip", "user/t1", "user/t2"]
    # The base's licence counts: its weights are in there.
    assert front(card)["license"] == "other" and front(card)["license_name"] == "apache-2.0-and-mit"
    assert "- `mit`: `user/clip`" in card
    assert "those of [user/clip]" in card and "| text tower |  | 36 | 36,064 | `copied from the base` |" in card

    verified = hfcart("verify", "user/merged", hub=hub)
    assert verified.stdout == "Identical: all 78 tensors of user/merged came out with the same bytes.\n", (
        verified.stderr
    )
    streamed = hfcart("merge", "user/t1", "user/t2", "--full-clip", "--stream", "--json", "--out", "s", hub=hub)
    assert streamed.returncode == 0, streamed.stderr
    record = json.loads(streamed.stdout)
    assert record["model_class"] == "CLIPModel" and record["recipe"]["full_clip"] is True
    assert (tmp_path / "s" / "model.safetensors").read_bytes() == files["model.safetensors"]
    again = hfcart("merge", "--recipe", "s/recipe.yaml", "--out", "again", hub=hub)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again" / "hfcart.json").read_text())["files"] == record["files"]
    pushed = hfcart("push", "s", "--to", "user/second", hub=hub)
    assert pushed.returncode == 0, pushed.stderr
    assert hub.files("user/second", "main").keys() == files.keys()


def test_the_cards_snippet_runs(zoo: Path, tmp_path: Path, clean_env: dict[str, str]) -> None:
    merged(zoo, tmp_path / "m")
    card = (tmp_path / "m" / "README.md").read_text()
    assert "this tower" not in card.partition("## Limits")[0]
    snippet = card.partition("```python\n")[2].partition("```")[0]
    env = {**clean_env, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", snippet]
    done = ended(command, warm=True, cwd=tmp_path / "m", env=env)
    assert done.returncode == 0, done.stderr
    scores = {label: float(score) for score, label in (line.split("% ") for line in done.stdout.splitlines())}
    assert scores.keys() == {"cat", "dog"} and abs(sum(scores.values()) - 100) <= 0.11  # each to a tenth
