"""Adapters beside a tower: what tower + adapter is, that peft loads them, and that nothing else of a merge changes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from clips import write_clip
from merging import MATRIX, merged, raw
from running import COMPAT, HELPERS, ended
from safetensors.torch import load_file
from towers import TINY, weights, write_tower

import hfcart
from hfcart.errors import UsageError
from hfcart.recipes.finished_merge import read_record
from hfcart.records.adapters import is_adapter_name

ROOT = "base_model.model."
# Rounding to the output's dtype, of a number and relative to it.
UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
NAMES = ("cars", "dogs", "birds")


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [write_tower(tmp_path / f"clip-{name}", i + 1) for i, name in enumerate(NAMES)]


def adapter(out: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(out / "adapters" / name / "adapter_model.safetensors")


def module(name: str) -> str:
    return ROOT + name.removeprefix("vision_model.").removesuffix(".weight")


def check_matrix(a: torch.Tensor, found: torch.Tensor, k: int, unit: float) -> None:
    """Whether `found` is SVD_k(a) within the solver's contract and what rounding two factors does; all in float64."""
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    best = (u[:, :k] * s[:k]) @ vh[:k]
    whole = torch.linalg.norm(a)
    error, least = torch.linalg.norm(a - found), torch.linalg.norm(a - best)
    rounding = 4 * unit * whole
    assert error <= (1 + 1e-6) * least + 2e-6 * whole + rounding
    if k == len(s) or s[k - 1] - s[k] >= 1e-3 * s[0]:
        assert torch.linalg.norm(found - best) <= 1e-5 * whole + 4 * rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rank", "k"), [(0.25, 8), (3, 3), (1.0, 32)])
def test_tower_and_adapter_are_equation_5(
    three: list[Path], tmp_path: Path, rank: float | int, k: int, dtype: torch.dtype
) -> None:
    out = tmp_path / "m"
    tower = merged(three, out, adapters=rank, dtype=str(dtype).removeprefix("torch."))
    assert raw(tower) == raw(merged(three, tmp_path / "plain", method="average", dtype=str(dtype)[6:]))
    for i, name in enumerate(NAMES):
        found, source = adapter(out, f"clip-{name}"), weights(i + 1)
        assert {tensor.dtype for tensor in found.values()} == {dtype}
        for tensor, theta in source.items():
            if tensor.endswith(MATRIX):
                left, right = (found.pop(f"{module(tensor)}.lora_{side}.weight").double() for side in "BA")
                assert (left.shape[1], right.shape[0]) == (k, k)
                check_matrix(theta.double() - tower[tensor].double(), left @ right, k, UNIT[dtype])
            elif tensor.removesuffix("bias").endswith(tuple(m.removesuffix("weight") for m in MATRIX)):
                delta = found.pop(f"{ROOT}{tensor.removeprefix('vision_model.').removesuffix('.bias')}.lora_B.bias")
                assert torch.equal(delta, (theta - tower[tensor].float()).to(dtype))
            else:
                own = found.pop(ROOT + tensor.removeprefix("vision_model."))
                assert torch.equal(own, theta.to(dtype))
        assert not found


def test_matrices_alone_are_equation_5_as_printed(three: list[Path], tmp_path: Path) -> None:
    hfcart.merge(list(map(str, three)), out=str(tmp_path / "m"), adapters=0.25, adapters_carry="matrices")
    found = adapter(tmp_path / "m", "clip-cars")
    assert sorted(found) == sorted(
        f"{module(n)}.lora_{s}.weight" for n in weights(1) if n.endswith(MATRIX) for s in "AB"
    )
    config = json.loads((tmp_path / "m/adapters/clip-cars/adapter_config.json").read_text())
    assert config["modules_to_save"] is None and config["lora_bias"] is False


def test_fused_matrices_share_their_right_factor(three: list[Path], tmp_path: Path) -> None:
    tower = merged(three, tmp_path / "m", adapters=5, qkv="fused")
    name = "vision_model.encoder.layers.1.self_attn.{}_proj.weight"
    found = adapter(tmp_path / "m", "clip-dogs")
    pairs = [[found[f"{module(name.format(x))}.lora_{side}.weight"].double() for side in "BA"] for x in "qkv"]
    assert all(torch.equal(right, pairs[0][1]) for _, right in pairs)
    stacked = torch.cat([weights(2)[name.format(x)].double() - tower[name.format(x)].double() for x in "qkv"])
    check_matrix(stacked, torch.cat([left @ right for left, right in pairs]), 5, UNIT[torch.float32])


def test_with_a_method_the_rest_is_that_of_its_own_tower(three: list[Path], tmp_path: Path) -> None:
    fields = {"method": "cart", "rank": 0.25, "scale": 1.5}
    tower = merged(three, tmp_path / "m", adapters=1.0, **fields)
    assert raw(tower) == raw(merged(three, tmp_path / "plain", **fields))
    found = adapter(tmp_path / "m", "clip-birds")
    for name, theta in weights(3).items():
        if name.endswith(MATRIX):
            left, right = (found[f"{module(name)}.lora_{side}.weight"].double() for side in "BA")
            difference = theta.double() - tower[name].double()
            assert torch.linalg.norm(difference - left @ right) <= 1e-5 * torch.linalg.norm(difference)


@pytest.mark.parametrize("method", ["average", "slerp"])
def test_a_source_that_is_the_tower_has_nothing_of_its_own(tmp_path: Path, method: str) -> None:
    sources = [str(write_tower(tmp_path / f"t{i}", 1)) for i in (1, 2)]
    fields = {"method": method} if method == "average" else {"method": method, "base": sources[0]}
    record = hfcart.merge(sources, out=str(tmp_path / "m"), adapters=2, **fields)
    assert [each.energy for each in record.adapters] == [1.0, 1.0]
    found = adapter(tmp_path / "m", "t1")
    assert not any(tensor.any() for name, tensor in found.items() if ".lora_" in name)


