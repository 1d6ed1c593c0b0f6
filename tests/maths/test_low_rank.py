"""The contract of truncated_svd, for every solver and every kind of matrix, against float64 LAPACK."""

from __future__ import annotations

import functools
import itertools
import logging
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from spectra import FAMILIES, SQUARE, TALL, WIDE, errors, matrix, reference, spectrum
from threadpoolctl import threadpool_info, threadpool_limits

from hfcart.maths import low_rank as linalg
from hfcart.maths.low_rank import SOLVERS, LowRank, default_solver, rank_of, truncated_svd
from hfcart.system.device import one_blas_thread

GRAM_SOLVERS = ("gram-lapack", "gram-torch")


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_contract_holds(family, solver):
    for (m, n), k in itertools.product((TALL, WIDE, SQUARE), (1, 13, 45, 159, 160)):
        a, svd = matrix(family, m, n), reference(family, m, n)
        low = truncated_svd(a, k, solver=solver)
        assert max(errors(a, k, low, svd)) <= 1, f"{m} × {n}, k = {k}: {errors(a, k, low, svd)}"
        energies = svd[1].square()
        expected = float(energies[:k].sum() / energies.sum()) if family != "zero" else 1.0
        assert low.energy == pytest.approx(expected, abs=1e-6) and low.energy <= 1
        assert (low.solver, low.fallback) == (solver, False)
        thin = low.right if m >= n else low.left
        if family != "zero":
            assert (thin.double().T @ thin.double() - torch.eye(k)).norm() < 1e-6


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 5), (64, 40), (128, 300), (129, 129)])
def test_the_contract_holds_at_every_size(shape):
    for solver, k in itertools.product(SOLVERS, {1, min(shape)}):
        a = matrix("random", *shape)
        assert max(errors(a, k, truncated_svd(a, k, solver=solver))) <= 1


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("scale", [1e-25, 1e20])
def test_scale_does_not_matter(solver, scale):
    for family in FAMILIES:
        a = matrix(family, *TALL) * scale
        low = truncated_svd(a, 13, solver=solver)
        assert max(errors(a, 13, low)) <= 1
        assert low.energy == pytest.approx(truncated_svd(matrix(family, *TALL), 13, solver=solver).energy, abs=1e-6)


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_a_matrix_may_be_worked_on_in_its_own_memory(shape):
    a = matrix("low rank + noise", *shape)
    for solver in (*SOLVERS, not_converging):
        mine = a.clone()
        expected, found = truncated_svd(a, 13, solver=solver), truncated_svd(mine, 13, solver=solver, overwrite=True)
        assert torch.equal(found.left, expected.left) and torch.equal(found.right, expected.right)
        assert (found.energy, found.fallback) == (expected.energy, solver is not_converging)
        assert torch.equal(a, matrix("low rank + noise", *shape)) and not torch.equal(mine, a)


@pytest.mark.parametrize("power", [-110, 110])
def test_a_power_of_two_changes_no_bit(power):
    a = matrix("low rank + noise", *WIDE)
    one, other = truncated_svd(a, 13), truncated_svd(a * 2.0**power, 13)
    assert torch.equal(one.left, other.left) and torch.equal(one.right * 2.0**power, other.right)


@pytest.mark.parametrize("solver", GRAM_SOLVERS)
@pytest.mark.parametrize("level", [1.0, 0.5, 0.1, 0.03])
@pytest.mark.parametrize("gap", [1.001e-3, 3e-3, 1e-2])
def test_the_smallest_gaps_that_count(gap, level, solver):
    """Where float32 is least to be trusted: σ_k and σ_{k+1} a hair apart, few large values or many equal ones."""
    for k, (m, n) in itertools.product((1, 13), (TALL, WIDE)):
        top = torch.linspace(1, level, k, dtype=torch.float64) if k > 1 else torch.ones(1, dtype=torch.float64)
        below = float(top[-1]) - gap
        rest = 160 - k
        tails = {
            "one": torch.cat([torch.full((1,), below), torch.full((rest - 1,), 1e-9)]),
            "plateau": torch.full((rest,), below),
            "ramp": torch.linspace(below, 0, rest),
        }
        for name, tail in tails.items():
            a = spectrum(torch.cat([top, tail.double()]), m, n, seed=k)
            found = errors(a, k, truncated_svd(a, k, solver=solver))
            assert max(found) <= 1, f"{name}, {m} × {n}, k = {k}: {found}"


