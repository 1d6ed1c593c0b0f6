"""What passes for a tower's config is loaded by transformers; what does not fit is said of the file or the config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from towers import TINY, config, weights, write_tower
from transformers import AutoConfig, CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.activations import ACT2CLS, ACT2FN

import hfcart
from hfcart.clip.architecture import ACTIVATIONS, expected_shapes, output_config, read_architecture
from hfcart.errors import MismatchError, NotATowerError
from hfcart.formats.safetensors_file import TensorSpec
from hfcart.progress import Progress
from hfcart.sources.full_clip import BaseParts, clip_config, read_text_config
from hfcart.sources.one_architecture import tensor_differences
from hfcart.zero_shot.loaded_tower import load_tower

INTEGER = st.sampled_from([1, 2, 3, 4, 8, 12, 16, 32, 0, -1, 5.0, True, None, "8", [16, 16], 10**9])
ACTIVATION = st.sampled_from([*ACTIVATIONS, "quickgelu", "QuickGELU", "GELU", "prelu", "xielu", "", None, 3, ["gelu"]])
FIELDS = {
    "hidden_size": INTEGER,
    "intermediate_size": INTEGER,
    "num_hidden_layers": st.sampled_from([1, 2, 0, 1.0, None, 10**6]),
    "num_attention_heads": INTEGER,
    "hidden_act": ACTIVATION,
    "layer_norm_eps": st.sampled_from([1e-5, 1e-6, 0, 0.5, 1e-300, 1, -1e-5, None, "1e-5", True]),
    "attention_dropout": st.sampled_from([0.0, 0.1, "none", None]),
    "initializer_factor": st.sampled_from([1.0, "one"]),
    "torch_dtype": st.sampled_from(["float16", "float99"]),
}
VISION = {**FIELDS, "num_channels": INTEGER, "image_size": INTEGER, "patch_size": INTEGER, "projection_dim": INTEGER}
TEXT = {**FIELDS, "vocab_size": INTEGER, "max_position_embeddings": INTEGER, "eos_token_id": INTEGER,
        "bos_token_id": INTEGER, "pad_token_id": INTEGER}  # fmt: skip
SMALL_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 60}


def some(fields: dict) -> st.SearchStrategy:
    """A few of the fields with other values."""
    return st.sets(st.sampled_from(sorted(fields)), max_size=3).flatmap(
        lambda names: st.fixed_dictionaries({name: fields[name] for name in names})
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(own=some(VISION), text=some(TEXT))
def test_whatever_passes_is_loaded_by_transformers(own: dict, text: dict) -> None:
    """The config of a merged tower, and that of a whole CLIPModel: every shape in the model is the one expected."""
    try:
        arch = read_architecture(config({**TINY, **own}), "x")
    except NotATowerError as error:
        assert "x: config.json has " in error.message
        return
    written = json.loads(json.dumps(output_config(arch, "CLIPVisionModelWithProjection", "float16")))
    with torch.device("meta"):
        tower = CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(written))
    held = {name: tuple(p.shape) for name, p in tower.named_parameters()}
    assert held == expected_shapes(arch, projection=True)
    try:
        texts = read_text_config({"text_config": {**SMALL_TEXT, **text}}, "x")
    except NotATowerError as error:
        assert "x: text_config: config.json has " in error.message
        return
    written = json.loads(json.dumps(clip_config(arch, BaseParts({}, texts, 2.6592, {}), "float32")))
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig.from_dict(written))
    assert {name for name, _ in model.named_parameters()} > set(expected_shapes(arch, projection=True))


OLD = st.fixed_dictionaries(
    {},
    optional={
        "hidden_size": st.sampled_from([24, 768]),
        "num_attention_heads": st.sampled_from([2, 4, 12]),
        "layer_norm_eps": st.sampled_from([1e-5, 1e-3]),
        "hidden_act": st.sampled_from(["quick_gelu", "gelu"]),
        "projection_dim": st.sampled_from([24, 512]),
    },
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(new=OLD, old=st.none() | OLD, same=st.booleans(), top=st.sampled_from([None, 24]))
def test_a_clip_config_is_read_as_transformers_reads_it(
    new: dict, old: dict | None, same: bool, top: int | None
) -> None:
    """An old vision_config_dict beside it replaces the vision_config of a CLIPModel, and not that of a tower."""
    found = {"model_type": "clip", "vision_config": new, "vision_config_dict": dict(new) if same else old}
    if top:
        found["projection_dim"] = top
    readings = [CLIPConfig.from_dict(json.loads(json.dumps(found))).vision_config]
    if new:
        readings.append(CLIPVisionConfig.from_dict(new))
    try:
        arch = read_architecture(found, "x")
    except NotATowerError as error:
        assert "in vision_config_dict" in error.message and readings[0].to_dict() != readings[-1].to_dict()
        return
    for name in set(TINY) - {"projection_dim"}:
        assert {getattr(reading, name) for reading in readings} == {getattr(arch, name)}
    assert arch.projection_dim == (top or 512)


def test_the_activations_are_those_of_transformers() -> None:
    """All but those that bring weights of their own, which no CLIP tower stores: they would be random after loading."""
    assert sorted(ACTIVATIONS) == sorted(name for name in ACT2CLS if not list(ACT2FN[name].parameters()))


@pytest.mark.parametrize("act", ["quickgelu", "prelu", "x" * 1000])
def test_an_unknown_activation_is_refused(tmp_path: Path, act: str) -> None:
    folder = write_tower(tmp_path / "odd", 1, {**TINY, "hidden_act": act})
    with pytest.raises(
        NotATowerError, match="odd: config.json has hidden_act = .* transformers knows gelu, "
    ) as caught:
        hfcart.merge([folder], out=tmp_path / "m")
    assert len(caught.value.message) < 500 and not (tmp_path / "m").exists()


def test_the_config_of_a_merge_is_loaded_by_transformers(tmp_path: Path) -> None:
    sources = [write_tower(tmp_path / f"t{i}", i, {**TINY, "hidden_act": "gelu_new"}) for i in (1, 2)]
    hfcart.merge(sources, out=tmp_path / "m", method="average")
    assert AutoConfig.from_pretrained(tmp_path / "m").hidden_act == "gelu_new"


def described(folder: Path, **changes: object) -> Path:
    """The config of this folder says something else from now on."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def refused(tmp_path: Path, *sources: Path, **fields: object) -> MismatchError:
    with pytest.raises(MismatchError) as caught:
        hfcart.merge(sources, out=tmp_path / "m", **fields)
    return caught.value


