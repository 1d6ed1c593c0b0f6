"""One tower, whoever saved it: OpenCLIP's names, prefixes of wrappers, a classifier beside it."""

from __future__ import annotations

import hashlib
import json
from itertools import permutations
from pathlib import Path

import pytest
import torch
from forms import WIDE, open_clip_config, write_open_clip
from merging import Listener, merged, raw
from safetensors.torch import load_file, save_file
from towers import config, weights, write_tower

import hfcart
from hfcart.clip.architecture import read_architecture
from hfcart.clip.open_clip import read_open_clip_config, read_open_clip_text
from hfcart.errors import MismatchError, NotATowerError
from hfcart.methods import METHODS
from hfcart.sources.full_clip import read_text_config
from hfcart.sources.preprocessor import clip_default, read_preprocessor
from hfcart.sources.stores import LocalStore

WITHOUT_IMAGES = [name for name, method in METHODS.items() if method.statistics is None and not method.exactly]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[Path]]:
    """Three towers in both forms, whose files' digests (the order of a sum, and of random masks) sort them alike."""
    tmp = tmp_path_factory.mktemp("both")
    theirs = [write_open_clip(tmp / f"o{i}", i) for i in range(1, 9)]
    ours = [write_tower(tmp / f"t{i}", i, WIDE, projection=True) for i in range(1, 9)]

    def ranks(folders: list[Path]) -> list[str]:
        return [hashlib.sha256(next(folder.glob("*.safetensors")).read_bytes()).hexdigest() for folder in folders]

    a, b = ranks(theirs), ranks(ours)
    alike = (c for c in permutations(range(8), 3) if list(c) == sorted(c, key=a.__getitem__)
             and list(c) == sorted(c, key=b.__getitem__))  # fmt: skip
    chosen = next(alike)
    return [theirs[i] for i in chosen], [ours[i] for i in chosen]


def near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).norm() <= tolerance * tensor.norm(), name


@pytest.mark.parametrize("qkv", ["split", "fused"])
@pytest.mark.parametrize("method", WITHOUT_IMAGES)
def test_a_merge_of_openclip_towers_is_that_of_the_same_towers_by_transformers(
    tmp_path: Path, both: tuple[list[Path], list[Path]], method: str, qkv: str
) -> None:
    theirs, ours = both
    fields: dict = {"method": method, "qkv": qkv, "with_projection": True}
    if METHODS[method].needs_base:
        fields["base"] = str(write_tower(tmp_path / "base", 0, WIDE, projection=True))
    if METHODS[method].any_matrix:
        fields["matrices"] = "all-2d"
    assert raw(merged(theirs, tmp_path / "a", **fields)) == raw(merged(ours, tmp_path / "b", **fields))
    assert (tmp_path / "a" / "config.json").read_bytes() == (tmp_path / "b" / "config.json").read_bytes()


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "finetuned.pt"])
@pytest.mark.parametrize("prefix", ["", "model.", "module.", "_orig_mod.", "module.model."])
def test_the_files_and_prefixes_of_openclip(tmp_path: Path, file: str, prefix: str) -> None:
    source = write_open_clip(tmp_path / "o", 1, file=file, prefix=prefix, dtype=torch.float16)
    heard = Listener()
    found = merged([source], tmp_path / "m", method="average", progress=heard)
    near(found, {n: t.half() for n, t in weights(1, WIDE).items()}, 0.0)
    (note,) = [note for note in heard.notes if "OpenCLIP" in note]
    assert note.startswith("o is an OpenCLIP tower") and "the text side beside it is not merged" in note
    assert (f"behind the prefix '{prefix}'" in note) == bool(prefix)


