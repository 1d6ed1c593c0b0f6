"""LoRA adapters as sources: what peft makes of them, tensor by tensor, with the base pinned beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import as_pickle, unloaded, write_adapter
from clips import write_clip
from merging import merged
from running import Run
from towers import write_tower

from hfcart.demo.embedded_hub.hub import EmbeddedHub

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


def test_an_adapter_inside_a_towers_folder_is_of_that_tower(tmp_path: Path) -> None:
    base = write_tower(tmp_path / "merged", 0)
    adapter = write_adapter(base / "adapters" / "cars", base, 1, target_modules=["q_proj"])
    found = merged([adapter], tmp_path / "m", method="average")
    assert close(found, merged([unloaded(adapter)], tmp_path / "n", method="average"))
