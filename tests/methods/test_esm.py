"""ESM against float64 NumPy written from its formulas, on the layers' inputs themselves, and its identities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hfcart.methods.esm.rule import esm, mean_norms

BLOCK = "vision_model.encoder.layers.{}.{}.weight"
SHAPES = {"self_attn.q_proj": (24, 24), "self_attn.out_proj": (24, 24), "mlp.fc1": (48, 24), "mlp.fc2": (24, 48)}


def orthogonal(a: np.ndarray) -> tuple[np.ndarray, float]:
    u, s, vt = np.linalg.svd(a, full_matrices=False)
    return u @ vt, s.mean()


def paper(taus: np.ndarray, inputs: np.ndarray, key: str) -> np.ndarray:
    """One matrix's update, before its strength among the blocks."""
    tasks, (m, n) = len(taus), taus.shape[1:]
    if "out_proj" in key:
        parts, k = [np.linalg.svd(tau, full_matrices=False) for tau in taus], min(m, n) // tasks
        u, _ = orthogonal(np.concatenate([p[0][:, :k] for p in parts], 1))
        vt, _ = orthogonal(np.concatenate([p[2][:k] for p in parts], 0))
        return (u * np.concatenate([p[1][:k] for p in parts])) @ vt
    k = m // tasks
    us, vs = [], []
    for tau, x in zip(taus, inputs, strict=True):
        _, s, directions = np.linalg.svd(x @ tau.T, full_matrices=True)
        eigenvalues = np.zeros(m)
        eigenvalues[: len(s)] = s**2 / (len(x) - 1)
        strength = (eigenvalues[:k] / eigenvalues[:k].mean()) ** 0.15
        strength /= strength.mean()
        us.append(directions[:k].T * strength)
        vs.append((directions[:k] @ tau) * np.linalg.norm(directions @ tau) ** 2 * strength[:, None])
    v = np.concatenate(vs) / np.mean([np.linalg.norm(tau) for tau in taus]) ** 2
    columns = np.linalg.norm(v, axis=0)
    u, mean_u = orthogonal(np.concatenate(us, 1))
    vt, mean_v = orthogonal(v * (columns / columns.mean()) ** 2)
    return 2 * mean_u * mean_v * u @ vt


def towers(tasks: int, shape: tuple[int, int], seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(thetas, base, inputs of the layer in each tower)."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator, dtype=torch.float64)
    taus = 0.05 * torch.randn(tasks, *shape, generator=generator, dtype=torch.float64)
    spread = torch.linspace(0.2, 2, shape[1], dtype=torch.float64)
    inputs = torch.randn(tasks, 200, shape[1], generator=generator, dtype=torch.float64) * spread
    return base + taus, base, inputs


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_esm_is_its_formula(tasks: int) -> None:
    """Both passes over two blocks of every kind: the second knows the norms that the first found."""
    held = {
        BLOCK.format(block, name): towers(tasks, shape, 100 * block + i)
        for block in (0, 1)
        for i, (name, shape) in enumerate(SHAPES.items())
    }
    passes = mean_norms()
    measure = next(passes)
    total = sum(measure(thetas, base, key, x.mT @ x) for key, (thetas, base, x) in held.items())
    total = total + measure(torch.ones(tasks, 7), torch.zeros(7), "vision_model.pre_layrnorm.weight")  # no matrix
    with pytest.raises(StopIteration) as end:
        passes.send(total)
    means = end.value.value["means"]
    updates = {key: paper((thetas - base).numpy(), x.numpy(), key) for key, (thetas, base, x) in held.items()}
    for key, (thetas, base, x) in held.items():
        kind = key.split(".")[-2]
        mean = np.mean([np.linalg.norm(u) for k, u in updates.items() if kind in k])
        expected = 0.8 * updates[key] * (np.linalg.norm(updates[key]) / mean) ** 2
        found = esm(thetas, x.mT @ x, key, means, base=base, scale=0.8).tensor - base
        assert np.linalg.norm(found.numpy() - expected) <= 1e-6 * np.linalg.norm(expected), key


def test_order_nothing_moved_and_nothing_seen() -> None:
    key = BLOCK.format(0, "mlp.fc1")
    thetas, base, x = towers(4, (24, 12), 7)
    grams, means = x.mT @ x, [1.0] * 6
    one = esm(thetas, grams, key, means, base=base).tensor
    other = esm(thetas.flip(0), grams.flip(0), key, means, base=base).tensor
    assert torch.linalg.norm(one - other) <= 1e-8 * torch.linalg.norm(one - base)
    assert not torch.allclose(esm(thetas, grams.flip(0), key, means, base=base).tensor, one, atol=1e-4)
    still = base.expand(4, -1, -1)
    assert torch.equal(esm(still, grams, key, [0.0] * 6, base=base).tensor, base)
    assert torch.equal(esm(thetas, torch.zeros(4, 12, 12), key, [0.0] * 6, base=base).tensor, base)
    alone = torch.stack([thetas[0], base])  # a tower that learned nothing spoils nothing
    assert torch.isfinite(esm(alone, grams[:2], key, means, base=base).tensor).all()


def test_more_directions_asked_for_than_there_are() -> None:
    """One tower of a tall matrix: m directions where n inputs have n of them. Those that are not there add no noise."""
    thetas, base, x = towers(1, (24, 12), 8)
    found = esm(thetas, x.mT @ x, BLOCK.format(0, "mlp.fc1"), [1.0] * 6, base=base).tensor - base
    assert torch.linalg.matrix_rank(found) <= 12 and float(found.norm()) < 1e3


def test_the_towers_are_left_alone() -> None:
    thetas, base, x = towers(3, (24, 12), 9)
    before = thetas.clone()
    esm(thetas, x.mT @ x, BLOCK.format(0, "mlp.fc1"), [1.0] * 6, base=base)
    assert torch.equal(thetas, before)
