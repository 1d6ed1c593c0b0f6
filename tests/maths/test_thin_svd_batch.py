"""Singular vectors and polar factors of many matrices at once: what one alone gives, whatever is beside it."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from typing import TypeVar

import pytest
import torch
from devices import DEVICES, working
from pretended import PRETENDED
from spectra import FAMILIES, SQUARE, TALL, WIDE, matrix, reference, spectrum

from hfcart.maths import thin_svd_batch as batch
from hfcart.maths.low_rank_batch import bytes_each
from hfcart.maths.thin_svd import Polar, ThinSvd, polar, thin_svd
from hfcart.maths.thin_svd_batch import polars, thin_svds

CPU = torch.device("cpu")
TOGETHER = PRETENDED  # said of matrices that are on the CPU: the batched way, without a device
Found = TypeVar("Found", ThinSvd, Polar)


def here(found: Found) -> Found:
    tensors = {name: x.cpu() for name, x in vars(found).items() if isinstance(x, torch.Tensor)}
    return dataclasses.replace(found, **tensors)


def svds_on(device: torch.device, matrices: list[torch.Tensor], k: int | None) -> list[ThinSvd]:
    if device == CPU:
        return list(thin_svds([a.clone() for a in matrices], k, TOGETHER))
    with working(device):
        return [here(found) for found in thin_svds([a.to(device) for a in matrices], k, device)]


def polars_on(device: torch.device, matrices: list[torch.Tensor]) -> list[Polar]:
    if device == CPU:
        return list(polars([a.clone() for a in matrices], TOGETHER))
    with working(device):
        return [here(found) for found in polars([a.to(device) for a in matrices], device)]


def alone(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of what is done again, one at a time."""
    seen: list[torch.Size] = []

    def watched(name: str) -> None:
        one = getattr(batch, name)

        def counted(a: torch.Tensor, *arguments: object) -> object:
            seen.append(a.shape)
            return one(a, *arguments)

        monkeypatch.setattr(batch, name, counted)

    watched("thin_svd")
    watched("polar")
    return seen


def orthonormal(side: torch.Tensor, there: torch.Tensor) -> bool:
    return bool((side.T @ side - torch.diag(there.double())).abs().max() <= 1e-8)


def exact_polar(a: torch.Tensor) -> torch.Tensor:
    u, s, vh = torch.linalg.svd(a.double(), full_matrices=False)
    there = s > s[0] * max(a.shape) * torch.finfo(torch.float64).eps
    return (u * there) @ vh


@pytest.mark.parametrize(
    ("device", "k"),
    [(CPU, 1), (CPU, 13), (CPU, 45), (CPU, 159), (CPU, None), *itertools.product(DEVICES, (13, None))],
    ids=str,
)
@pytest.mark.parametrize("shape", [TALL, WIDE, SQUARE])
def test_every_family_beside_every_other(shape: tuple[int, int], k: int | None, device: torch.device) -> None:
    matrices = [matrix(family, *shape).double() for family in FAMILIES]
    for family, a, found in zip(FAMILIES, matrices, svds_on(device, matrices, k), strict=True):
        u, s, vh = reference(family, *shape)
        count = k or 160
        there = found.values > 0
        assert torch.allclose(found.values, s[:count], rtol=1e-8, atol=1e-12 * float(s[0])), family
        assert orthonormal(found.left, there) and orthonormal(found.right, there), family
        product = (found.left * found.values) @ found.right.T
        rest = s[count:].square().sum().sqrt()
        assert (a - product).norm() <= rest * (1 + 1e-9) + 1e-9 * s[0], family
        gap = float(s[count - 1]) - (float(s[count]) if count < 160 else 0.0)
        if gap >= 1e-3 * float(s[0]):
            assert (product - (u[:, :count] * s[:count]) @ vh[:count]).norm() <= 1e-8 * s.norm(), family
        energy = float(s[:count].square().sum() / s.square().sum()) if family != "zero" else 1.0
        assert found.energy == pytest.approx(energy, rel=1e-9) and found.energy <= 1