@pytest.mark.parametrize("solver", GRAM_SOLVERS)
def test_localised_vectors(solver):
    """A hard small matrix in the corner of a large empty one: nothing averages rounding out.

    With some of these seeds the couplings measured come out much smaller than they are.
    """
    cases = (
        (1, (1.0, 0.99895, 0.2), (34, 94, 104)),
        (1, (1.0, 0.9985, 0.2), (40, 45, 50, 87, 111)),
        (2, (1.0, 0.7, 0.698, 0.2, 0.1), (4, 178, 216)),
    )
    for k, s, seeds in cases:
        for seed in seeds:
            a = torch.zeros(400, 200)
            a[:9, :8] = spectrum(torch.tensor(s), 9, 8, seed)
            assert max(errors(a, k, truncated_svd(a, k, solver=solver))) <= 1


@pytest.mark.parametrize("solver", GRAM_SOLVERS)
@pytest.mark.parametrize("value", [1.0, 0.7, 0.1234567])
def test_constant_matrices(value, solver):
    """Every rounding goes the same way, and nothing is left out that could hide it."""
    a = torch.full((768, 768), value)
    for k in (1, 61):
        low = truncated_svd(a, k, solver=solver)
        found = low.left.double() @ low.right.double().T
        assert (a - found).norm() <= 2e-6 * a.double().norm()


def test_float64_is_solved_in_float64():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(300, 200, generator=g, dtype=torch.float64)
    for solver in SOLVERS:
        low = truncated_svd(a, 20, solver=solver)
        assert max(errors(a, 20, low)) <= 0.2


def test_float32_suffices_for_what_fine_tuning_leaves():
    """Low rank plus noise, cut inside the noise where the cut is distinct: the float64 road would double the time."""
    for shape in ((768, 768), (1024, 512)):
        a = matrix("low rank + noise", *shape)
        s = torch.linalg.svdvals(a)
        k = 30 + int((s[29:80] - s[30:81]).argmax())
        assert s[k - 1] - s[k] >= 1e-3 * s[0]
        assert linalg._by_float32_gram(a, k, linalg._lapack_top) is not None


@pytest.mark.parametrize("into", ["guard", "beyond"])
def test_the_certificate_refuses_what_breaks_the_contract(into):
    a, k, p = matrix("random", *TALL), 13, 13 + linalg.GUARD
    _, s, vh = torch.linalg.svd(a.double())
    certify = functools.partial(linalg._certified, values=s.square(), total=float(s.square().sum()))
    good = vh[:p].T.clone()
    assert certify(a, (a.double() @ good[:, :k]).float(), good.float())
    angle, j = 2e-3, p - 1 if into == "guard" else p + 20
    bad, other = good.clone(), vh[j]
    bad[:, k - 1] = math.cos(angle) * good[:, k - 1] + math.sin(angle) * other
    if into == "guard":
        bad[:, j] = math.cos(angle) * other - math.sin(angle) * good[:, k - 1]
    projected = (a.double() @ bad[:, :k]).float()
    low = LowRank(projected, bad[:, :k].float(), 0.0, "", False)
    assert errors(a, k, low)[1] > 1
    assert not certify(a, projected, bad.float())


def test_lapack_finds_what_torch_finds():
    for family, dtype in itertools.product(FAMILIES, (torch.float32, torch.float64)):
        a = matrix(family, *TALL).to(dtype)
        g = linalg._gram(a, dtype)
        values, vectors = linalg._lapack_top(g, 30)
        full = g.double().tril() + g.double().tril(-1).T
        tolerance = 200 * torch.finfo(dtype).eps * max(float(values[0]), 1e-300)
        assert (values - linalg._torch_top(g, 30)[0]).abs().max() <= tolerance
        assert (full @ vectors.double() - vectors.double() * values[:30]).norm() <= 30 * tolerance
        assert (vectors.T @ vectors - torch.eye(30)).abs().max() < 1e-3


def test_lapack_of_another_build_is_not_called():
    name, signature = "ssterf", linalg.ROUTINES["sterf"]
    assert callable(linalg._lapack_routine(name, signature))
    for other, types in ((name, "irrr"), (name, signature + "i"), ("ssterg", signature), ("dsterf", "irir")):
        with pytest.raises(LookupError):
            linalg._lapack_routine(other, types)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_bits_for_any_number_of_workers(solver):
    shapes = [(768, 768), (300, 640), (640, 300), (200, 200)] if solver != "svd" else [(200, 300), (300, 200)]
    work = [(matrix(f, *shape), k) for shape in shapes for f, k in (("low rank + noise", 24), ("1/i²", 20))]
    results = []
    for workers in (1, 2, 4):
        with one_blas_thread(), ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            results.append(list(pool.map(lambda task: truncated_svd(*task, solver=solver), work)))
    for one, *others in zip(*results, strict=True):
        for other in others:
            assert torch.equal(one.left, other.left) and torch.equal(one.right, other.right)
            assert one.energy == other.energy


