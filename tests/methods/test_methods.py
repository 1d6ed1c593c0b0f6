"""The methods as pure functions, and the moments under them, against float64 restatements of their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfcart.clip.tensor_names import groups
from hfcart.maths.moments import mean_of, spread_of
from hfcart.maths.similarity import compare
from hfcart.methods.average.rule import average
from hfcart.methods.cart.rule import cart
from hfcart.methods.task_arithmetic.rule import task_arithmetic


def stack(seed: int, tasks: int, *shape: int, tau: float = 0.02) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) + tau * torch.randn(tasks, *shape, generator=generator)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@given(seed=st.integers(0, 999), tasks=st.integers(1, 6), tau=st.sampled_from([1.0, 1e-2, 1e-5]))
@settings(deadline=None, max_examples=30)
def test_the_mean_is_known_to_twice_the_precision(seed: int, tasks: int, tau: float) -> None:
    thetas = stack(seed, tasks, 33, 7, tau=tau)
    exact = thetas.double().mean(0)
    high, low = mean_of(thetas)
    assert torch.equal(high, exact.float())
    assert (high.double() + low.double() - exact).abs().max() <= 1e-14 * exact.abs().max()


def test_moments_of_more_than_one_chunk() -> None:
    thetas = stack(1, 3, 300, 500)
    assert torch.equal(mean_of(thetas)[0], thetas.double().mean(0).float())
    flat = thetas.double().reshape(3, -1)
    rows = torch.stack([flat[0], flat[1] - flat[0], flat[2] - flat[0]])
    assert torch.allclose(spread_of(thetas, None), rows @ rows.T, rtol=1e-4)
    base = stack(2, 1, 300, 500)[0]
    rows = torch.cat([base.double().reshape(1, -1), flat - base.double().reshape(-1)])
    assert torch.allclose(spread_of(thetas, base), rows @ rows.T, rtol=1e-4)


def test_spread_beyond_float32() -> None:
    thetas = 1e25 * stack(1, 3, 8, 8)
    assert torch.isfinite(spread_of(thetas, None)).all()


def test_signed_zeros_survive() -> None:
    theta = torch.tensor([[-0.0, 0.0], [1.0, -0.0]])
    for merged in (average(theta[None]), cart(theta[None], rank=1), average(torch.stack([theta, theta]))):
        assert bits(merged.tensor) == bits(theta)


@pytest.mark.parametrize("tau", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32)])
def test_cart_even_where_the_task_vectors_are_tiny(shape: tuple[int, int], tau: float) -> None:
    thetas = stack(5, 4, *shape, tau=tau)
    exact = thetas.double().numpy()
    mean = exact.mean(0)
    update = np.zeros(shape)
    energy = []
    for theta in exact:
        u, s, vt = np.linalg.svd(theta - mean, full_matrices=False)
        update += 1.5 * (u[:, :6] * s[:6]) @ vt[:6]
        energy.append((s[:6] ** 2).sum() / (s**2).sum())
    found = cart(thetas, rank=0.25 if min(shape) == 24 else 6, scale=1.5)
    # What float32 can store of θ̄ + update bounds the error from below where the update is tiny.
    storing = 6e-8 * np.linalg.norm(mean)
    assert np.linalg.norm(found.tensor.double().numpy() - mean - update) <= 1e-4 * np.linalg.norm(update) + storing
    assert found.energy == pytest.approx(np.mean(energy), rel=1e-5)
    assert found.rank == 6 and not found.fallback


@given(seed=st.integers(0, 99), scale=st.floats(-3, 3))
@settings(deadline=None, max_examples=20)
def test_cart_of_identical_towers_is_that_tower(seed: int, scale: float) -> None:
    theta = stack(seed, 1, 12, 9)[0]
    assert bits(cart(torch.stack([theta] * 4), rank=3, scale=scale).tensor) == bits(theta)


def test_cart_of_a_constant_shift_in_one_task_direction() -> None:
    """Two towers at ±δ around θ: CART at full energy returns exactly their mean for any λ (the two cancel)."""
    theta = stack(0, 1, 16, 16)[0]
    delta = torch.outer(torch.arange(16.0), torch.ones(16)) / 1024
    found = cart(torch.stack([theta + delta, theta - delta]), rank=1, scale=2.0)
    assert torch.linalg.norm(found.tensor - theta) <= 1e-6 * torch.linalg.norm(theta)


def test_task_arithmetic_where_nothing_moved_is_the_base() -> None:
    base = stack(0, 1, 6, 5)[0]
    assert bits(task_arithmetic(torch.stack([base] * 3), base=base, scale=0.7).tensor) == bits(base)


@pytest.mark.parametrize("rank", [0, -1, 1.5, 13, 0.0])
def test_ranks_out_of_range(rank: int | float) -> None:
    with pytest.raises(ValueError, match="rank"):
        cart(stack(0, 2, 12, 20), rank=rank)


def test_functions_do_not_touch_their_inputs() -> None:
    thetas, base = stack(0, 3, 12, 9), stack(1, 1, 12, 9)[0]
    before = bits(thetas), bits(base)
    cart(thetas, rank=2), average(thetas), task_arithmetic(thetas, base=base), spread_of(thetas, base)
    assert (bits(thetas), bits(base)) == before


def test_similarity_of_orthogonal_and_opposite_task_vectors() -> None:
    base = torch.zeros(3) + 5
    thetas = torch.stack([base + torch.tensor(v) for v in ([1.0, 0, 0], [0, 2.0, 0], [-3.0, 0, 0], [0, 0, 0])])
    found = compare([spread_of(thetas, base).tolist()], against_base=True)
    assert found is not None
    assert found.cosine[0] == (1.0, 0.0, -1.0, 0.0) and found.cosine[3] == (0.0, 0.0, 0.0, 1.0)
    assert found.distance == pytest.approx([x / (5 * 3**0.5) for x in (1, 2, 3, 0)], rel=1e-5)
    assert compare([[[25.0]]], against_base=False) is None


def test_groups() -> None:
    names = [
        f"vision_model.encoder.layers.{i}.self_attn.{x}_proj.weight" for i in (0, 1) for x in ("q", "k", "v", "out")
    ]
    assert [len(g.names) for g in groups(names, "split")] == [1] * 8
    fused = groups(names, "fused")
    assert [len(g.names) for g in fused] == [3, 1, 3, 1]
    assert fused[2].names == tuple(names[4:7]) and all(g.matrix for g in fused)
    position = "vision_model.embeddings.position_embedding.weight"
    assert [g.matrix for g in groups([position], "split")] == [False]
    assert [g.matrix for g in groups([position], "split", {position})] == [True]