@pytest.mark.parametrize("device", [CPU, *DEVICES], ids=str)
@pytest.mark.parametrize("shape", [TALL, WIDE, SQUARE])
def test_polar_factors_of_every_family_beside_every_other(shape: tuple[int, int], device: torch.device) -> None:
    matrices = [matrix(family, *shape).double() for family in FAMILIES]
    for family, found in zip(FAMILIES, polars_on(device, matrices), strict=True):
        u, s, vh = reference(family, *shape)
        expected = exact_polar(matrix(family, *shape))
        assert float(found.total) == pytest.approx(float(s.sum()), rel=1e-9), family
        # What float32's rounding left of a spectrum that ends far below is determined to fewer digits.
        sure = s[-1] > 1e-7 * s[0]
        assert not sure or (found.matrix() - expected).abs().max() <= 1e-8, family


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 5), (128, 300), (129, 129), (300, 140)])
def test_every_size(shape: tuple[int, int]) -> None:
    a = matrix("random", *shape).double()
    for k in {1, max(1, min(shape) // 8), min(shape)}:
        found, zero = svds_on(CPU, [a, torch.zeros_like(a)], k)
        one = thin_svd(a, k)
        assert torch.allclose(found.values, one.values, rtol=1e-9)
        assert torch.allclose(
            (found.left * found.values) @ found.right.T, (one.left * one.values) @ one.right.T, atol=1e-9
        )
        assert not zero.left.any() and not zero.right.any() and not zero.values.any() and zero.energy == 1
    found, zero = polars_on(CPU, [a, torch.zeros_like(a)])
    assert torch.allclose(found.matrix(), exact_polar(a), atol=1e-9) and not zero.matrix().any() and not zero.total


def test_scales_far_apart_in_one_batch() -> None:
    a = matrix("low rank + noise", *TALL).double()
    scales = [1e-30, 1.0, 1e20, 0.0]
    [one] = svds_on(CPU, [a], 13)
    [factor] = polars_on(CPU, [a])
    scaled = [a * scale for scale in scales]
    for scale, found, turned in zip(scales, svds_on(CPU, scaled, 13), polars_on(CPU, scaled), strict=True):
        if scale:
            assert torch.allclose(found.values, one.values * scale, rtol=1e-9)
            assert torch.allclose(found.left @ found.right.T, one.left @ one.right.T, atol=1e-9)  # whatever their signs
            assert torch.allclose(turned.matrix(), factor.matrix(), atol=1e-9)
            assert float(turned.total) == pytest.approx(scale * float(factor.total), rel=1e-9)


def towers(tasks: int, m: int, n: int, shared: float) -> list[torch.Tensor]:
    """Task vectors of one base: what all have in common, and what each has of its own, on a floor of noise."""
    generator = torch.Generator().manual_seed(tasks)
    common = spectrum(torch.arange(1.0, 33) ** -0.6, m, n, seed=99).double()
    noise = torch.randn(tasks, m, n, generator=generator, dtype=torch.float64) * 1e-3
    own = [spectrum(torch.arange(1.0, 33) ** -0.6, m, n, seed=t).double() for t in range(tasks)]
    return [shared * common + (1 - shared) * mine + rest for mine, rest in zip(own, noise, strict=True)]


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.999])
@pytest.mark.parametrize(("shape", "tasks"), [(TALL, 2), (SQUARE, 3), (TALL, 8), (SQUARE, 8), (TALL, 20)])
def test_towers_of_one_base_side_by_side(
    shape: tuple[int, int], tasks: int, shared: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the mergers do it: the leading directions of each, and the polar factors of both sides; nothing twice."""
    matrices = towers(tasks, *shape, shared)
    k = 160 // tasks
    again = alone(monkeypatch)
    found = svds_on(CPU, matrices, k)
    sides = [torch.cat([getattr(part, side) for part in found], 1) for side in ("left", "right")]
    factors = polars_on(CPU, sides)
    assert not again
    for part, a in zip(found, matrices, strict=True):
        u, s, vh = torch.linalg.svd(a, full_matrices=False)
        assert ((part.left * part.values) @ part.right.T - (u[:, :k] * s[:k]) @ vh[:k]).norm() <= 1e-8 * s.norm()
        assert (part.left @ part.left.T - u[:, :k] @ u[:, :k].T).norm() <= 1e-7  # the weak directions as well
    for side, factor in zip(sides, factors, strict=True):
        assert (factor.matrix() - exact_polar(side)).abs().max() <= 1e-8


@pytest.mark.parametrize("condition", [1e1, 1e3, 1e5, 1e6, 1e8, 1e11, 1e15])
@pytest.mark.parametrize("shape", [TALL, WIDE, SQUARE])
def test_ill_conditioned_matrices(shape: tuple[int, int], condition: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to a condition of some 1e7 by products, beyond it as on the CPU; always the polar factor itself."""
    generator = torch.Generator().manual_seed(3)
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=generator, dtype=torch.float64), full_matrices=False)
    s = torch.logspace(0, -math.log10(condition), 160, dtype=torch.float64)
    a = (u * s) @ vh
    again = alone(monkeypatch)
    [factor] = polars_on(CPU, [a])
    [triplets] = svds_on(CPU, [a], None)
    assert len(again) == (2 if condition > 3e7 else 0)
    one = thin_svd(a)
    assert float(factor.total) == pytest.approx(float(s.sum()), rel=1e-9)
    assert torch.allclose(triplets.values, one.values, rtol=1e-8, atol=1e-13)
    assert (factor.matrix() - exact_polar(a)).abs().max() <= max(1e-13, 1e-15 * condition) or condition > 1e12
    assert ((triplets.left * triplets.values) @ triplets.right.T - a).abs().max() <= 1e-13