def test_a_tower_of_openclip_saved_alone(tmp_path: Path) -> None:
    folder = write_open_clip(tmp_path / "o", 1, text=False)
    file = folder / "open_clip_model.safetensors"
    save_file({n.removeprefix("visual."): t for n, t in load_file(file).items()}, file)
    near(merged([folder], tmp_path / "m", method="average"), weights(1, WIDE), 0.0)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_no_activation_is_guessed(tmp_path: Path, act: str) -> None:
    """It comes from the config, the base or the user; the rest from the shapes."""
    own = {**WIDE, "hidden_act": act}
    bare = write_open_clip(tmp_path / "bare", 1, own, config=False)
    with pytest.raises(NotATowerError, match="no shape shows which activation") as error:
        hfcart.merge([str(bare)], out=str(tmp_path / "m"))
    assert "`activation=" in (error.value.hint or "") and "`base=" in (error.value.hint or "")
    base = write_tower(tmp_path / "base", 0, own)
    full = write_open_clip(tmp_path / "full", 2, own)
    expected = {**config(own), "dtype": "float32"}
    for i, (sources, fields) in enumerate(
        [([bare], {"activation": act}), ([bare, full], {"activation": act}), ([bare], {"base": str(base)})]
    ):
        record = hfcart.merge([str(s) for s in sources], out=str(tmp_path / f"m{i}"), method="average", **fields)
        assert json.loads((tmp_path / f"m{i}" / "config.json").read_text()) == expected
        assert record.recipe.get("activation") == fields.get("activation")
        record = hfcart.merge(
            [str(s) for s in sources], out=str(tmp_path / f"again{i}"),
            **{k: v for k, v in record.recipe.items() if k in ("method", "activation")}, base=fields.get("base"),
        )  # fmt: skip
        assert json.loads((tmp_path / f"again{i}" / "config.json").read_text()) == expected
    other = {"quick_gelu": "gelu", "gelu": "quick_gelu"}[act]
    with pytest.raises(MismatchError) as odd:
        hfcart.merge([str(bare), str(full)], out=str(tmp_path / "odd"), activation=other)
    assert [row[1] for row in odd.value.rows] == ["open_clip_config.json: hidden_act"]


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "clip.", "vision_tower.vision_tower.", "base_model.model.", "x.y9.encoder."]
)
@pytest.mark.parametrize("form", ["prefixed", "flat", "full"])
def test_one_prefix_is_seen_through_and_said_once(tmp_path: Path, prefix: str, form: str) -> None:
    folder = write_tower(tmp_path / "t", 1, form=form)
    file = folder / "model.safetensors"
    save_file({prefix + n: t for n, t in load_file(file).items()}, file)
    heard = Listener()
    near(merged([folder], tmp_path / "m", method="average", progress=heard), weights(1), 0.0)
    assert [n for n in heard.notes if "prefix" in n] == [f"t is read behind the prefix '{prefix}'."]