def test_files_that_do_not_fit_their_own_configs(tmp_path: Path) -> None:
    """All of them: none differs from the rest, and there is nothing to leave out."""
    sources = [described(write_tower(tmp_path / f"t{i}", i), intermediate_size=128) for i in (1, 2, 3)]
    error = refused(tmp_path, *sources)
    assert error.message == (
        "3 of 3 towers hold other tensors than their own config.json describes: t1, t2, t3. Nothing was downloaded."
    )
    assert error.hint is not None and "eave out" not in error.hint and "user/name@revision" in error.hint
    fc1 = "vision_model.encoder.layers.{0-1}.mlp.fc1.weight"
    assert ("t1", fc1, "float [128, 32]", "F32 [64, 32]") in error.rows
    with pytest.raises(MismatchError, match=r"^t1 holds other tensors than its own config.json describes\.$"):
        load_tower(str(sources[0]), Progress())


def test_one_file_that_does_not_fit_and_one_config_that_differs(tmp_path: Path) -> None:
    good = [write_tower(tmp_path / f"t{i}", i) for i in (1, 2)]
    broken = described(write_tower(tmp_path / "broken", 3), num_hidden_layers=3)
    wide = write_tower(tmp_path / "wide", 4, {**TINY, "intermediate_size": 128})
    error = refused(tmp_path, *good, broken, wide)
    assert error.message.startswith(
        "2 of 4 towers differ from the rest in architecture: broken, wide. "
        "1 of 4 towers hold other tensors than their own config.json describes: broken."
    )
    assert error.hint is not None and error.hint.startswith("Leave out the towers that differ")
    # What a config says otherwise is one row; the shapes that follow from it are not repeated.
    assert [row for row in error.rows if row[0] == "wide"] == [("wide", "config.json: intermediate_size", "64", "128")]


def test_no_projection_in_any_tower(tmp_path: Path) -> None:
    error = refused(tmp_path, *(write_tower(tmp_path / f"t{i}", i) for i in (1, 2)), with_projection=True)
    assert [row[1:] for row in error.rows] == [("visual_projection.weight", "float [24, 32]", "missing")] * 2
    assert error.hint is not None and error.hint.startswith("Merge without `with_projection=True`")


@pytest.mark.parametrize("suffix", ["_orig", ".data", ".0.x", ".a.b.c"])
def test_other_names_are_folded_by_layer(tmp_path: Path, suffix: str) -> None:
    cfg = {**TINY, "num_hidden_layers": 12}
    folder = write_tower(tmp_path / "odd", 1, cfg)
    save_file({name + suffix: tensor for name, tensor in weights(1, cfg).items()}, folder / "model.safetensors")
    error = refused(tmp_path, folder)
    assert len(error.rows) == 2 * 23  # as many kinds of tensors are missing as there are others
    layer = "vision_model.encoder.layers.{0-11}.mlp.fc1.bias" + suffix
    assert ("odd", layer, "no such tensor", "F32 [64]") in error.rows


def test_many_other_names_are_counted() -> None:
    """20,000 names, and shapes of any length, from a file that anyone may have written."""
    foreign = {f"x{i}.{i}.y": TensorSpec(f"x{i}.{i}.y", "F32", (1,) * 500, "f", 0, 0) for i in range(20_000)}
    rows = tensor_differences(foreign, {})
    assert len(rows) == 26 and rows[-1] == ("and 19,975 more", "", "")
    assert all(len(cell) < 200 for row in rows for cell in row)
