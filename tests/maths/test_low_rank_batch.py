"""Many matrices at once: the same contract, whatever is beside each; and one look at the results."""

from __future__ import annotations

import itertools
import logging
import math

import pytest
import torch
from devices import DEVICES, working
from pretended import PRETENDED
from spectra import FAMILIES, SQUARE, TALL, WIDE, errors, matrix, reference, spectrum

from hfcart.maths import low_rank_batch as batch
from hfcart.maths.low_rank import LowRank, truncated_svd
from hfcart.maths.low_rank_batch import bytes_each, is_batched, truncated_svds

CPU = torch.device("cpu")


def here(low: LowRank) -> LowRank:
    return LowRank(low.left.cpu(), low.right.cpu(), low.energy, low.solver, low.fallback)


def on(device: torch.device, stack: torch.Tensor, k: int) -> list[LowRank]:
    with working(device):
        return [here(low) for low in truncated_svds(stack.to(device), k)]


def redone(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many matrices each full decomposition is asked for."""
    sizes: list[int] = []
    direct = batch._direct

    def counted(grams: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(grams))
        return direct(grams, k)

    monkeypatch.setattr(batch, "_direct", counted)
    return sizes


@pytest.mark.parametrize("device", [CPU, *DEVICES], ids=str)
@pytest.mark.parametrize("k", [1, 13, 45, 159, 160])
@pytest.mark.parametrize("shape", [TALL, WIDE, SQUARE])
def test_the_contract_holds_for_every_family_beside_every_other(
    shape: tuple[int, int], k: int, device: torch.device
) -> None:
    stack = torch.stack([matrix(family, *shape) for family in FAMILIES])
    for family, low in zip(FAMILIES, on(device, stack, k), strict=True):
        svd = reference(family, *shape)
        assert max(errors(matrix(family, *shape), k, low, svd)) <= 1, family
        energies = svd[1].square()
        expected = float(energies[:k].sum() / energies.sum()) if family != "zero" else 1.0
        assert low.energy == pytest.approx(expected, abs=1e-6) and low.energy <= 1
        thin = low.right if shape[0] >= shape[1] else low.left
        if family != "zero":
            assert (thin.double().T @ thin.double() - torch.eye(k)).norm() < 1e-6
            assert (low.solver, low.fallback) == (batch.NAME, False)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 5), (128, 300), (129, 129), (300, 140)])
def test_the_contract_holds_at_every_size(shape: tuple[int, int]) -> None:
    for k in {1, max(1, min(shape) // 8), min(shape)}:
        a = matrix("random", *shape)
        [low, zero] = truncated_svds(torch.stack([a, torch.zeros_like(a)]), k)
        assert max(errors(a, k, low)) <= 1
        assert zero.left.norm() == zero.right.norm() == 0 and zero.energy == 1


def test_scales_far_apart_in_one_batch() -> None:
    a = matrix("low rank + noise", *TALL)
    scales = [1e-25, 1.0, 1e20, 0.0, 1e-38]
    found = truncated_svds(torch.stack([a * scale for scale in scales]), 13)
    for scale, low in zip(scales, found, strict=True):
        if scale:
            assert max(errors(a * scale, 13, low)) <= (1 if scale > 1e-30 else 10)  # subnormal numbers are few
    one, other = truncated_svds(torch.stack([a, a * 2.0**100]), 13)
    assert torch.equal(one.left * 2.0**100, other.left) and torch.equal(one.right, other.right)


@pytest.mark.parametrize("level", [1.0, 0.5, 0.1, 0.03])
@pytest.mark.parametrize("gap", [1.001e-3, 3e-3, 1e-2])
def test_the_smallest_gaps_that_count(gap: float, level: float) -> None:
    for k, (m, n) in itertools.product((1, 13), (TALL, WIDE)):
        top = torch.linspace(1, level, k, dtype=torch.float64) if k > 1 else torch.ones(1, dtype=torch.float64)
        below, rest = float(top[-1]) - gap, 160 - k
        tails = [
            torch.cat([torch.full((1,), below), torch.full((rest - 1,), 1e-9)]),
            torch.full((rest,), below),
            torch.linspace(below, 0, rest),
        ]
        stack = torch.stack([spectrum(torch.cat([top, tail.double()]), m, n, seed=k) for tail in tails])
        for a, low in zip(stack, truncated_svds(stack, k), strict=True):
            assert max(errors(a, k, low)) <= 1


def test_localised_and_constant_matrices() -> None:
    corner = torch.zeros(400, 200)
    corner[:9, :8] = spectrum(torch.tensor((1.0, 0.99895, 0.2)), 9, 8, 34)
    stack = torch.stack([corner, torch.full((400, 200), 0.1234567), corner.flip(0, 1), torch.zeros(400, 200)])
    for a, low in zip(stack, truncated_svds(stack, 1), strict=True):
        assert max(errors(a, 1, low)) <= 1


def test_what_fine_tuning_leaves_is_iterated_and_only_what_fails_is_redone(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = redone(monkeypatch)
    noise = torch.randn(3, 400, 256, generator=torch.Generator().manual_seed(1))
    i = torch.arange(1.0, 257)
    good = torch.cat([noise, torch.stack([spectrum(i**-power, 400, 256) for power in (0.4, 1.0)])])
    for a, low in zip(good, truncated_svds(good, 20), strict=True):
        assert max(errors(a, 20, low)) <= 1
    assert not sizes
    # A matrix of rank 2 has no block of independent vectors: it alone goes the long way, and the rest keep their bits.
    bad = torch.zeros(400, 256)
    bad[0, 0], bad[7, 9] = 1.0, 0.5
    monkeypatch.setattr(batch, "_certified", lambda values, *_: torch.arange(len(values), device=values.device) != 2)
    mixed = truncated_svds(torch.cat([good[:2], bad[None], good[2:]]), 20)
    assert sizes == [1]
    for a, low, alone in zip(good, mixed[:2] + mixed[3:], truncated_svds(good, 20), strict=True):
        assert max(errors(a, 20, low)) <= 1 and low.energy == pytest.approx(alone.energy, abs=1e-9)
    assert max(errors(bad, 20, mixed[2])) <= 1


@pytest.mark.parametrize("into", ["beside", "far"])
def test_the_certificate_refuses_what_breaks_the_contract(into: str) -> None:
    a, k, p = matrix("random", *TALL).double(), 13, 33
    _, s, vh = torch.linalg.svd(a)
    gram, total = a.T @ a, s.square().sum()

    def certified(vectors: torch.Tensor) -> bool:
        small = vectors.T @ gram @ vectors
        values, rotation = torch.linalg.eigh(small)
        values, vectors = values.flip(0), vectors @ rotation.flip(1)
        residuals = (gram @ vectors - vectors * values).norm(dim=0)
        return bool(batch._certified(values[None], residuals[None], total[None], k))

    good = vh[:p].T.clone()
    assert certified(good)
    angle, other = 2e-3, vh[k if into == "beside" else p + 20]
    bad = good.clone()
    if into == "beside":  # the vector beyond the cut is not among those found: its place is taken by another
        bad[:, k] = vh[p + 5]
    bad[:, k - 1] = math.cos(angle) * good[:, k - 1] + math.sin(angle) * other
    bad = torch.linalg.qr(bad)[0]
    assert not certified(bad)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_the_host_looks_once(device: torch.device) -> None:
    stack = torch.randn(6, 300, 256, generator=torch.Generator().manual_seed(0))
    for k in (20, 200):
        with working(device) as waits:
            truncated_svds(stack.to(device), k)
        assert device != PRETENDED or dict(waits) == {"_to_copy": 1}


def test_as_many_at_once_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = redone(monkeypatch)
    stack = torch.randn(5, 40, 30, generator=torch.Generator().manual_seed(0))
    whole = truncated_svds(stack, 3)
    parts = truncated_svds(stack, 3, room=2 * bytes_each(40, 30))
    none = truncated_svds(stack, 3, room=0)
    assert sizes == [5, 2, 2, 1, 1, 1, 1, 1, 1]
    for one, *others in zip(whole, parts, none, strict=True):
        for other in others:
            assert torch.allclose(one.left @ one.right.T, other.left @ other.right.T, atol=1e-6)


def test_one_by_one_on_the_cpu_where_the_batch_does_not_converge(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stack = torch.stack([matrix(family, *TALL) for family in ("random", "1/i")])

    def failing(a: torch.Tensor) -> object:
        raise torch.linalg.LinAlgError("as cuSOLVER has it")

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    with caplog.at_level(logging.WARNING, logger="hfcart"):
        found = truncated_svds(stack, 13)
    assert "did not converge" in caplog.text
    for a, low in zip(stack, found, strict=True):
        assert max(errors(a, 13, low)) <= 1 and low.fallback
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: (a[..., 0] * math.nan, a * math.nan))  # a silent one
    for a, low in zip(stack, truncated_svds(stack, 13), strict=True):
        assert max(errors(a, 13, low)) <= 1 and low.fallback


def test_what_is_refused() -> None:
    stack = torch.stack([matrix("random", *SQUARE)] * 3)
    for k in (0, 161):
        with pytest.raises(ValueError, match=r"not in 1\.\.160"):
            truncated_svds(stack, k)
    for value in (math.nan, math.inf, -math.inf):
        broken = stack.clone()
        broken[1, 7, 7] = value
        for k in (5, 150):
            with pytest.raises(ValueError, match="NaN, Inf"):
                truncated_svds(broken, k)
    with pytest.raises(ValueError, match="beyond float32"):
        truncated_svds(torch.full((1, 3, 3), 1e300, dtype=torch.float64), 1)


def test_float64_and_views_are_left_alone() -> None:
    stack = torch.randn(3, 200, 180, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = stack.clone()
    for view in (stack, stack.mT, stack[::2], stack[:, 3:, 5:]):
        for a, low in zip(view, truncated_svds(view, 13), strict=True):
            assert max(errors(a, 13, low)) <= 0.2
    assert torch.equal(stack, before)


def test_where_matrices_are_taken_together() -> None:
    assert [is_batched(torch.device(name)) for name in ("cpu", "mps", "cuda", "cuda:1", "meta")] == [
        False, False, True, True, True,
    ]  # fmt: skip
    assert truncated_svd(matrix("random", 20, 10), 2).solver == "gram-lapack"
