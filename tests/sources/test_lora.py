"""LoRA adapters as sources: what peft makes of them, tensor by tensor, with the base pinned beside them."""

from __future__ import annotations

import json
import math
import shutil
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import as_pickle, change_config, change_tensors, unloaded, write_adapter
from clips import write_clip
from merging import merged
from running import Run
from safetensors.torch import load_file
from towers import TINY, write_tower

import hfcart as hfcart_api
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.errors import HfcartError, MismatchError, NotATowerError
from hfcart.formats.safetensors_file import LocalFile, parse_header
from hfcart.progress import Progress
from hfcart.sources.headers import read_headers
from hfcart.sources.places import pin_all
from hfcart.sources.towers import fetch_all, with_bases

OPTIONS: dict[str, dict[str, Any]] = {
    "a list": {"target_modules": ["q_proj", "fc1"]},
    "a regular expression": {"target_modules": r".*layers\.1\..*(q_proj|fc2)"},
    "all-linear": {"target_modules": "all-linear"},
    "one layer": {"target_modules": ["v_proj"], "layers_to_transform": [1]},
    "rslora": {"target_modules": ["k_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {r"layers\.0\..*q_proj": 2, "fc2": 6, "^encoder.layers.1.mlp.fc1": 3},
        "alpha_pattern": {r"layers\.\d+\.mlp\.fc1": 3, "k_proj": 11},
    },
    "rslora with patterns": {"target_modules": ["fc1"], "rank_pattern": {"fc1": 5}, "use_rslora": True},
    "trained biases": {"target_modules": ["q_proj"], "bias": "all"},
    "biases of what is adapted": {"target_modules": ["q_proj", "fc1"], "bias": "lora_only"},
    "a bias in B": {"target_modules": ["q_proj", "fc1"], "lora_bias": True},
    "both biases": {"target_modules": ["fc2"], "lora_bias": True, "bias": "lora_only"},
    "saved modules": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embeddings", "layer_norm1", "layer_norm2", "pre_layrnorm", "post_layernorm"],
    },
    "biases in saved modules": {"target_modules": ["q_proj"], "bias": "all", "modules_to_save": ["layer_norm1"]},
    "a convolution": {"target_modules": ["patch_embedding"]},
    "an embedding": {"target_modules": ["position_embedding", "q_proj"]},
    "fan_in_fan_out": {"target_modules": ["q_proj"], "fan_in_fan_out": True},
    "gaussian": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
}


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    """Whether two towers are the same to 1e-6 of the larger of both."""
    return found.keys() == expected.keys() and all(
        (found[name] - expected[name]).abs().max() <= 1e-6 * expected[name].abs().max() for name in expected
    )


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_adapter_is_what_peft_makes_of_it(options: dict[str, Any], tmp_path: Path) -> None:
    base = write_tower(tmp_path / "base", 0)
    adapter = write_adapter(tmp_path / "lora", base, 1, **options)
    found = merged([adapter], tmp_path / "m", method="average", base=str(base))
    expected = merged([unloaded(adapter)], tmp_path / "n", method="average")
    assert close(found, expected)
    assert not close(found, merged([base], tmp_path / "b", method="average"))


@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPForImageClassification"])
def test_an_adapter_of_a_larger_model_is_its_vision_side(kind: str, tmp_path: Path) -> None:
    base = write_clip(tmp_path / "base", 0)
    saved = {"modules_to_save": ["classifier"]} if kind == "CLIPForImageClassification" else {}
    adapter = write_adapter(tmp_path / "lora", base, 1, kind=kind, target_modules=["q_proj", "v_proj"], **saved)
    found = merged([adapter], tmp_path / "m", method="average", base=str(base))
    assert close(found, merged([unloaded(adapter)], tmp_path / "n", method="average"))


def test_a_projection_that_was_adapted_is_kept_with_the_rest(tmp_path: Path) -> None:
    base = write_clip(tmp_path / "base", 0)
    adapter = write_adapter(tmp_path / "lora", base, 1, kind="CLIPModel", target_modules=["visual_projection", "fc1"])
    fields = {"method": "average", "with_projection": True}
    found = merged([adapter], tmp_path / "m", base=str(base), **fields)
    assert close(found, merged([unloaded(adapter)], tmp_path / "n", **fields))