def test_what_is_not_there_stays_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(4)
    side = torch.linalg.qr(torch.randn(160, 40, generator=generator, dtype=torch.float64))[0]
    other = torch.linalg.qr(torch.randn(160, 40, generator=generator, dtype=torch.float64))[0]
    again = alone(monkeypatch)
    # A tower that did nothing has no directions, and no decomposition is needed to see that.
    idle = torch.cat([side, torch.zeros(160, 40, dtype=torch.float64), other], 1)
    [found] = polars_on(CPU, [idle])
    assert not again and not found.matrix()[:, 40:80].any()
    assert (found.matrix() - exact_polar(idle)).abs().max() <= 1e-9
    # Two towers that are the same have each direction once, and are seen by the certificate.
    twice = torch.cat([side, other, side], 1)
    deficient = torch.outer(torch.arange(1.0, 161), torch.ones(120)).double()
    good = torch.randn(160, 120, generator=generator, dtype=torch.float64)
    for factor, a in zip(polars_on(CPU, [good, twice, deficient, idle]), [good, twice, deficient, idle], strict=True):
        assert (factor.matrix() - exact_polar(a)).abs().max() <= 1e-9
    assert again == [(160, 120)] * 2
    again.clear()
    found, low, zero = svds_on(CPU, [good, deficient, torch.zeros_like(good)], 13)
    assert again == [(160, 120)] and found.values.all() and not zero.values.any()
    assert low.values[0] > 1 and not low.values[1:].any() and not low.left[:, 1:].any() and not low.right[:, 1:].any()


def test_one_bad_matrix_is_done_again_and_the_others_keep_their_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    good = list(torch.randn(3, 300, 160, generator=torch.Generator().manual_seed(5), dtype=torch.float64))
    bad = matrix("rank-deficient", 300, 160).double()
    again = alone(monkeypatch)
    for k in (16, 100, None):
        plain = svds_on(CPU, [good[0], good[1], good[2], good[2]], k)
        assert not again
        found = svds_on(CPU, [good[0], good[1], bad, good[2]], k)
        assert again == ([(300, 160)] if k != 16 else [])
        again.clear()
        for one, other in zip((plain[0], plain[1], plain[2]), (found[0], found[1], found[3]), strict=True):
            assert torch.equal(one.left, other.left) and torch.equal(one.values, other.values)
        expected = thin_svd(bad, k)
        assert torch.allclose(found[2].values, expected.values, atol=1e-7)


