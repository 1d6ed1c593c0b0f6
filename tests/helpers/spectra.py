"""Matrices of every kind of spectrum, and how far a low-rank approximation of one is from what its contract allows."""

from __future__ import annotations

import functools

import torch

from hfcart.maths.low_rank import LowRank

TALL, WIDE, SQUARE = (400, 160), (160, 400), (160, 160)  # above linalg.SMALL: float32 gets its chance
FAMILIES = ("random", "flat", "1/i", "1/i²", "exponential", "low rank + noise", "rank-deficient", "graded", "zero")


def spectrum(s: torch.Tensor, m: int, n: int, seed: int = 0) -> torch.Tensor:
    """A float32 matrix with these singular values, up to its rounding."""
    g = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(m, len(s), generator=g, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(n, len(s), generator=g, dtype=torch.float64))[0]
    return ((u * s.double()) @ v.T).float()


@functools.cache
def matrix(family: str, m: int, n: int) -> torch.Tensor:
    i = torch.arange(1, min(m, n) + 1, dtype=torch.float64)
    g = torch.Generator().manual_seed(m + n)
    noise = torch.randn(m, n, generator=g)
    spikes = torch.randn(m, 16, generator=g) @ torch.randn(16, n, generator=g)
    return {
        "random": lambda: noise,
        "flat": lambda: spectrum(torch.ones(len(i)), m, n),
        "1/i": lambda: spectrum(1 / i, m, n),
        "1/i²": lambda: spectrum(1 / i**2, m, n),
        "exponential": lambda: spectrum(0.8**i, m, n),
        "low rank + noise": lambda: noise + spikes / 8,
        "rank-deficient": lambda: spectrum(torch.linspace(1, 0.1, len(i) // 4), m, n),
        "graded": lambda: noise * torch.logspace(0, -4, n),
        "zero": lambda: torch.zeros(m, n),
    }[family]()


@functools.cache
def reference(family: str, m: int, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.linalg.svd(matrix(family, m, n).double(), full_matrices=False)


def errors(a: torch.Tensor, k: int, low: LowRank, svd: tuple[torch.Tensor, ...] | None = None) -> tuple[float, float]:
    """Both errors as shares of what the contract allows; the second is 0 where the cut is degenerate."""
    u, s, vh = svd or torch.linalg.svd(a.double(), full_matrices=False)
    best, found = (u[:, :k] * s[:k]) @ vh[:k], low.left.double() @ low.right.double().T
    norm, left_out = float(s.norm()), float((a.double() - best).norm())
    assert low.left.dtype == low.right.dtype == torch.float32
    if norm == 0:
        return float(found.norm()), 0.0
    first = (float((a.double() - found).norm()) - (1 + 1e-6) * left_out) / (2e-6 * norm)
    gap = float(s[k - 1]) - (float(s[k]) if k < len(s) else 0.0)
    return first, float((found - best).norm()) / (1e-5 * norm) if gap >= 1e-3 * float(s[0]) else 0.0