def test_a_pickled_adapter_is_read_as_data(tmp_path: Path) -> None:
    base = write_tower(tmp_path / "base", 0)
    adapter = write_adapter(tmp_path / "lora", base, 1, target_modules=["q_proj"])
    as_pickle(adapter)
    found = merged([adapter], tmp_path / "m", method="average", base=str(base))
    assert close(found, merged([unloaded(adapter)], tmp_path / "n", method="average"))


@pytest.mark.parametrize("qkv", ["split", "fused"])
@pytest.mark.parametrize("method", ["cart", "average", "task_arithmetic", "ties"])
def test_adapters_merge_as_the_towers_that_peft_makes_of_them(method: str, qkv: str, tmp_path: Path) -> None:
    base = write_tower(tmp_path / "base", 0)
    made = [write_adapter(tmp_path / f"a{i}", base, i, target_modules="all-linear", bias="all") for i in (1, 2, 3)]
    fields: dict[str, Any] = {"method": method, "qkv": qkv, "base": str(base)}
    found = merged(made, tmp_path / "m", **fields)
    expected = merged([unloaded(adapter) for adapter in made], tmp_path / "n", **fields)
    # The files' digests set the order of the towers, and with it the last bits.
    assert found.keys() == expected.keys()
    assert all((found[name] - expected[name]).norm() <= 1e-6 * expected[name].norm() for name in found)


def put(hub: EmbeddedHub, repo: str, *folders: tuple[str, Path]) -> str:
    """Commit folders under their places in a repo."""
    files = {f"{place}{path.name}": path.read_bytes() for place, folder in folders for path in folder.iterdir()}
    hub.create(repo)
    return hub.commit(repo, files)


def test_the_base_is_pinned_in_recipe_record_and_card(hub: EmbeddedHub, hfcart: Run, tmp_path: Path) -> None:
    base = write_tower(tmp_path / "base", 0)
    commit = put(hub, "user/base", ("", base))
    for i in (1, 2):
        adapter = write_adapter(tmp_path / f"a{i}", base, i, target_modules=["q_proj"], named="user/base")
        put(hub, f"user/a{i}", ("", adapter))
    done = hfcart("merge", "user/a1", "user/a2", "--out", "m", hub=hub)
    assert done.returncode == 0, done.stderr
    assert f"user/a1 is a LoRA adapter of user/base at {commit[:12]}: 2 products B A (rank 4)." in done.stderr
    record = json.loads((tmp_path / "m" / "hfcart.json").read_text())
    assert [source["adapter_of"]["commit"] for source in record["sources"]] == [commit] * 2
    assert {source["base"] for source in record["recipe"]["sources"]} == {f"user/base@{commit}"}
    card = (tmp_path / "m" / "README.md").read_text()
    assert "a LoRA adapter of [user/base](" in card and f"its base [`{commit[:7]}`](" in card
    hub.commit("user/base", {"model.safetensors": write_tower(tmp_path / "other", 9) / "model.safetensors"})
    assert hfcart("verify", "m", hub=hub).returncode == 0


def test_an_adapter_inside_a_towers_repo_is_of_that_tower(hub: EmbeddedHub, hfcart: Run, tmp_path: Path) -> None:
    base = write_tower(tmp_path / "base", 0)
    adapter = write_adapter(tmp_path / "lora", base, 1, target_modules=["q_proj"], named="user/merged")
    nameless = write_adapter(tmp_path / "lora2", base, 2, target_modules=["q_proj"])
    first = put(hub, "user/merged", ("", base), ("adapters/cars/", adapter), ("adapters/eurosat/", nameless))
    hub.commit(
        "user/merged", {"model.safetensors": (write_tower(tmp_path / "x", 9) / "model.safetensors").read_bytes()}
    )
    at = f"user/merged@{first}"
    done = hfcart(
        "merge", f"{at}:adapters/cars", f"{at}:adapters/eurosat", "--method", "average", "--out", "m", hub=hub
    )
    assert done.returncode == 0, done.stderr
    assert f"user/merged:adapters/cars is a LoRA adapter of user/merged at {first[:12]}" in done.stderr
    recipe = json.loads((tmp_path / "m" / "hfcart.json").read_text())["recipe"]
    assert {source["base"] for source in recipe["sources"]} == {at}