def test_the_certificate_refuses_vectors_that_are_a_little_off() -> None:
    a, k, p = matrix("low rank + noise", *TALL).double(), 13, 33
    _, _, vh = torch.linalg.svd(a)
    gram = a.T @ a

    def close(vectors: torch.Tensor) -> bool:
        values, rotation = torch.linalg.eigh(vectors.T @ gram @ vectors)
        values, vectors = values.flip(0), vectors @ rotation.flip(1)
        residuals = (gram @ vectors - vectors * values).norm(dim=0)
        return bool(batch._close(values[None], residuals[None], k))

    good = vh[:p].T.clone()
    assert close(good)
    for angle in (1e-3, 1e-5, 1e-7):
        bad = good.clone()
        bad[:, k - 1] = math.cos(angle) * good[:, k - 1] + math.sin(angle) * vh[p + 20]
        assert not close(bad), angle


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_the_host_looks_once(device: torch.device) -> None:
    stack = torch.randn(4, 300, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k in (20, 200, None):
        with working(device) as waits:
            list(thin_svds(list(stack.to(device)), k, device))
        assert device != PRETENDED or dict(waits) == {"_to_copy": 1}
    with working(device) as waits:
        there = stack.to(device)
        list(polars([there[0], there[1].mT, there[2], there[3, :40]], device))
    assert device != PRETENDED or dict(waits) == {"_to_copy": 1}


def test_matrices_of_several_shapes_come_back_in_their_order() -> None:
    generator = torch.Generator().manual_seed(6)
    shapes = [(40, 30), (30, 40), (40, 30), (7, 7), (30, 40), (1, 5)]
    matrices = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    for a, found in zip(matrices, polars_on(CPU, matrices), strict=True):
        assert torch.allclose(found.matrix(), exact_polar(a), atol=1e-10)
        assert torch.allclose(found.left @ (found.right.T @ a.T), exact_polar(a) @ a.T, atol=1e-9)


def test_as_many_at_once_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    together = batch._together

    def counted(stack: torch.Tensor, k: int | None) -> list[ThinSvd]:
        sizes.append(len(stack))
        return together(stack, k)

    monkeypatch.setattr(batch, "_together", counted)
    stack = torch.randn(5, 40, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made: list[int] = []

    def one_after_another() -> object:
        for i, a in enumerate(stack):
            made.append(i)
            yield a.clone()

    for room, expected in ((None, [5]), (2 * bytes_each(40, 30), [2, 2, 1]), (0, [1] * 5)):
        sizes.clear()
        found = list(thin_svds(one_after_another(), 3, TOGETHER, room=room))
        assert sizes == expected
        for a, part in zip(stack, found, strict=True):
            assert torch.allclose(part.values, torch.linalg.svdvals(a)[:3])
    assert list(thin_svds(iter(()), 3, TOGETHER)) == list(polars([], CPU)) == []
    made.clear()
    first = next(thin_svds(one_after_another(), 3, CPU))  # there the next is made when it is asked for
    assert made == [0] and torch.equal(first.left, thin_svd(stack[0], 3).left)


@pytest.mark.parametrize("k", [16, 100, None])
def test_one_after_another_where_the_batch_does_not_converge(
    k: int | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stack = [matrix(family, *TALL).double() for family in ("random", "1/i")]
    eigh = torch.linalg.eigh

    def failing(a: torch.Tensor) -> object:
        if a.ndim == 3:
            raise torch.linalg.LinAlgError("as cuSOLVER has it")
        return eigh(a)

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    with caplog.at_level(logging.WARNING, logger="hfcart"):
        found = svds_on(CPU, stack, k)
    assert "did not converge" in caplog.text
    for a, part in zip(stack, found, strict=True):
        assert torch.allclose(part.values, thin_svd(a, k).values)
    monkeypatch.setattr(
        torch.linalg, "eigh", lambda a: (a[..., 0] * math.nan, a * math.nan) if a.ndim == 3 else eigh(a)
    )
    for a, part in zip(stack, svds_on(CPU, stack, k), strict=True):  # a silent one
        assert torch.allclose(part.values, thin_svd(a, k).values)


def test_what_is_refused() -> None:
    stack = [matrix("random", *SQUARE).double()] * 3
    for k in (0, 161):
        with pytest.raises(ValueError, match=r"not in 1\.\.160"):
            svds_on(CPU, stack, k)
    for value in (math.nan, math.inf, -math.inf):
        broken = [a.clone() for a in stack]
        broken[1][7, 7] = value
        for k in (5, 150, None):
            with pytest.raises(ValueError, match="NaN or Inf"):
                svds_on(CPU, broken, k)
        with pytest.raises(ValueError, match="NaN or Inf"):
            polars_on(CPU, broken)


def test_on_the_cpu_each_is_as_alone() -> None:
    a = [matrix(family, *WIDE).double() for family in ("random", "1/i²")]
    for one, found in zip(a, thin_svds([x.clone() for x in a], 20, CPU), strict=True):
        expected = thin_svd(one, 20)
        assert torch.equal(found.left, expected.left) and torch.equal(found.right, expected.right)
    for one, found in zip(a, polars([x.clone() for x in a], CPU), strict=True):
        assert torch.equal(found.matrix(), polar(one).matrix())
