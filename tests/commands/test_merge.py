"""The merge as a whole, on real towers on disk: identities, parity, forms, dtypes, determinism, refusals."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from towers import TINY, config, shapes, weights, write_tower

import hfcart
from hfcart.errors import (
    CorruptFileError,
    DistantError,
    HfcartError,
    HfcartWarning,
    MismatchError,
    NonFiniteError,
    NotATowerError,
    OutputError,
    UsageError,
    VerifyError,
)
from hfcart.progress import Progress
from hfcart.recipes.finished_merge import read_record
from hfcart.report.merge_card import render_card
from hfcart.sources.stores import SMALL

MATRIX = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight")


class Listener(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def four(tmp_path: Path) -> list[Path]:
    return [write_tower(tmp_path / f"t{i}", i) for i in (1, 2, 3, 4)]


def merged(sources: list[Path], out: Path, **fields: object) -> dict[str, torch.Tensor]:
    hfcart.merge([str(s) for s in sources], out=str(out), **fields)
    return {k: v for path in sorted(out.glob("*.safetensors")) for k, v in load_file(path).items()}


def raw(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: t.contiguous().view(torch.uint8).numpy().tobytes() for name, t in tensors.items()}


def paper(thetas: list[dict[str, torch.Tensor]], rank: float | int, scale: float, *, fused: bool = False):
    """CART written again from the paper, in float64 NumPy; None where the cut is degenerate."""

    def svd_k(a: np.ndarray) -> tuple[np.ndarray, bool]:
        u, s, vt = np.linalg.svd(a, full_matrices=False)
        k = rank if isinstance(rank, int) else max(1, int(np.floor(rank * min(a.shape))))
        clear = k == len(s) or s[k - 1] - s[k] >= 1e-3 * s[0]
        return (u[:, :k] * s[:k]) @ vt[:k], clear

    def one(stack: np.ndarray, matrix: bool) -> tuple[np.ndarray, np.ndarray, bool]:
        mean = stack.mean(0)
        if not matrix:
            return mean, mean, True
        parts = [svd_k(theta - mean) for theta in stack]
        return mean + scale * sum(p for p, _ in parts), mean, all(clear for _, clear in parts)

    out = {}
    for name in thetas[0]:
        if fused and name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            names = [name.replace(name[-13:-12] + "_proj", f"{x}_proj") for x in "qkv"]
            stack = np.stack([np.concatenate([t[n].double().numpy() for n in names]) for t in thetas])
            rows = len(stack[0]) // 3
            at = "qkv".index(name[-13:-12]) * rows
            result = one(stack, True)
            out[name] = (result[0][at : at + rows], result[1][at : at + rows], result[2])
        else:
            out[name] = one(np.stack([t[name].double().numpy() for t in thetas]), name.endswith(MATRIX))
    return out


@pytest.mark.parametrize(("rank", "scale", "qkv"), [(0.08, 1.0, "split"), (3, 1.7, "split"), (0.25, 2.0, "fused")])
def test_parity_with_the_paper(four: list[Path], tmp_path: Path, rank: float | int, scale: float, qkv: str) -> None:
    found = merged(four, tmp_path / "m", rank=rank, scale=scale, qkv=qkv)
    expected = paper([weights(i) for i in (1, 2, 3, 4)], rank, scale, fused=qkv == "fused")
    assert set(found) == set(expected) == set(shapes())
    checked = 0
    for name, (value, mean, clear) in expected.items():
        update = np.linalg.norm(value - mean)
        error = np.linalg.norm(found[name].double().numpy() - value)
        if name.endswith(MATRIX):
            assert update > 1e-3  # the comparison means something
            if clear:
                assert error <= 1e-4 * update, name
                checked += 1
        else:
            assert error <= 1e-7 * np.linalg.norm(value)
    assert checked >= 8


def test_fused_and_split_differ(four: list[Path], tmp_path: Path) -> None:
    split, fused = merged(four, tmp_path / "s"), merged(four, tmp_path / "f", qkv="fused")
    name = "vision_model.encoder.layers.0.self_attn.{}.weight"
    assert not torch.equal(split[name.format("q_proj")], fused[name.format("q_proj")])
    assert torch.equal(split[name.format("out_proj")], fused[name.format("out_proj")])


def test_average_is_the_mean(four: list[Path], tmp_path: Path) -> None:
    found = merged(four, tmp_path / "m", method="average")
    for name, tensor in found.items():
        mean = torch.stack([weights(i)[name].double() for i in (1, 2, 3, 4)]).mean(0)
        assert torch.equal(tensor, mean.float())


def test_task_arithmetic(four: list[Path], tmp_path: Path) -> None:
    base = write_tower(tmp_path / "base", 0)
    found = merged(four, tmp_path / "m", method="task_arithmetic", base=str(base), scale=0.4)
    zero = weights(0)
    for name, tensor in found.items():
        start = zero[name].double()
        update = 0.4 * sum(weights(i)[name].double() - start for i in (1, 2, 3, 4))
        assert torch.linalg.norm(tensor.double() - start - update) <= 1e-4 * torch.linalg.norm(update)


def test_scale_zero_is_the_average_byte_for_byte(four: list[Path], tmp_path: Path) -> None:
    assert raw(merged(four, tmp_path / "z", scale=0)) == raw(merged(four, tmp_path / "a", method="average"))


@pytest.mark.parametrize("method", ["cart", "average"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_source_comes_back_byte_for_byte(tmp_path: Path, dtype: torch.dtype, method: str) -> None:
    tensors = {k: v.to(dtype) for k, v in weights(1).items()}
    tensors["vision_model.pre_layrnorm.bias"][:4] = torch.tensor([-0.0, 0.0, 1e-40, -6e-8])
    write_tower(tmp_path / "one", 1, dtype=dtype)
    save_file(tensors, tmp_path / "one" / "model.safetensors")
    assert raw(merged([tmp_path / "one"], tmp_path / "m", method=method)) == raw(tensors)


@pytest.mark.parametrize("scale", [1.0, 3.0, -2.0])
def test_full_rank_is_the_average(four: list[Path], tmp_path: Path, scale: float) -> None:
    found = merged(four, tmp_path / "m", rank=1.0, scale=scale)
    for name, tensor in found.items():
        mean = torch.stack([weights(i)[name].double() for i in (1, 2, 3, 4)]).mean(0)
        assert torch.linalg.norm(tensor.double() - mean) <= 1e-6 * torch.linalg.norm(mean), name


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), rank=st.sampled_from([0.1, 2, 0.5]), scale=st.floats(-2, 2))
def test_a_shift_of_all_sources_shifts_the_result(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rank: float | int, scale: float
) -> None:
    tmp = tmp_path_factory.mktemp("shift")
    generator = torch.Generator().manual_seed(seed)
    shift = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes().items()}
    for i in (1, 2, 3):
        write_tower(tmp / f"a{i}", i)
        write_tower(tmp / f"b{i}", i)
        # Shifted in float64 and stored as such sums of float32s: what is tested is the method, not rounding.
        save_file({k: v + shift[k] for k, v in weights(i).items()}, tmp / f"b{i}" / "model.safetensors")
    plain = merged([tmp / f"a{i}" for i in (1, 2, 3)], tmp / "a", rank=rank, scale=scale)
    moved = merged([tmp / f"b{i}" for i in (1, 2, 3)], tmp / "b", rank=rank, scale=scale)
    for name, tensor in plain.items():
        mean = torch.stack([weights(i)[name].double() for i in (1, 2, 3)]).mean(0)
        error = torch.linalg.norm(moved[name].double() - tensor.double() - shift[name].double())
        assert error <= 1e-6 * torch.linalg.norm(mean), name


def test_order_paths_and_workers_do_not_change_the_bytes(four: list[Path], tmp_path: Path) -> None:
    reference = raw(merged(four, tmp_path / "m1", workers=1))
    record = (tmp_path / "m1" / "hfcart.json").read_bytes()
    for workers, order in ((2, [3, 1, 0, 2]), (4, [2, 0, 3, 1])):
        out = tmp_path / f"m{workers}"
        assert raw(merged([four[i] for i in order], out, workers=workers)) == reference
        assert (out / "hfcart.json").read_bytes() == record
    elsewhere = tmp_path / "else"
    for i, source in enumerate(four):
        (elsewhere / f"{9 - i}").mkdir(parents=True)
        for file in source.iterdir():
            os.link(file, elsewhere / f"{9 - i}" / file.name)
    assert raw(merged(sorted(elsewhere.iterdir()), tmp_path / "m5")) == reference


def test_all_forms_and_dtypes_in_one_merge(tmp_path: Path) -> None:
    plain = [write_tower(tmp_path / f"p{i}", i) for i in (1, 2, 3, 4, 5)]
    mixed = [
        write_tower(tmp_path / "flat", 1, form="flat"),
        write_tower(tmp_path / "full", 2, form="full"),
        write_tower(tmp_path / "shards", 3, shards=3, form="flat"),
        write_tower(tmp_path / "fullshards", 4, shards=2, form="full"),
        tmp_path / "pickled",
    ]
    mixed[-1].mkdir()
    (mixed[-1] / "config.json").write_text(json.dumps(config()))
    torch.save(weights(5), mixed[-1] / "pytorch_model.bin")
    listener = Listener()
    hfcart.merge([str(s) for s in mixed], out=str(tmp_path / "m"), method="average", progress=listener)
    assert raw(load_file(tmp_path / "m" / "model.safetensors")) == raw(merged(plain, tmp_path / "a", method="average"))
    assert [n for n in listener.notes if n.startswith("pickled has no safetensors: pytorch_model.bin")]


@pytest.mark.parametrize(
    ("dtypes", "asked", "written"),
    [
        (["float16", "float16"], None, "float16"),
        (["bfloat16", "float16"], None, "float32"),
        (["bfloat16", "bfloat16"], None, "bfloat16"),
        (["float16", "float32"], None, "float32"),
        (["float32", "float32"], "bfloat16", "bfloat16"),
    ],
)
def test_output_dtype(tmp_path: Path, dtypes: list[str], asked: str | None, written: str) -> None:
    sources = [write_tower(tmp_path / f"s{i}", i + 1, dtype=getattr(torch, d)) for i, d in enumerate(dtypes)]
    found = merged(sources, tmp_path / "m", dtype=asked)
    assert {t.dtype for t in found.values()} == {getattr(torch, written)}
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == written


def test_projection_is_kept_only_on_request(tmp_path: Path) -> None:
    sources = [write_tower(tmp_path / f"s{i}", i, form="full") for i in (1, 2)]
    assert "visual_projection.weight" not in merged(sources, tmp_path / "without")
    found = merged(sources, tmp_path / "with", with_projection=True)
    mean = torch.stack([weights(i, projection=True)["visual_projection.weight"].double() for i in (1, 2)]).mean(0)
    assert torch.equal(found["visual_projection.weight"], mean.float())
    written = json.loads((tmp_path / "with" / "config.json").read_text())
    assert written["architectures"] == ["CLIPVisionModelWithProjection"]


def test_shards_and_their_index(four: list[Path], tmp_path: Path) -> None:
    whole = merged(four, tmp_path / "whole")
    parts = merged(four, tmp_path / "parts", max_shard_size="20KB")
    assert raw(parts) == raw(whole)
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    files = sorted(p.name for p in (tmp_path / "parts").glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    assert not (tmp_path / "parts" / "model.safetensors").exists()


def test_the_recipe_reproduces_the_bytes(four: list[Path], tmp_path: Path) -> None:
    first = merged(four, tmp_path / "m", rank=3, scale=1.3, qkv="fused", max_shard_size="30KB")
    fields = yaml.safe_load((tmp_path / "m" / "recipe.yaml").read_text())
    fields["sources"] = [{**s, "path": str(tmp_path / s["path"])} for s in fields["sources"]]
    again = hfcart.merge(**fields, out=str(tmp_path / "again"))
    assert raw({k: v for p in (tmp_path / "again").glob("*.safetensors") for k, v in load_file(p).items()}) == raw(
        first
    )
    for name in ("recipe.yaml", "hfcart.json", "config.json", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "m" / name).read_bytes()
    assert again.recipe == yaml.safe_load((tmp_path / "m" / "recipe.yaml").read_text())


def test_a_recorded_local_source_must_have_its_weights(four: list[Path], tmp_path: Path) -> None:
    with pytest.raises(HfcartError, match="t1 is not the tower the recipe was made with"):
        hfcart.merge([{"path": str(four[0]), "sha256": "0" * 64}], out=str(tmp_path / "m"))


def test_the_record_tells_rank_and_energy(four: list[Path], tmp_path: Path) -> None:
    record = hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"), rank=3)
    thetas = [weights(i) for i in (1, 2, 3, 4)]
    for tensor in record.tensors:
        if tensor.name.endswith(MATRIX):
            stack = np.stack([t[tensor.name].double().numpy() for t in thetas])
            spectra = [np.linalg.svd(a, compute_uv=False) ** 2 for a in stack - stack.mean(0)]
            assert tensor.energy == pytest.approx(np.mean([s[:3].sum() / s.sum() for s in spectra]), abs=2e-6)
            assert (tensor.rank, tensor.full_rank, tensor.rule) == (3, 32, "cart")
        else:
            assert (tensor.rank, tensor.full_rank, tensor.energy, tensor.rule) == (None, None, None, "average")
    flat = np.stack([np.concatenate([t[n].double().numpy().ravel() for n in shapes()]) for t in thetas])
    order = [[str(s.name) for s in four].index(source.label) for source in record.sources]
    centred = (flat - flat.mean(0))[order]
    norms = np.linalg.norm(centred, axis=1)
    assert record.similarity is not None
    assert np.allclose(record.similarity.cosine, centred @ centred.T / np.outer(norms, norms), atol=2e-6)
    assert np.allclose(record.similarity.distance, norms / np.linalg.norm(flat.mean(0)), rtol=1e-5)


def test_similarity_is_measured_from_the_base_if_there_is_one(four: list[Path], tmp_path: Path) -> None:
    base = write_tower(tmp_path / "base", 0)
    record = hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"), base=str(base))
    flat = np.stack([np.concatenate([weights(i)[n].double().numpy().ravel() for n in shapes()]) for i in range(5)])
    order = [[str(s.name) for s in four].index(source.label) for source in record.sources]
    taus = (flat[1:] - flat[0])[order]
    norms = np.linalg.norm(taus, axis=1)
    assert record.similarity is not None and record.similarity.centred_on == "base"
    assert np.allclose(record.similarity.cosine, taus @ taus.T / np.outer(norms, norms), atol=2e-6)
    assert np.allclose(record.similarity.distance, norms / np.linalg.norm(flat[0]), rtol=1e-5)


def test_nothing_of_this_machine_is_in_the_output(four: list[Path], tmp_path: Path) -> None:
    hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"))
    for path in (tmp_path / "m").rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path.name


# Refusals


def test_every_difference_is_in_one_table(tmp_path: Path) -> None:
    good = [write_tower(tmp_path / f"g{i}", i) for i in (1, 2)]
    heads = write_tower(tmp_path / "heads", 3, {**TINY, "num_attention_heads": 4})
    missing, extra, shape, integer = (write_tower(tmp_path / n, 4) for n in ("missing", "extra", "shape", "integer"))
    norm, fc1 = "vision_model.post_layernorm.bias", "vision_model.encoder.layers.{}.mlp.fc1.weight"
    tensors = weights(4)
    save_file({k: v for k, v in tensors.items() if k != norm}, missing / "model.safetensors")
    save_file({**tensors, "vision_model.adapter": torch.zeros(3)}, extra / "model.safetensors")
    wrong = {fc1.format(i): torch.zeros(64, 16) for i in (0, 1)}
    save_file({**tensors, **wrong}, shape / "model.safetensors")
    save_file({**tensors, norm: torch.zeros(32, dtype=torch.int32)}, integer / "model.safetensors")
    sources = [*good, heads, missing, extra, shape, integer]
    with pytest.raises(MismatchError) as caught:
        hfcart.merge([str(s) for s in sources], out=str(tmp_path / "m"))
    assert sorted(caught.value.rows) == [
        ("extra", "vision_model.adapter", "no such tensor", "F32 [3]"),
        ("heads", "config.json: num_attention_heads", "2", "4"),
        ("integer", norm, "F32, F16 or BF16", "I32"),
        ("missing", norm, "float [32]", "missing"),
        ("shape", fc1.format("{0-1}"), "float [64, 32]", "F32 [64, 16]"),
    ]
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_act", "gelu"), ("layer_norm_eps", 1e-6), ("image_size", 24), ("num_hidden_layers", 3)]
)
def test_configs_must_agree_where_shapes_do_not_tell(tmp_path: Path, field: str, value: object) -> None:
    sources = [write_tower(tmp_path / f"g{i}", i) for i in (1, 2)]
    odd = write_tower(tmp_path / "odd", 3, {**TINY, field: value})
    with pytest.raises(MismatchError) as caught:
        hfcart.merge([str(s) for s in (*sources, odd)], out=str(tmp_path / "m"))
    assert ("odd", f"config.json: {field}", str(TINY[field]), str(value)) in caught.value.rows


def test_a_base_must_fit_too(four: list[Path], tmp_path: Path) -> None:
    base = write_tower(tmp_path / "base", 0, {**TINY, "hidden_act": "gelu"})
    with pytest.raises(MismatchError) as caught:
        hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"), base=str(base))
    assert caught.value.rows == [("base (base)", "config.json: hidden_act", "quick_gelu", "gelu")]


def test_towers_of_another_ancestor(four: list[Path], tmp_path: Path) -> None:
    stranger = write_tower(tmp_path / "stranger", 5)
    save_file({k: torch.randn(v.shape) for k, v in weights(5).items()}, stranger / "model.safetensors")
    sources = [str(s) for s in (*four, stranger)]
    with pytest.raises(DistantError, match=r"ancestor: stranger \(\d\.\d\d\), .* lie further than 0\.5.* their mean"):
        hfcart.merge(sources, out=str(tmp_path / "m"))
    base = write_tower(tmp_path / "base", 0)
    with pytest.raises(DistantError, match="from base"):
        hfcart.merge(sources, out=str(tmp_path / "n"), base=str(base))
    listener = Listener()
    hfcart.merge(sources, out=str(tmp_path / "m"), allow_distant=True, progress=listener)
    assert any(note.startswith("Resuming: 39 of 39") for note in listener.notes)  # no work was lost
    assert (tmp_path / "m" / "model.safetensors").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_stop_the_merge(four: list[Path], tmp_path: Path, value: float) -> None:
    name = "vision_model.encoder.layers.1.mlp.fc2.weight"
    tensors = weights(2)
    tensors[name][3, 5] = value
    save_file(tensors, four[1] / "model.safetensors")
    with pytest.raises(NonFiniteError, match=rf"t2: tensor {name} holds NaN or Inf \(1 of 2,048 values\)"):
        hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def test_values_beyond_float32_sums_are_no_nan(tmp_path: Path) -> None:
    sources = [write_tower(tmp_path / f"s{i}", i) for i in (1, 2)]
    for i, source in enumerate(sources):
        tensors = weights(i + 1)
        tensors["vision_model.pre_layrnorm.weight"][:] = 3e38
        save_file(tensors, source / "model.safetensors")
    found = merged(sources, tmp_path / "m")
    assert bool((found["vision_model.pre_layrnorm.weight"] == 3e38).all())


def test_overflow_of_the_output_dtype_is_named(four: list[Path], tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="beyond what float16 holds"):
        hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"), dtype="float16", scale=1e7)


@pytest.mark.parametrize(
    ("rank", "message"), [(0, "at least 1"), (-3, "at least 1"), (1.5, "fraction"), (33, "32 singular directions")]
)
def test_rank_out_of_range(four: list[Path], tmp_path: Path, rank: float | int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"), rank=rank)


def test_a_device_that_is_not_there(four: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no device cuda:99"):
        hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"), device="cuda:99")


def test_one_source_and_the_same_twice_are_warned_of(four: list[Path], tmp_path: Path) -> None:
    listener = Listener()
    hfcart.merge([str(four[0])], out=str(tmp_path / "one"), progress=listener)
    assert listener.warnings == ["Only one source: the result is t1 again under most methods."]
    copy = write_tower(tmp_path / "copy", 1)
    listener = Listener()
    hfcart.merge([str(four[0]), str(copy), str(four[1])], out=str(tmp_path / "copies"), progress=listener)
    assert listener.warnings == ["copy and t1 hold the same weights: they count twice in the merge."]
    listener = Listener()
    hfcart.merge([str(s) for s in four[:2]], out=str(tmp_path / "two"), progress=listener)
    assert listener.warnings == [
        "cart gives 2 sources their plain average, whatever its parameters: it takes 3 or more."
    ]


def test_python_is_warned_where_it_called(four: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (four[0] / "README.md").write_text("x" * (SMALL + 1))
    with pytest.warns(HfcartWarning) as caught:
        hfcart.merge(four[:2], out=tmp_path / "m")
    texts = sorted(str(warning.message) for warning in caught)
    # The second comes from a thread that reads sources, on whose stack no caller is to be seen.
    assert [text[:20] for text in texts] == ["cart gives 2 sources", "t1/README.md is too l"[:20]]
    assert {warning.filename for warning in caught} == {__file__} and len({w.lineno for w in caught}) == 1
    listener = Listener()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hfcart.merge(four[:2], out=tmp_path / "again", progress=listener)  # it is told instead
        assert sorted(listener.warnings) == texts
        with pytest.raises(HfcartWarning, match="plain average"):
            hfcart.merge(four[1:3], out=tmp_path / "strict")
    assert capfd.readouterr() == ("", "")


def test_pickles_with_code_are_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "pwned"),))

    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config()))
    torch.save({"a": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(CorruptFileError, match=r"evil/pytorch_model.bin cannot be loaded as plain weights"):
        hfcart.merge([str(folder)], out=str(tmp_path / "m"))
    torch.save([1, 2], folder / "pytorch_model.bin")
    with pytest.raises(CorruptFileError, match="not a state dict"):
        hfcart.merge([str(folder)], out=str(tmp_path / "m"))
    assert not (tmp_path / "pwned").exists()


def test_a_name_stored_twice_in_two_forms(tmp_path: Path) -> None:
    folder = write_tower(tmp_path / "twice", 1)
    tensors = weights(1)
    save_file({**tensors, "pre_layrnorm.bias": torch.zeros(32)}, folder / "model.safetensors")
    with pytest.raises(CorruptFileError, match="holds vision_model.pre_layrnorm.bias twice"):
        hfcart.merge([str(folder)], out=str(tmp_path / "m"))


def test_a_folder_that_is_no_tower(tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    folder.mkdir()
    with pytest.raises(NotATowerError, match="bert holds no config.json"):
        hfcart.merge([str(folder)], out=str(tmp_path / "m"))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(NotATowerError, match="model_type 'bert'"):
        hfcart.merge([str(folder)], out=str(tmp_path / "m"))
    (folder / "config.json").write_text(json.dumps(config()))
    with pytest.raises(NotATowerError, match="bert holds no weights"):
        hfcart.merge([str(folder)], out=str(tmp_path / "m"))
    (folder / "config.json").write_text('{"model_type": "clip", "model_type": "clip"}')
    with pytest.raises(CorruptFileError, match="occurs twice"):
        hfcart.merge([str(folder)], out=str(tmp_path / "m"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_size", -1), ("hidden_size", 33), ("num_hidden_layers", 10**9), ("hidden_act", ["x"]), ("patch_size", 0.5),
     ("layer_norm_eps", "1"), ("image_size", True), ("patch_size", 17)],
)  # fmt: skip
def test_hostile_configs(tmp_path: Path, field: str, value: object) -> None:
    folder = write_tower(tmp_path / "odd", 1)
    (folder / "config.json").write_text(json.dumps({**config(), field: value}))
    with pytest.raises(NotATowerError, match="odd: config.json has"):
        hfcart.merge([str(folder)], out=str(tmp_path / "m"))


def test_a_truncated_body(four: list[Path], tmp_path: Path) -> None:
    path = four[2] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptFileError, match=r"t3/model.safetensors is not a valid .*cut short"):
        hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"))


def test_a_two_gigabyte_header(four: list[Path], tmp_path: Path) -> None:
    (four[0] / "model.safetensors").write_bytes(struct.pack("<Q", 2_000_000_000) + b"{}")
    with pytest.raises(CorruptFileError, match="claims 2,000,000,000 bytes"):
        hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"))


def test_a_base_is_needed_and_unknown(four: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs the base model"):
        hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"), method="task_arithmetic")


def test_the_output_is_not_replaced_unasked(four: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "m"
    merged(four, out)
    (out / "stale.txt").write_text("from before")
    with pytest.raises(OutputError, match="exists already"):
        merged(four, out)
    before = raw(load_file(out / "model.safetensors"))
    with pytest.raises(NonFiniteError):  # a failing merge leaves the old one as it was
        merged(four, out, overwrite=True, dtype="float16", scale=1e7)
    assert raw(load_file(out / "model.safetensors")) == before and (out / "stale.txt").exists()
    merged(four, out, overwrite=True, rank=3, max_shard_size="20KB")
    assert not (out / "stale.txt").exists() and not (out / "model.safetensors").exists()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("m")) == ["m"]


def test_overwrite_spares_what_is_no_model(four: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter1.tex").write_text("years of work")
    with pytest.raises(OutputError, match="not a folder that hfcart made"):
        merged(four, out, overwrite=True)
    assert (out / "chapter1.tex").exists()


def test_another_merge_in_the_partial_folder(four: list[Path], tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        merged(four, tmp_path / "m", dtype="float16", scale=1e7)
    with pytest.raises(OutputError, match="unfinished work with other"):
        merged(four, tmp_path / "m")
    merged(four, tmp_path / "m", overwrite=True)
    assert raw(load_file(tmp_path / "m" / "model.safetensors")) == raw(merged(four, tmp_path / "n"))


def test_torch_threads_of_the_caller_are_left_alone(four: list[Path], tmp_path: Path) -> None:
    torch.set_num_threads(2)
    try:
        merged(four, tmp_path / "m")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_the_output_cannot_replace_a_source(four: list[Path], tmp_path: Path) -> None:
    merged(four[:2], tmp_path / "old")
    before = raw(load_file(tmp_path / "old" / "model.safetensors"))
    with pytest.raises(OutputError, match="old would replace the source old"):
        merged([tmp_path / "old", four[2]], tmp_path / "old", overwrite=True)
    (tmp_path / "old" / "inside").mkdir()
    inside = write_tower(tmp_path / "old" / "inside" / "t", 7)
    with pytest.raises(OutputError, match="old would replace the source t"):
        merged([inside, four[2]], tmp_path / "old", overwrite=True)
    assert raw(load_file(tmp_path / "old" / "model.safetensors")) == before


def test_a_partial_folder_of_somebody_else_is_left_alone(four: list[Path], tmp_path: Path) -> None:
    (tmp_path / "m.partial").mkdir()
    (tmp_path / "m.partial" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="m.partial is in the way"):
        merged(four, tmp_path / "m")
    (tmp_path / "n.partial").symlink_to(tmp_path / "m.partial")
    with pytest.raises(OutputError, match="n.partial is in the way"):
        merged(four, tmp_path / "n")
    assert (tmp_path / "m.partial" / "notes.txt").read_text() == "mine"


def test_an_early_failure_leaves_no_litter(four: list[Path], tmp_path: Path) -> None:
    with pytest.raises(HfcartError):
        merged([four[0], tmp_path / "nowhere"], tmp_path / "m")
    assert not list(tmp_path.glob("m*"))


@pytest.mark.parametrize("out", [".", "..", "a/..", "", "x\0y", "m.partial", "n" * 300])
def test_outputs_that_are_no_folder(four: list[Path], out: str) -> None:
    with pytest.raises(UsageError, match="out: "):
        hfcart.merge([str(s) for s in four], out=out)


@pytest.mark.parametrize("source", ["~nobody-here/x", "n" * 300, "a\0b", "https://huggingface.co/user/name", "nosuch"])
def test_sources_that_are_neither_folder_nor_repo(tmp_path: Path, source: str) -> None:
    with pytest.raises(HfcartError, match="There is no folder|is an address"):
        hfcart.merge([source], out=str(tmp_path / "m"))


def test_a_file_is_no_source(four: list[Path], tmp_path: Path) -> None:
    with pytest.raises(HfcartError, match=r"model.safetensors is a file") as caught:
        hfcart.merge([four[0] / "model.safetensors"], out=tmp_path / "m")
    assert str(four[0]) in (caught.value.hint or "")


def test_one_source_must_be_in_a_list(four: list[Path]) -> None:
    with pytest.raises(TypeError, match="give a list"):
        hfcart.merge(str(four[0]))


def test_sources_of_one_name_are_warned_of(tmp_path: Path) -> None:
    sources = [write_tower(tmp_path / f"run{i}" / "tower", i) for i in (1, 2)]
    listener = Listener()
    hfcart.merge(sources, out=tmp_path / "m", progress=listener)
    assert [w for w in listener.warnings if w.startswith("2 local sources are called tower")]


def test_the_record_tells_the_card_word_for_word(four: list[Path], tmp_path: Path) -> None:
    hfcart.merge(four, out=tmp_path / "m", rank=3)
    record = read_record((tmp_path / "m" / "hfcart.json").read_bytes(), "m")
    assert render_card(record) == (tmp_path / "m" / "README.md").read_text()


@pytest.mark.parametrize("cut", [1, 40, 300, 2000])
def test_a_pickle_cut_short(tmp_path: Path, cut: int) -> None:
    folder = tmp_path / "cut"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config()))
    torch.save(weights(1), folder / "pytorch_model.bin")
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(data[:-cut])
    with pytest.raises(CorruptFileError, match="cut/pytorch_model.bin cannot be loaded"):
        hfcart.merge([folder], out=tmp_path / "m")


def test_two_sources_with_one_pickle(tmp_path: Path) -> None:
    for name in "abcdef":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config()))
        torch.save(weights(1), tmp_path / name / "pytorch_model.bin")
    found = merged([tmp_path / name for name in "abcdef"], tmp_path / "m")
    assert raw(found) == raw(weights(1))


@pytest.mark.parametrize("change", ["ghost", "elsewhere", "missing"])
def test_an_index_must_fit_its_shards(tmp_path: Path, change: str) -> None:
    folder = write_tower(tmp_path / "s", 1, shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = sorted(index["weight_map"])[0]
    if change == "ghost":
        index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    elif change == "elsewhere":
        index["weight_map"][name] = "model-00002-of-00002.safetensors"
    else:
        del index["weight_map"][name]
    path.write_text(json.dumps(index))
    with pytest.raises(CorruptFileError, match="does not fit its shards"):
        hfcart.merge([folder], out=tmp_path / "m")


def test_what_is_read_back_must_be_what_was_written(four: list[Path], tmp_path: Path) -> None:
    class Corrupt(Progress):
        """A disk that loses a byte between the writing and the reading back."""

        def step(self, text: str) -> None:
            if text == "Reading the output back":
                with (tmp_path / "m.partial" / "model.safetensors").open("r+b") as file:
                    file.seek(-5, os.SEEK_END)
                    file.write(b"\xff")

    with pytest.raises(VerifyError, match="reads back different from what was written"):
        hfcart.merge(four, out=tmp_path / "m", progress=Corrupt())
    assert not (tmp_path / "m").exists()
    hfcart.merge(four, out=tmp_path / "m")  # the group's digest no longer fits: it is merged again
    assert raw(load_file(tmp_path / "m" / "model.safetensors")) == raw(merged(four, tmp_path / "n"))


# Memory


def test_no_file_is_ever_mapped(four: list[Path], tmp_path: Path) -> None:
    """Mapped pages count as resident memory, and would grow with the files."""
    mapped: list[str] = []

    class Watch(Progress):
        def advance(self, amount: int) -> None:
            mapped.extend(line for line in Path("/proc/self/maps").read_text().splitlines() if "safetensors" in line)

    hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"), progress=Watch())
    assert not [line for line in mapped if not line.endswith(".so")]


def test_memory_does_not_grow_with_the_model(tmp_path: Path, clean_env: dict[str, str]) -> None:
    """Six times the layers, so 190 MB more of sources and 60 MB more of output: the same peak."""
    peaks = []
    for layers in (4, 24):
        folder = tmp_path / str(layers)
        sizes = {**TINY, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": layers}
        sources = [str(write_tower(folder / f"t{i}", i, sizes)) for i in (1, 2, 3)]
        command = [sys.executable, "-m", "hfcart", "merge", *sources, "--out", str(folder / "m"), "--quiet"]
        process = subprocess.Popen([sys.executable, "-c", WAIT, *command], env=clean_env, stdout=subprocess.PIPE)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        peaks.append(int(out.split()[-1]) * 1024)
        shutil.rmtree(folder)
    assert peaks[1] - peaks[0] < 30e6, peaks


# Run a command from a small process: its peak must not start from what this one takes.
WAIT = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