def test_an_adapter_inside_a_towers_folder_is_of_that_tower(hfcart: Run, tmp_path: Path) -> None:
    base = write_tower(tmp_path / "merged", 0)
    adapter = write_adapter(base / "adapters" / "cars", base, 1, target_modules=["q_proj"])
    done = hfcart("merge", "merged/adapters/cars", "--method", "task_arithmetic", "--scale", "1", "--out", "m")
    assert done.returncode == 0 and "Base model: merged (" in done.stderr
    expected = merged([unloaded(adapter)], tmp_path / "n", method="average")
    assert close(load_file(tmp_path / "m" / "model.safetensors"), expected)
    write_tower(tmp_path / "cars", 3)  # another thing of the adapter's name
    assert hfcart("verify", "m").returncode == 0


def test_a_merge_above_an_adapter_of_another_tower_is_not_its_base(hfcart: Run, tmp_path: Path) -> None:
    """A project's folder may hold a merge and, below it, adapters that have nothing to do with it."""
    for i in (0, 1, 2):
        write_tower(tmp_path / f"t{i}", i)
    assert hfcart("merge", "t1", "t2", "--method", "average", "--out", "proj").returncode == 0
    for named in ("user/base", "/home/somebody/base"):
        adapter = write_adapter(tmp_path / "lora", tmp_path / "t0", 7, target_modules="all-linear", named=named)
        shutil.copytree(adapter, tmp_path / "proj" / "runs" / "lora", dirs_exist_ok=True)
        done = hfcart("merge", "proj/runs/lora", "--method", "average", "--base", "t0", "--out", "m", "--overwrite")
        assert done.returncode == 0, done.stderr
        assert "is a LoRA adapter of t0" in done.stderr