def test_one_blas_thread_holds_and_lets_go():
    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    torch.set_num_threads(2)
    try:
        with threadpool_limits(2, user_api="blas"):
            assert threads() == {2}
            with one_blas_thread():
                assert threads() == {1} and torch.get_num_threads() == 1
            assert threads() == {2} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def not_converging(a: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """LAPACK's own failure, on a matrix that no algorithm solves."""
    values, vectors = torch.linalg.eigh(torch.full((a.shape[1], a.shape[1]), math.nan))
    return a @ vectors[:, :k], vectors[:, :k]


def not_finite(a: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((a.shape[0], k), math.nan), torch.full((a.shape[1], k), math.nan)


@pytest.mark.parametrize("solver", [not_converging, not_finite])
@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_float64_svd_takes_over(shape, solver, caplog):
    a = matrix("low rank + noise", *shape) * 1e10
    with caplog.at_level(logging.WARNING, logger="hfcart"):
        low = truncated_svd(a, 13, solver=solver)
    assert max(errors(a, 13, low)) <= 1
    assert (low.solver, low.fallback) == ("svd", True)
    assert f"{solver.__name__} did not converge on a {shape[0]} × {shape[1]} matrix" in caplog.text


def test_a_solver_of_ones_own_and_full_rank_is_no_shortcut():
    seen = []

    def plain(a: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((tuple(a.shape), k, float(a.abs().max())))
        return SOLVERS["svd"](a, k)

    low = truncated_svd(matrix("random", *WIDE) * 1e9, 160, solver=plain)
    assert (low.solver, low.fallback, low.energy) == ("plain", False, pytest.approx(1.0, abs=1e-6))
    [(shape, k, peak)] = seen
    assert (shape, k) == (TALL, 160) and 0.5 <= peak < 1


def test_views_are_read_and_left_alone():
    a = matrix("low rank + noise", *TALL)
    before = a.clone()
    for view in (a.T, a[3:, 5:], a[::2], a.flip(0).T):
        assert max(errors(view, 13, truncated_svd(view, 13))) <= 1
    assert torch.equal(a, before)


def test_tasks_are_summed_with_one_product():
    lows = [truncated_svd(spectrum(1 / torch.arange(1.0, 161), *WIDE, seed=seed), 13) for seed in range(3)]
    one = torch.cat([low.left for low in lows], 1) @ torch.cat([low.right for low in lows], 1).T
    assert torch.allclose(one, sum(low.left @ low.right.T for low in lows), atol=1e-6)


def test_rank_of():
    assert [rank_of(r, 3072, 768) for r in (0.08, 0.12, 1.0, 1e-9, 1, 768)] == [61, 92, 768, 1, 1, 768]
    for full in (100, 768, 1024):  # exactly floor(ρ · min(m, n)) as Python and NumPy compute it, rounding and all
        ranks = [rank_of(r / 100, full, 4 * full) for r in range(1, 101)]
        assert ranks == [max(1, int(r / 100 * full)) for r in range(1, 101)]
    assert rank_of(0.999, 10, 10) == 9
    for rank in (0.0, -0.1, 1.0000001, math.nan, math.inf, 0, -1, 769):
        with pytest.raises(ValueError, match="is not in"):
            rank_of(rank, 3072, 768)


def test_what_is_refused():
    a = matrix("random", *SQUARE)
    for k in (0, 161):
        with pytest.raises(ValueError, match=r"not in 1\.\.160"):
            truncated_svd(a, k)
    with pytest.raises(ValueError, match="gram-lapack, gram-torch, svd"):
        truncated_svd(a, 1, solver="fast")
    for value in (math.nan, math.inf, -math.inf):
        broken = a.clone()
        broken[7, 7] = value
        with pytest.raises(ValueError, match="NaN, Inf"):
            truncated_svd(broken, 1)
    with pytest.raises(ValueError, match="beyond float32"):
        truncated_svd(torch.full((3, 3), 1e300, dtype=torch.float64), 1)


def test_the_largest_and_the_smallest_numbers():
    for peak in (3e38, 2e-38, 1e-44):
        a = matrix("1/i", *TALL)
        a = a / a.abs().max() * peak
        low = truncated_svd(a, 1)
        assert low.left.isfinite().all() or peak > 1e38
        assert low.right.isfinite().all() and 0 < low.energy <= 1


def test_default_solvers():
    assert default_solver(torch.device("cpu")) == default_solver(torch.device("mps")) == "gram-lapack"
    assert default_solver(torch.device("cuda", 1)) == "gram-torch"
    assert truncated_svd(matrix("random", 20, 10), 2).solver == "gram-lapack"