def test_order_and_workers_change_no_byte(three: list[Path], tmp_path: Path) -> None:
    def everything(out: Path) -> dict[str, bytes]:
        return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}

    hfcart.merge(list(map(str, three)), out=str(tmp_path / "m1"), adapters=0.25, workers=1)
    reference = everything(tmp_path / "m1")
    for workers, order in ((2, [2, 0, 1]), (3, [1, 2, 0])):
        out = tmp_path / f"m{workers}"
        hfcart.merge([str(three[i]) for i in order], out=str(out), adapters=0.25, workers=workers)
        assert everything(out) == reference


def test_the_record_says_what_each_adapter_is(three: list[Path], tmp_path: Path) -> None:
    hfcart.merge(list(map(str, three)), out=str(tmp_path / "m"), adapters=0.25)
    record = read_record((tmp_path / "m/hfcart.json").read_bytes(), "m")
    assert record.method.name == "average" and record.recipe["adapters"] == 0.25
    assert [each.source for each in record.adapters] == [source.label for source in record.sources]
    for each in record.adapters:
        found = adapter(tmp_path / "m", each.name)
        path = tmp_path / "m/adapters" / each.name / "adapter_model.safetensors"
        assert (each.name, each.rank, each.size) == (each.source, 8, path.stat().st_size)
        assert each.parameters == sum(tensor.numel() for tensor in found.values())
        tower, source = load_file(tmp_path / "m/model.safetensors"), weights(NAMES.index(each.name[5:]) + 1)
        kept = total = 0.0
        for name, theta in source.items():
            if name.endswith(MATRIX):
                s = torch.linalg.svdvals(theta.double() - tower[name].double()).square()
                kept, total = kept + float(s[:8].sum()), total + float(s.sum())
        assert 0.5 < each.energy < 1 and each.energy == pytest.approx(kept / total, abs=1e-5)


@pytest.mark.parametrize("form", ["CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel"])
@pytest.mark.parametrize("release", ["5.", "4.57."])
def test_peft_loads_switches_and_merges_them(
    tmp_path: Path, clean_env: dict[str, str], form: str, release: str
) -> None:
    fields = {"with_projection": True} if form.endswith("Projection") else {}
    sources = [str(write_tower(tmp_path / f"clip-{n}", i + 1, projection=bool(fields))) for i, n in enumerate(NAMES)]
    if form == "CLIPModel":
        fields = {"full_clip": True, "base": str(write_clip(tmp_path / "base", 0)), "allow_distant": True}
    record = hfcart.merge(sources, out=str(tmp_path / "m"), adapters=1.0, **fields)
    assert record.model_class == form
    path = f"{COMPAT}{os.pathsep}" if release == "4.57." else ""
    env = {**clean_env, "PYTHONPATH": path + clean_env["PYTHONPATH"], "HF_HUB_OFFLINE": "1"}
    done = ended(
        [sys.executable, str(HELPERS / "adapted.py"), str(tmp_path / "m"), *sources],
        warm=True, cwd=tmp_path, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["release"].startswith(release) and found["wrong_keys"] == []
    assert set(found["outputs"]) == {f"clip-{name}" for name in NAMES}
    assert all(error < 1e-5 for error in found["outputs"].values())
    for each in found["merged"].values():
        assert not each["missing"] and len(each["differs"]) >= len(weights(1))
        assert all(error < 1e-7 for error in each["differs"].values())
        kept = [name for name in each["differs"] if "norm" in name or "embedding" in name or "projection" in name]
        assert len(kept) > 8 and not any(each["differs"][name] for name in kept)  # the very bits


def test_ranks_that_differ_are_told_to_peft(tmp_path: Path) -> None:
    flat = {**TINY, "intermediate_size": 16}
    sources = [str(write_tower(tmp_path / f"t{i}", i, flat)) for i in (1, 2)]
    hfcart.merge(sources, out=str(tmp_path / "m"), adapters=0.5)
    config = json.loads((tmp_path / "m/adapters/t1/adapter_config.json").read_text())
    pattern = {f"encoder.layers.{i}.mlp.{fc}": 8 for i in (0, 1) for fc in ("fc1", "fc2")}
    assert (config["r"], config["lora_alpha"]) == (16, 16)
    assert config["rank_pattern"] == config["alpha_pattern"] == pattern


@pytest.mark.parametrize("rank", [0.0, 1.5, 0, 33, "many"])
def test_a_rank_that_none_has_is_a_sentence(three: list[Path], tmp_path: Path, rank: object) -> None:
    with pytest.raises(UsageError, match="adapters"):
        hfcart.merge(list(map(str, three)), out=str(tmp_path / "m"), adapters=rank)
    with pytest.raises(UsageError, match="give adapters too"):
        hfcart.merge(list(map(str, three)), out=str(tmp_path / "m"), adapters_carry="matrices")


def test_names_that_peft_cannot_keep_are_no_adapter_s() -> None:
    taken = [name for name in dir(torch.nn.ModuleDict()) if name[0].isalnum() and name.islower()]
    assert len(taken) > 40 and not [name for name in taken if is_adapter_name(name)]
    assert not any(map(is_adapter_name, ["", "..", "a/b", "a.b", "Cars", "-a", "a" * 80, "a b", "a\n", "é"]))
    assert all(map(is_adapter_name, ["cars", "clip-cars", "oxford_flowers102", "4"]))