def test_what_adapters_come_from_is_found_through_their_base(hub: EmbeddedHub, hfcart: Run, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip", 0)
    commit = put(hub, "user/clip", ("", clip))
    for i in (1, 2):
        folder = write_adapter(tmp_path / f"a{i}", clip, i, kind="CLIPModel", target_modules=["fc2"], named="user/clip")
        put(hub, f"user/a{i}", ("", folder))
    done = hfcart("merge", "user/a1", "user/a2", "--method", "average", "--push-to", "user/m", hub=hub)
    assert done.returncode == 0, done.stderr
    hub.create("user/inside")  # of a merge, which names no base itself
    hub.commit("user/inside", {path.name: path for path in (tmp_path / "m").iterdir() if path.is_file()})
    inside = write_adapter(tmp_path / "a3", tmp_path / "m", 3, target_modules=["fc2"], named="user/inside")
    hub.commit("user/inside", {f"adapters/x/{path.name}": path for path in inside.iterdir()})
    for sources in (("user/a1", "user/a2"), ("user/m", "user/a1"), ("user/inside:adapters/x", "user/m")):
        done = hfcart("merge", *sources, "--method", "task_arithmetic", "--dry-run", hub=hub)
        assert done.returncode == 0 and f"Base model: user/clip@{commit} (" in done.stderr, done.stderr


def test_a_base_that_only_its_user_names_is_pinned_by_its_content(hfcart: Run, tmp_path: Path) -> None:
    base = write_tower(tmp_path / "base", 0)
    write_adapter(tmp_path / "lora", base, 1, target_modules=["q_proj"], named=str(base))
    refused = hfcart("merge", "lora", "--out", "m")
    assert refused.returncode == 2 and "a path in a file is not followed" in refused.stderr
    assert f"→ If that is a folder of yours, say so: --base {base}" in refused.stderr
    assert hfcart("merge", "lora", "--base", "base", "--out", "m").returncode == 0
    (source,) = json.loads((tmp_path / "m" / "hfcart.json").read_text())["recipe"]["sources"]
    assert source["adapter"]["path"] == "lora" and source["base"]["path"] == "base"
    assert hfcart("verify", "m").returncode == 0
    write_tower(tmp_path / "base", 2)
    changed = hfcart("verify", "m")
    assert changed.returncode == 1 and "base is not the tower the recipe was made with" in changed.stderr


def test_a_recipe_may_name_each_adapters_base(hfcart: Run, tmp_path: Path) -> None:
    bases = [write_tower(tmp_path / f"b{i}", i) for i in (0, 5)]
    made = [write_adapter(tmp_path / f"a{i}", base, i + 1, target_modules=["fc2"]) for i, base in enumerate(bases)]
    (tmp_path / "two.yaml").write_text(
        "method: average\nsources: [{adapter: a0, base: b0}, {adapter: a1, base: b5}]\nout: m\n"
    )
    done = hfcart("merge", "--recipe", "two.yaml")
    assert done.returncode == 0, done.stderr
    expected = merged([unloaded(adapter) for adapter in made], tmp_path / "n", method="average")
    assert close(load_file(tmp_path / "m" / "model.safetensors"), expected)


def test_the_base_of_several_adapters_is_one_tower(tmp_path: Path) -> None:
    base = write_tower(tmp_path / "base", 0)
    made = [write_adapter(tmp_path / f"a{i}", base, i, target_modules=["q_proj"]) for i in (1, 2, 3)]
    towers = pin_all([str(adapter) for adapter in made], Progress(), str(base))
    assert len({id(tower.base) for tower in towers}) == 1
    assert [tower.label for tower in with_bases(towers)] == ["base", "a1", "a2", "a3"]


def test_an_adapted_tower_is_read_a_tensor_at_a_time(tmp_path: Path) -> None:
    """Reading holds the tensor and its update, and not a whole tower, however many adapters there are."""
    wide = {**TINY, "hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_hidden_layers": 8}
    base = write_tower(tmp_path / "base", 0, wide)
    made = [write_adapter(tmp_path / f"a{i}", base, i, target_modules="all-linear") for i in (1, 2)]
    towers = pin_all([str(adapter) for adapter in made], Progress(), str(base))
    read_headers(towers, tmp_path, Progress())
    fetch_all(towers, Progress(), stream=False)
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    size = 4 * 1024 * 256
    buffer = memoryview(bytearray(size))
    tracemalloc.start()
    try:
        for tower in towers:
            for each in tower.tensors:
                tower.read_into(each, buffer[: 4 * math.prod(tower.tensors[each].shape)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        for tower in with_bases(towers):
            tower.close()
    assert towers[0].tensors[name].shape == (1024, 256)
    assert peak < 2 * size < (base / "model.safetensors").stat().st_size / 10  # what Python holds: the stored bytes


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no base": ({"base_model_name_or_path": None}, "does not say of which model"),
    "a path": ({"base_model_name_or_path": "/srv/clip"}, "names '/srv/clip' as its base, which is no Hub repo"),
    "DoRA": ({"use_dora": True}, r"is DoRA \(use_dora in its adapter_config.json\)"),
    "another type": ({"peft_type": "IA3"}, "of the type 'IA3'; of these LORA can be read"),
    "AdaLoRA": ({"peft_type": "ADALORA"}, "of the type 'ADALORA'"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changes the base"),
    "activated": ({"alora_invocation_tokens": [1]}, "is activated LoRA"),
    "trainable tokens": ({"trainable_token_indices": [1]}, "an adapter with trainable tokens"),
    "replicated layers": ({"layer_replication": [[0, 1]]}, "layer_replication in its"),
    "bare parameters": ({"target_parameters": ["x"]}, "target_parameters in its"),
    "a field of tomorrow": ({"use_tomorrow": 1}, "'use_tomorrow' = 1, a field that this hfcart does not know"),
    "a text tower": ({"auto_mapping": {"base_model_class": "CLIPTextModel"}}, "is an adapter of a text tower"),
    "no rank": ({"r": 0}, "has r = 0, expected a whole number above 0"),
    "no alpha": ({"lora_alpha": "x"}, "has lora_alpha = 'x', expected a number"),
    "patterns that are none": ({"rank_pattern": [1]}, "rank_pattern that is no mapping"),
    "a broken pattern": ({"alpha_pattern": {"(": 1}}, r"the pattern '\(', which is no regular expression"),
    "a pattern that would fill the memory": (
        {"alpha_pattern": {"(?:(?:(?:a{9999}){9999}){9999})": 3}},
        "no regular expression that can be",
    ),
    "a pattern without end": ({"alpha_pattern": {"(.+?)" * 8 + "(?<=%)": 1}}, "no regular expression that can be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_by_its_name(case: str, tmp_path: Path) -> None:
    fields, said = REFUSED[case]
    base = write_tower(tmp_path / "base", 0)
    adapter = write_adapter(tmp_path / "lora", base, 1, target_modules=["q_proj"])
    change_config(adapter, **fields)
    given = {} if "base_model_name_or_path" in fields else {"base": str(base)}
    with pytest.raises(HfcartError, match=said) as error:
        hfcart_api.merge([str(adapter)], out=str(tmp_path / "m"), **given)
    assert error.value.hint and not (tmp_path / "m").exists()


FC1 = "base_model.model.encoder.layers.0.mlp.fc1"
CHANGES: dict[str, tuple[Any, tuple[str, str, str]]] = {
    "B is missing": (
        lambda t: {k: v for k, v in t.items() if k != f"{FC1}.lora_B.weight"},
        (f"{FC1}.lora_B.weight", "float [64, 4]", "missing"),
    ),
    "a tensor is left over": (
        lambda t: {**t, "base_model.model.head.weight": torch.ones(3)},
        ("base_model.model.head.weight", "no such tensor", "F32 [3]"),
    ),
    "a layer too many": (
        lambda t: {**t, FC1.replace("0", "9") + ".lora_A.weight": torch.ones(4, 32)},
        (FC1.replace("0", "9") + ".lora_A.weight", "no such tensor", "F32 [4, 32]"),
    ),
    "another width": (
        lambda t: {**t, f"{FC1}.lora_A.weight": torch.ones(4, 48)},
        (f"{FC1}.lora_A.weight", "float [4, 32]", "F32 [4, 48]"),
    ),
    "whole numbers": (
        lambda t: {**t, f"{FC1}.lora_A.weight": torch.ones(4, 32, dtype=torch.int8)},
        (f"{FC1}.lora_A.weight", "F32, F16 or BF16", "I8"),
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_tensors_that_do_not_fit_the_base_are_named(case: str, tmp_path: Path) -> None:
    change, row = CHANGES[case]
    base = write_tower(tmp_path / "base", 0)
    adapter = write_adapter(tmp_path / "lora", base, 1, target_modules=["fc1"])
    change_tensors(adapter, change)
    with pytest.raises(MismatchError, match="The LoRA adapter lora does not fit base, the base that it is") as error:
        hfcart_api.merge([str(adapter)], base=str(base), out=str(tmp_path / "m"))
    assert error.value.rows == [("lora", *row)]


def test_an_adapter_of_text_alone_or_with_magnitudes_is_said_to_be_one(tmp_path: Path) -> None:
    base = write_tower(tmp_path / "base", 0)
    adapter = write_adapter(tmp_path / "lora", base, 1, target_modules=["fc1"])
    change_tensors(
        adapter, lambda tensors: {name.replace(".encoder", ".text_model.encoder"): t for name, t in tensors.items()}
    )
    with pytest.raises(NotATowerError, match="changes nothing of a vision tower: it holds a text tower's tensors only"):
        hfcart_api.merge([str(adapter)], base=str(base), out=str(tmp_path / "m"))
    write_adapter(adapter, base, 1, target_modules=["fc1"])
    change_tensors(adapter, lambda tensors: {**tensors, f"{FC1}.lora_magnitude_vector": torch.ones(64)})
    with pytest.raises(NotATowerError, match="lora is DoRA: it holds"):
        hfcart_api.merge([str(adapter)], base=str(base), out=str(tmp_path / "m"))


def test_a_base_that_cannot_be_had_is_said_with_what_to_do(hub: EmbeddedHub, hfcart: Run, tmp_path: Path) -> None:
    base = write_tower(tmp_path / "base", 0)
    write_adapter(tmp_path / "lora", base, 1, target_modules=["q_proj"], named="user/gone")
    done = hfcart("merge", "lora", "--out", "m", hub=hub)
    assert done.returncode == 1
    assert "lora is a LoRA adapter of 'user/gone', which cannot be read. Resolving user/gone: there" in done.stderr
    assert "→ If you have that model in a folder, give it: --base FOLDER" in done.stderr
    done = hfcart("merge", "lora", "--base", "base", "--out", "m", hub=hub)
    assert done.returncode == 0 and "The base that was given is used." in done.stderr
    (tmp_path / "siglip").mkdir()
    put(hub, "user/siglip", ("", tmp_path / "siglip"))
    hub.commit("user/siglip", {"config.json": b'{"model_type": "siglip"}'})
    change_config(tmp_path / "lora", base_model_name_or_path="user/siglip")
    done = hfcart("merge", "lora", "--base", "base", "--out", "s", hub=hub)
    assert done.returncode == 1 and "user/siglip is not a CLIP tower: config.json says" in done.stderr
    change_config(tmp_path / "lora", base_model_name_or_path="user/adapter")
    put(hub, "user/adapter", ("", tmp_path / "lora"))
    done = hfcart("merge", "lora", "--out", "s", hub=hub)
    assert done.returncode == 1 and "user/adapter, the base of an adapter, is an adapter itself." in done.stderr


def test_no_folder_here_takes_the_place_of_the_repo_that_an_adapter_names(
    hub: EmbeddedHub, hfcart: Run, tmp_path: Path
) -> None:
    write_tower(tmp_path / "user" / "base", 7)
    base = write_tower(tmp_path / "base", 0)
    commit = put(hub, "user/base", ("", base))
    write_adapter(tmp_path / "lora", base, 1, target_modules=["q_proj"], named="user/base")
    done = hfcart("merge", "lora", "--out", "m", hub=hub)
    assert done.returncode == 0 and f"lora is a LoRA adapter of user/base at {commit[:12]}" in done.stderr


def test_an_adapter_without_its_config_or_its_weights_is_said_to_be_one(tmp_path: Path) -> None:
    base = write_tower(tmp_path / "base", 0)
    adapter = write_adapter(tmp_path / "lora", base, 1, target_modules=["q_proj"])
    (adapter / "adapter_config.json").rename(tmp_path / "kept.json")
    with pytest.raises(NotATowerError, match="lora holds LoRA's matrices and no adapter_config.json"):
        hfcart_api.merge([str(adapter)], base=str(base), out=str(tmp_path / "m"))
    (tmp_path / "kept.json").rename(adapter / "adapter_config.json")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(NotATowerError, match="lora is a LoRA adapter without weights: expected adapter_model.safe"):
        hfcart_api.merge([str(adapter)], base=str(base), out=str(tmp_path / "m"))


def test_a_stream_asks_for_the_base_once_for_all_its_adapters(hub: EmbeddedHub, hfcart: Run, tmp_path: Path) -> None:
    base = write_tower(tmp_path / "base", 0)
    put(hub, "user/base", ("", base))
    for i in (1, 2, 3):
        adapter = write_adapter(tmp_path / f"a{i}", base, i, target_modules=["q_proj", "v_proj"], named="user/base")
        put(hub, f"user/a{i}", ("", adapter))
    fields = ("--method", "average", "--stream", "--qkv", "fused", "--workers", "1")
    assert hfcart("merge", "user/a1", "user/a2", "user/a3", *fields, "--out", "m", hub=hub).returncode == 0
    file = LocalFile(base / "model.safetensors", "base/model.safetensors")
    stored = parse_header(file.read, file.size, file.where)
    file.close()
    asked = Counter(request.range for request in hub.requests if "/user/base/resolve/" in request.path)
    for spec in stored.values():  # those that no adapter changes, too
        assert asked[f"bytes={spec.start}-{spec.end - 1}"] == 1, asked
    found = load_file(tmp_path / "m" / "model.safetensors")
    whole = [unloaded(tmp_path / f"a{i}") for i in (1, 2, 3)]
    assert close(found, merged(whole, tmp_path / "n", method="average"))