def test_what_trainer_leaves(tmp_path: Path) -> None:
    """A classifier trained and saved by transformers' Trainer, and its checkpoint with the optimiser's state beside."""
    from transformers import CLIPConfig, CLIPForImageClassification, Trainer, TrainingArguments

    trained = []
    for run in ("cars", "dtd"):
        torch.manual_seed(0)  # of one ancestor, and then each on images of its own
        made = CLIPForImageClassification(CLIPConfig(vision_config=config(), num_labels=4))
        images = [{"pixel_values": torch.randn(3, 16, 16), "labels": i % len(run)} for i in range(8)]
        options = TrainingArguments(
            str(tmp_path / run), max_steps=2, save_steps=2, per_device_train_batch_size=4, learning_rate=1e-3,
            use_cpu=True, report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(made, options, train_dataset=images)
        trainer.train()
        trainer.save_model(str(tmp_path / run))
        trained.append({n: t.clone() for n, t in made.state_dict().items() if n.startswith("vision_model.")})
    left = {path.name for path in (tmp_path / "cars" / "checkpoint-2").iterdir()}
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json"} <= left
    heard = Listener()
    sources = [tmp_path / "cars", Path(f"{tmp_path / 'dtd'}:checkpoint-2")]
    found = merged(sources, tmp_path / "m", method="average", progress=heard)
    near(found, {n: (t + trained[1][n]) / 2 for n, t in trained[0].items()}, 1e-6)
    assert sum("classifier" in note for note in heard.notes) == 2  # once for each of them


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", ["classifier", "module.classifier", "classification_head"])
def test_a_classifier_is_left_out_and_named(tmp_path: Path, name: str, prefix: str) -> None:
    folder = write_tower(tmp_path / "t", 1)
    file = folder / "model.safetensors"
    head = {f"{name}.weight": torch.ones(4, 32), f"{name}.bias": torch.ones(4)}
    tensors = {prefix + n: t for n, t in load_file(file).items()}
    save_file({**tensors, **head}, file)
    if name.startswith("module.") and not prefix:  # of something else than this tower
        with pytest.raises(MismatchError) as error:
            hfcart.merge([str(folder)], out=str(tmp_path / "m"))
        assert "module.classifier.weight" in [row[1] for row in error.value.rows]
        return
    heard = Listener()
    near(merged([folder], tmp_path / "m", method="average", progress=heard), weights(1), 0.0)
    (note,) = [note for note in heard.notes if "classifier" in note]
    assert f"{name}.weight" in note and "left out" in note


def test_two_towers_in_one_file_are_not_chosen_between(tmp_path: Path) -> None:
    folder = write_open_clip(tmp_path / "o", 1)
    file = folder / "open_clip_model.safetensors"
    save_file({**load_file(file), **{f"ema.{n}": t for n, t in load_file(file).items()}}, file)
    with pytest.raises(NotATowerError, match="holds 2 towers, under 'ema.visual.', 'visual.'"):
        hfcart.merge([str(folder)], out=str(tmp_path / "m"))


def test_a_resnet_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "rn50"
    folder.mkdir()
    save_file({"visual.conv1.weight": torch.ones(4, 3, 3, 3), "visual.layer1.0.conv1.weight": torch.ones(4, 4, 1, 1)},
              folder / "open_clip_model.safetensors")  # fmt: skip
    with pytest.raises(NotATowerError, match="rn50 holds a ResNet"):
        hfcart.merge([str(folder)], out=str(tmp_path / "m"))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("visual.ln_attn.weight", (64,)), ("visual.transformer.resblocks.0.ls_1.gamma", (64,)),
     ("visual.transformer.resblocks.1.attn.in_proj_weight", (190, 64)), ("visual.conv1.bias", (64,)),
     ("visual.proj", (24, 64)), ("visual.transformer.resblocks.2.ln_1.weight", (64,))],
)  # fmt: skip
def test_what_no_clip_tower_has_is_a_row(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    folder = write_open_clip(tmp_path / "o", 1)
    file = folder / "open_clip_model.safetensors"
    save_file({**load_file(file), name: torch.ones(shape)}, file)
    with pytest.raises(MismatchError) as error:
        hfcart.merge([str(folder)], out=str(tmp_path / "m"), with_projection=True)
    assert error.value.rows


CONFIGS = [
    ({}, None),
    ({"width": 63}, "width 63"),
    ({"layers": [3, 4, 6, 3]}, "'layers'"),
    ({"timm_model_name": "vit_base"}, "'timm_model_name'"),
    ({"attentional_pool": True}, "'attentional_pool'"),
    ({"patch_dropout": 0.5}, None),
    ({"pool_type": "avg"}, "'pool_type'"),
    ({"attentional_pool": False}, None),
    ({"image_size": [16, 16]}, None),
    ({"image_size": [16, 24]}, "image_size"),
    ({"mlp_ratio": True}, "mlp_ratio"),
    ({"width": 10**9, "head_width": 1}, "width 1000000000"),
    ({"width": 10**400, "head_width": 1}, "which no CLIP tower can have"),
    ({"norm_kwargs": {"eps": 1e-5}}, None),
    ({"norm_kwargs": {"eps": "x"}}, "layer_norm_eps = 'x'"),
    ({"norm_kwargs": {"eps": 1e-5, "bias": False}}, "'norm_kwargs'"),
    ({"norm_kwargs": 7}, "'norm_kwargs'"),
]


@pytest.mark.parametrize(("odd", "said"), CONFIGS)
def test_openclips_config(odd: dict, said: str | None) -> None:
    found = open_clip_config()
    found["model_cfg"]["vision_cfg"] |= odd
    if said is None:
        assert read_open_clip_config(found, "o") == read_architecture(config(WIDE), "t")
    else:
        with pytest.raises(NotATowerError, match=said):
            read_open_clip_config(found, "o")


TEXTS = [
    ({"width": 10**400}, "'width'"),
    ({"width": [512]}, "'width'"),
    ({"mlp_ratio": 1e9}, "'mlp_ratio' = 1000000000.0"),
    ({"pool_type": "last"}, "'pool_type' = 'last'"),
    ({"hf_model_name": "roberta-base"}, "'hf_model_name' = 'roberta-base'"),
    ({"no_causal_mask": True}, "'no_causal_mask'"),
    ({"norm_kwargs": [1]}, "'norm_kwargs'"),
    ({"layers": -1}, "num_hidden_layers = -1"),
    ({"pool_type": "eos", "eos_id": [2]}, "eos_token_id"),
    ({"vocab_size": 10**400}, "vocab_size"),
    ({"heads": 7}, "not a multiple of num_attention_heads 7"),
]


@pytest.mark.parametrize(("odd", "said"), TEXTS)
def test_openclips_text_config(odd: dict, said: str) -> None:
    found = {"model_cfg": {"vision_cfg": {}, "text_cfg": {"output_tokens": True, "no_causal_mask": False}}}
    text = read_text_config({"text_config": read_open_clip_text(found, "o")}, "o")
    kept = ("hidden_size", "num_hidden_layers", "eos_token_id", "hidden_act")
    assert [text[name] for name in kept] == [512, 12, 2, "gelu"]
    found["model_cfg"]["text_cfg"] |= odd
    with pytest.raises(NotATowerError, match=said):
        read_text_config({"text_config": read_open_clip_text(found, "o")}, "o")


@pytest.mark.parametrize("broken", [None, 3, [], {}, {"model_cfg": 1}, {"model_cfg": {"vision_cfg": []}}])
def test_openclips_config_of_nothing(broken: object) -> None:
    with pytest.raises(NotATowerError, match="model_cfg"):
        read_open_clip_config(broken, "o")


def test_openclips_preprocessing(tmp_path: Path) -> None:
    folder = write_open_clip(tmp_path / "o", 1)
    expected = {**clip_default(16), "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    assert read_preprocessor(LocalStore(folder), 16) == expected
    found = open_clip_config()
    for cfg, resample in ((None, 3), ({"interpolation": "bilinear"}, 2), ({"interpolation": "random"}, 3)):
        (folder / "open_clip_config.json").write_text(json.dumps({**found, "preprocess_cfg": cfg}))
        assert read_preprocessor(LocalStore(folder), 16) == {**clip_default(16), "resample": resample}
    squash, longest = ({**found, "preprocess_cfg": {"resize_mode": mode}} for mode in ("squash", "longest"))
    (folder / "open_clip_config.json").write_text(json.dumps(squash))
    square = {"height": 16, "width": 16}
    assert read_preprocessor(LocalStore(folder), 16) == {**clip_default(16), "size": square}
    (folder / "open_clip_config.json").write_text(json.dumps(longest))
    with pytest.raises(Exception, match="resize_mode"):
        read_preprocessor(LocalStore(folder), 16)


OTHERS = {
    "dora": ({"adapter_config.json": {"peft_type": "LORA", "use_dora": True}}, "adapter_model.safetensors",
             "is DoRA \\(use_dora in its"),
    "an adapter of another type": ({"adapter_config.json": {"peft_type": "IA3"}}, "adapter_model.bin",
                                   "of the type 'IA3'"),
    "gguf": ({}, "clip-vit-b-32-q4.gguf", "holds GGUF files"),
    "awq": ({"config.json": {**config(), "quantization_config": {"quant_method": "awq"}}}, "model.safetensors",
            "is quantized \\('awq'\\)"),
    "gptq": ({"config.json": {**config(), "quantization_config": {"quant_method": "gptq"}}}, "model.safetensors",
             "is quantized \\('gptq'\\)"),
    "bitsandbytes": ({"config.json": {**config(), "quantization_config": {"load_in_4bit": True}}}, "model.safetensors",
                     "is quantized"),
    "siglip": ({"config.json": {"model_type": "siglip"}}, "model.safetensors", "model_type 'siglip'"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_other_forms_are_named(tmp_path: Path, case: str) -> None:
    files, weights_file, said = OTHERS[case]
    folder = write_tower(tmp_path / case.split()[-1], 1)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / weights_file)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(NotATowerError, match=said) as error:
        hfcart.merge([str(folder)], out=str(tmp_path / "m"))
    assert error.value.hint
