"""Truncated low-rank approximation: SVD_k(A) as two thin factors, for the least processor time that keeps the contract.

The contract, against float64 LAPACK, for the approximation Ã of rank k of a matrix A with singular values σ:

    ‖A − Ã‖_F ≤ (1 + 1e-6) · ‖A − SVD_k(A)‖_F + 2e-6 · ‖A‖_F            always, and
    ‖Ã − SVD_k(A)‖_F ≤ 1e-5 · ‖A‖_F                                     where σ_k − σ_{k+1} ≥ 1e-3 · σ_1.

How. The right singular vectors V are eigenvectors of the Gram matrix AᵀA, on the smaller side, and Ã = (A V) Vᵀ.
A float32 Gram matrix squares the condition number, so its answer needs a certificate: AᵀA·V shows how strongly each
kept vector is still coupled to what was cut, and first-order perturbation theory turns couplings and distances of
eigenvalues into both errors above (Stewart and Sun, Matrix Perturbation Theory, 1990, ch. V). Where they do not fit,
everything is done again from a float64 Gram matrix.

One BLAS thread per worker, always: see `one_blas_thread` in hfcart.system.device. Then the bits are the same for any
number of workers.
"""

from __future__ import annotations

import ctypes
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import scipy.linalg.cython_lapack
import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

log = logging.getLogger("hfcart")

EPS = 2.0**-24  # float32 unit roundoff
GUARD = 16  # vectors computed beyond the cut: couplings to them are measured one by one, not bounded
SMALL = 128  # matrices whose smaller side is at most this go straight to float64: it costs nothing there
BLOCK = 128  # columns of the Gram matrix computed at once

