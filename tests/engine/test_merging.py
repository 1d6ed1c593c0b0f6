"""What a merge computes: parity with the paper, identities, the same bytes in any order, and what is measured."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from merging import MATRIX, Listener, merged, raw
from safetensors.torch import save_file
from towers import shapes, weights, write_tower

import hfcart
from hfcart.errors import DistantError


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


def test_torch_threads_of_the_caller_are_left_alone(four: list[Path], tmp_path: Path) -> None:
    torch.set_num_threads(2)
    try:
        merged(four, tmp_path / "m")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