Solver = Callable[[Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LowRank:
    """SVD_k(A) = left @ right.T, with the singular values in the factor of A's longer side.

    Factors of several matrices of one shape are summed with one product: cat(lefts, 1) @ cat(rights, 1).T.

    Attributes:
        left: m × k, float32. Orthonormal columns if m < n.
        right: n × k, float32. Orthonormal columns if m ≥ n.
        energy: Σ_{i≤k} σ_i² / ‖A‖_F², in [0, 1]; 1.0 for the zero matrix (whose factors are zero).
        solver: name of the solver that produced it.
        fallback: True if the solver asked for did not converge and float64 SVD on the CPU took over.
    """

    left: Float[Tensor, "m k"]
    right: Float[Tensor, "n k"]
    energy: float
    solver: str
    fallback: bool


def rank_of(rank: int | float, m: int, n: int) -> int:
    """The k that a rank parameter means for an m × n matrix.

    Args:
        rank: a float is a share ρ in (0, 1] of full rank, k = max(1, floor(ρ · min(m, n))); an int is k itself.
        m: rows.
        n: columns.

    Raises:
        ValueError: a share outside (0, 1] or a k outside 1..min(m, n).
    """
    full = min(m, n)
    if isinstance(rank, float):
        if not 0.0 < rank <= 1.0:
            raise ValueError(f"rank {rank} is not in (0, 1]")
        return max(1, math.floor(rank * full))  # as the papers' own code takes it: 0.29 of 100 is 28
    if not 1 <= rank <= full:
        raise ValueError(f"rank {rank} is not in 1..{full}, the ranks a {m} × {n} matrix can have")
    return rank


def truncated_svd(
    a: Float[Tensor, "m n"], k: int, *, solver: str | Solver = "auto", overwrite: bool = False
) -> LowRank:
    """The best rank-k approximation of a matrix, within the contract above.

    Args:
        a: float32 or float64, finite, any scale float32 can hold. Not modified, unless asked for.
        k: 1..min(m, n). Full rank takes the same road as any other.
        solver: a name in SOLVERS, "auto" for the default of a's device, or a solver of the caller's own: a function of
            (A over a scale, longer side first, k) that returns (A V, V) in float32. If it raises
            torch.linalg.LinAlgError or returns what is not finite, float64 SVD on the CPU takes over.
        overwrite: whether a's memory may be used, instead of as much again.

    Raises:
        ValueError: k out of range, no solver of that name, or an entry that is NaN, Inf or beyond float32.
        torch.linalg.LinAlgError: float64 SVD did not converge either.
    """
    m, n = a.shape
    rank_of(k, m, n)
    if solver == "auto":
        solver = default_solver(a.device)
    if isinstance(solver, str) and solver not in SOLVERS:
        raise ValueError(f"no solver {solver!r}; there are {', '.join(SOLVERS)}")
    name, solve = (solver, SOLVERS[solver]) if isinstance(solver, str) else (solver.__name__, solver)
    low, high = torch.aminmax(a)
    peak = max(-low.item(), high.item())  # NaN if any entry is
    if not peak <= torch.finfo(torch.float32).max:
        raise ValueError("the matrix holds NaN, Inf or a number beyond float32")
    if peak == 0.0:
        return LowRank(torch.zeros(m, k, device=a.device), torch.zeros(n, k, device=a.device), 1.0, name, False)
    # A power of two scales without rounding; the limits keep it and its reciprocal normal numbers.
    scale = 2.0 ** min(max(math.frexp(peak)[1], -126), 126)
    scaled = a.div_(scale) if overwrite else a / scale
    tall = scaled if m >= n else scaled.T
    fallback = False
    try:
        projected, basis = solve(tall, k)
        kept = _energy(projected)
        if not math.isfinite(kept + _energy(basis)):
            raise LinAlgError("the result is not finite")
    except LinAlgError as error:
        log.warning("solver %s did not converge on a %d × %d matrix (%s); float64 SVD takes over", name, m, n, error)
        name, fallback = "svd", True
        projected, basis = _svd(tall, k)
        kept = _energy(projected)
    projected = projected * scale
    left, right = (projected, basis) if m >= n else (basis, projected)
    return LowRank(left, right, min(1.0, kept / _energy(scaled)), name, fallback)


def default_solver(device: torch.device) -> str:
    """The fastest solver within the contract on a kind of device (tests/bench/SOLVERS.md has the measurements)."""
    return "gram-torch" if device.type == "cuda" or not LAPACK else "gram-lapack"


def _energy(x: Float[Tensor, "rows columns"]) -> float:
    """‖x‖_F²: row by row in float32, their sum in float64."""
    return float(torch.linalg.vector_norm(x, dim=1).cpu().double().square().sum())


# Solvers: (A, k) -> (A V, V), for A with at least as many rows as columns and entries of at most about 1.


def _gram_lapack(a: Float[Tensor, "m n"], k: int) -> tuple[Tensor, Tensor]:
    """Gram matrix, then LAPACK's tridiagonal form and only the eigenvectors that are needed, on the CPU."""
    return _by_gram(a, k, _lapack_top)


def _gram_torch(a: Float[Tensor, "m n"], k: int) -> tuple[Tensor, Tensor]:
    """Gram matrix, then all eigenvectors by torch.linalg.eigh, on a's device."""
    return _by_gram(a, k, _torch_top)


def _svd(a: Float[Tensor, "m n"], k: int) -> tuple[Tensor, Tensor]:
    """The plain way, and the fallback: a full SVD in float64 on the CPU."""
    u, s, vh = torch.linalg.svd(a.cpu().double(), full_matrices=False)
    return (u[:, :k] * s[:k]).float().to(a.device), vh[:k].T.float().to(a.device)


def _by_gram(a: Float[Tensor, "m n"], k: int, top: Solver) -> tuple[Tensor, Tensor]:
    if a.dtype == torch.float32 and a.shape[1] > SMALL and k < a.shape[1]:
        quick = _by_float32_gram(a, k, top)
        if quick is not None:
            return quick
    basis = _orthonormal(top(_gram(a, torch.float64), k)[1])
    projected = torch.cat([rows @ basis.to(rows.device) for rows in _parts(a, torch.float64)])
    return projected.float().to(a.device), basis.float().to(a.device)


def _by_float32_gram(a: Float[Tensor, "m n"], k: int, top: Solver) -> tuple[Tensor, Tensor] | None:
    g = _gram(a, torch.float32)
    values, vectors = top(g, min(k + GUARD, len(g)))
    vectors = _orthonormal(vectors.to(a.device))
    projected = a @ vectors[:, :k]
    total = g.diagonal().cpu().double().sum().item()
    return (projected, vectors[:, :k]) if _certified(a, projected, vectors, values.cpu().double(), total) else None


def _gram(a: Float[Tensor, "m n"], dtype: torch.dtype) -> Float[Tensor, "n n"]:
    """The lower triangle of AᵀA, block column by block column: little more than half the work of the whole product."""
    n = a.shape[1]
    g = torch.zeros(n, n, dtype=dtype, device=_place(a, dtype))
    for rows in _parts(a, dtype):
        for j in range(0, n, BLOCK):
            g[j:, j : j + BLOCK].addmm_(rows[:, j:].T, rows[:, j : j + BLOCK])
    return g


def _parts(a: Float[Tensor, "m n"], dtype: torch.dtype) -> Iterator[Float[Tensor, "rows n"]]:
    """A in another dtype, some rows at a time so that there is never a whole copy; whole where the dtype is its own."""
    for rows in (a,) if a.dtype == dtype else torch.split(a, 512):
        yield rows.to(_place(a, dtype)).to(dtype)


def _place(a: Tensor, dtype: torch.dtype) -> torch.device:
    """Where to compute in this dtype: on a's device, but float64 on the CPU for mps, which has none."""
    return torch.device("cpu") if a.device.type == "mps" and dtype == torch.float64 else a.device


def _orthonormal(v: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """One Newton–Schulz step towards the polar factor: a departure δ of VᵀV from I becomes about δ²."""
    exact = v.cpu().double()  # in float32 the sums of a constant vector round all one way
    excess = exact.T @ exact - torch.eye(v.shape[1], dtype=torch.float64)
    return v - v @ (0.5 * excess).to(v.dtype).to(v.device)


def _certified(
    a: Float[Tensor, "m n"],
    projected: Float[Tensor, "m k"],
    vectors: Float[Tensor, "n p"],
    values: Float[Tensor, " n"],
    total: float,
) -> bool:
    """Whether float32 eigenvectors of AᵀA, the first k of them kept, meet the contract.

    With E the coupling of kept vector i to cut vector j and Δ = λ_i − λ_j, the kept energy falls short by Σ E²/Δ and
    the approximation moves by (Σ (λ_i + λ_j) E²/Δ²)^½.

    Args:
        a: the matrix.
        projected: A V for the k kept vectors.
        vectors: the p ≥ k leading vectors, orthonormal.
        values: all eigenvalues, descending, float64.
        total: ‖A‖_F².
    """
    n, p, k = *vectors.shape, projected.shape[1]
    image = a.T @ projected
    inside = vectors.T @ image
    outside = torch.linalg.vector_norm(image - vectors @ inside, dim=0)
    # E² of kept vector i (row) and guard vector j (column), and in the last column of all that is beyond the guards, as
    # if it were as near as the next eigenvalue. A single measured number may be small by luck: each counts double,
    # and as no less than rounding could make it.
    coupling = torch.cat([2 * inside[k:], outside[None]]).T.cpu().double().square()[:, : n - k]
    kept, cut = values[:k, None].clamp(min=0), values[k : p + 1].clamp(min=0)
    coupling = coupling + (2 * EPS) ** 2 * kept * cut

    noise = 4 * EPS * values[0].item()  # what rounding does to an eigenvalue
    distance = (kept - cut - noise).clamp(min=1e-300)
    lost = (coupling / torch.maximum(distance, coupling.sqrt())).sum().item()  # two that coincide lose E at most
    moved = ((kept + cut) * coupling / distance**2).sum().sqrt().item()

    rest = max(total - _energy(projected) - 1e-5 * total, 0.0)  # what is left out, as far as float32 can tell
    gap = values[k - 1].clamp(min=0).sqrt() - (values[k] - noise).clamp(min=0).sqrt()
    degenerate = gap.item() < 0.8e-3 * values[0].sqrt().item()  # 0.8: the gap itself is known to about 0.2e-3
    return lost < 2e-6 * math.sqrt(total * rest) and (degenerate or moved <= 0.9e-5 * math.sqrt(total))


# Leading eigenvectors: (G, p) -> (all eigenvalues, p eigenvectors), descending; only G's lower triangle is read.


def _torch_top(g: Float[Tensor, "n n"], p: int) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(g)
    return values.flip(0), vectors[:, -p:].flip(1)


def _lapack_top(g: Float[Tensor, "n n"], p: int) -> tuple[Tensor, Tensor]:
    g = g.cpu()
    n, dtype = len(g), g.dtype
    if not LAPACK or p > n // 5:  # divide and conquer is faster for many vectors
        return _torch_top(g, p)
    sytrd, sterf, stein, ormtr = LAPACK[dtype]
    # Fortran reads transposed: our lower triangle is its upper one. Rows a power of two apart would share cache sets.
    stride = n + 16
    q, z = torch.empty(n, stride, dtype=dtype), torch.empty(p, n, dtype=dtype)
    q[:, :n] = g
    d, e, tau, work = (torch.empty(size, dtype=dtype) for size in (n, n, n, 64 * n))
    ones, ends, iwork, failed = (torch.full((n,), x, dtype=torch.int32) for x in (1, n, 0, 0))
    # stein is told of one block, however the matrix splits, and takes sterf's eigenvalues: stebz, which would find the
    # blocks and only the eigenvalues needed, is no faster and can lose eigenvalues of a cluster without saying so.
    failure = (
        sytrd(b"U", n, q, stride, d, e, tau, work, 64 * n)
        or sterf(n, values := d.clone(), e.clone())
        or stein(n, d, e, p, values[-p:].clone(), ones, ends, z, n, work, iwork, failed)
        or ormtr(b"L", b"U", b"N", n, p, q, stride, tau, z, n, work, 64 * n)
    )
    # Inverse iteration inside a cluster can also end with vectors that are not orthogonal.
    if failure or not (z @ z.T - torch.eye(p, dtype=dtype)).abs().max() < 1e-4:
        return _torch_top(g, p)
    return values.flip(0), z.flip(0).T


# LAPACK's own routines, called so that the interpreter runs on meanwhile: scipy's wrappers hold its lock.
# Arguments as in Fortran, all by reference; c: char, i: 32-bit int, r: real. The last is `info`, returned.
ROUTINES = {"sytrd": "cirirrrrii", "sterf": "irri", "stein": "irririiririii", "ormtr": "ccciirirririi"}


def _lapack_routine(name: str, signature: str) -> Callable[..., int]:
    """A routine of scipy's LAPACK; LookupError where scipy has none of that name with these types."""
    capsules: Mapping[str, object] = scipy.linalg.cython_lapack.__pyx_capi__
    capsule = capsules[name]
    get_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
    get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    declared = get_name(capsule)
    types = {"c": "char *", "i": "int *", "r": "real *"}
    real = {"s": r"\b(float|__pyx_t_\w+_s) \*", "d": r"\b(double|__pyx_t_\w+_d) \*"}[name[0]]
    if re.sub(real, "real *", declared.decode()) != f"void ({', '.join(types[c] for c in signature)})":
        raise LookupError(f"{name} is {declared.decode()}")
    routine = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(signature))(get_pointer(capsule, declared))

    def call(*arguments: bytes | int | Tensor) -> int:
        info = ctypes.c_int()
        ints = [ctypes.byref(ctypes.c_int(x)) if isinstance(x, int) else x for x in arguments]
        routine(*[x.data_ptr() if isinstance(x, Tensor) else x for x in ints], ctypes.byref(info))
        return info.value

    return call


def _load_lapack() -> dict[torch.dtype, list[Callable[..., int]]]:
    kinds = {torch.float32: "s", torch.float64: "d"}
    try:
        return {dtype: [_lapack_routine(x + name, ROUTINES[name]) for name in ROUTINES] for dtype, x in kinds.items()}
    except LookupError:
        return {}  # another build of scipy: torch's own eigh serves


LAPACK = _load_lapack()
SOLVERS: dict[str, Solver] = {"gram-lapack": _gram_lapack, "gram-torch": _gram_torch, "svd": _svd}
