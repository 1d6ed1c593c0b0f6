"""Truncated low-rank approximation: SVD_k(A) as two thin factors, for the least processor time that keeps the contract.

The contract, against float64 LAPACK, for the approximation Ã of rank k of a matrix A with singular values σ:

    ‖A − Ã‖_F ≤ (1 + 1e-6) · ‖A − SVD_k(A)‖_F + 2e-6 · ‖A‖_F            always, and
    ‖Ã − SVD_k(A)‖_F ≤ 1e-5 · ‖A‖_F                                     where σ_k − σ_{k+1} ≥ 1e-3 · σ_1.

How. The right singular vectors are the eigenvectors of the Gram matrix AᵀA, taken on the smaller side, and
Ã = (A V) Vᵀ. A float32 Gram matrix squares the condition number, so its answer is believed only with a certificate: the
residual AᵀA·V − V·Λ says how strongly each kept vector is still coupled to what was cut, and dividing by the
distance of the eigenvalues bounds both errors above (first-order perturbation; Stewart and Sun, Matrix Perturbation
Theory, 1990, ch. V). Where the bounds do not fit, everything is done again from a float64 Gram matrix.

One BLAS thread per worker, always: see `one_blas_thread`. Then the result has the same bits for any number of workers.
"""

from __future__ import annotations

import ctypes
import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import scipy.linalg.cython_lapack
import torch
from jaxtyping import Float
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

log = logging.getLogger("hfcart")

EPS = 2.0**-24  # float32 unit roundoff
GUARD = 16  # vectors computed beyond the cut: couplings to them are measured one by one, not bounded
SMALL = 128  # matrices whose smaller side is at most this go straight to float64: it costs nothing there
BLOCK = 128  # columns of the Gram matrix computed at once

Eigen = Callable[[Tensor, int], tuple[Tensor, Tensor]]
Solver = Callable[[Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LowRank:
    """SVD_k(A) = left @ right.T, with the singular values in the factor of A's longer side.

    Factors of several matrices of one shape are summed with one product: cat(lefts, 1) @ cat(rights, 1).T.

    Attributes:
        left: m × k, float32. Orthonormal columns if m < n.
        right: n × k, float32. Orthonormal columns if m ≥ n.
        energy: Σ_{i≤k} σ_i² / ‖A‖_F², in [0, 1]; 1.0 for the zero matrix.
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
        return max(1, math.floor(round(rank * full, 9)))  # 0.29 · 100 is 28.999999999999996 in binary
    if not 1 <= rank <= full:
        raise ValueError(f"rank {rank} is not in 1..{full}, the ranks a {m} × {n} matrix can have")
    return rank


def truncated_svd(a: Float[Tensor, "m n"], k: int, *, solver: str | Solver = "auto") -> LowRank:
    """The best rank-k approximation of a matrix, within the contract above.

    Args:
        a: float32 or float64, finite, any scale float32 can hold. Not modified.
        k: 1..min(m, n). Full rank takes the same road as any other.
        solver: a name in SOLVERS, "auto" for the default of a's device, or a solver of the caller's own: a function of
            (A / scale with the longer side first, k) giving (A V, V). If it raises torch.linalg.LinAlgError or its
            result is not finite, float64 SVD on the CPU takes over.

    Raises:
        ValueError: k out of range, a solver of no such name, or an entry that is NaN, Inf or beyond float32.
        torch.linalg.LinAlgError: float64 SVD did not converge either.
    """
    m, n = a.shape
    rank_of(k, m, n)
    name = default_solver(a.device) if solver == "auto" else solver if isinstance(solver, str) else solver.__name__
    if isinstance(solver, str) and name not in SOLVERS:
        raise ValueError(f"no solver {name!r}; there are {', '.join(SOLVERS)}")
    low, high = torch.aminmax(a)
    peak = max(-low.item(), high.item())  # NaN if any entry is
    if not peak <= torch.finfo(torch.float32).max:
        raise ValueError("the matrix holds NaN, Inf or a number beyond float32")
    if peak == 0.0:
        zero = torch.zeros(m + n, k, device=a.device)
        return LowRank(zero[:m], zero[m:], 1.0, name, False)
    # A power of two scales without rounding; the limits keep it and its reciprocal normal numbers.
    scale = 2.0 ** min(max(math.frexp(peak)[1], -126), 126)
    scaled = a / scale
    long = scaled if m >= n else scaled.T
    fallback = False
    try:
        projected, basis = (SOLVERS[name] if isinstance(solver, str) else solver)(long, k)
        kept = _energy(projected)
        if not (math.isfinite(kept) and math.isfinite(_energy(basis))):
            raise LinAlgError("the result is not finite")
    except LinAlgError as error:
        if name == "svd":
            raise
        log.warning("solver %s did not converge on a %d × %d matrix (%s); float64 SVD takes over", name, m, n, error)
        name, fallback = "svd", True
        projected, basis = _svd(long, k)
        kept = _energy(projected)
    projected *= scale
    left, right = (projected, basis) if m >= n else (basis, projected)
    return LowRank(left, right, min(1.0, kept / _energy(scaled)), name, fallback)


def default_solver(device: torch.device) -> str:
    """The fastest solver within the contract on a kind of device (tests/bench/SOLVERS.md has the measurements)."""
    return "gram-torch" if device.type == "cuda" or not LAPACK else "gram-lapack"


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold the process's OpenBLAS and the calling thread's torch at one thread each.

    torch counts threads per calling thread: workers started inside must each call torch.set_num_threads(1).
    """
    before = torch.get_num_threads()
    with threadpool_limits(limits=1, user_api="blas"):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _energy(x: Float[Tensor, "rows columns"]) -> float:
    """‖x‖_F²; rows in float32, their sum in float64."""
    return float(torch.linalg.vector_norm(x, dim=1).cpu().double().square().sum())


# --- solvers: (A, k) -> (A V, V), A with at least as many rows as columns and entries of at most about 1 ---


def _gram_lapack(a: Float[Tensor, "m n"], k: int) -> tuple[Tensor, Tensor]:
    """Gram matrix, then LAPACK's tridiagonal form and only the eigenvectors that are needed, on the CPU."""
    return _by_gram(a, k, _lapack_top)


def _gram_torch(a: Float[Tensor, "m n"], k: int) -> tuple[Tensor, Tensor]:
    """Gram matrix, then all eigenvectors by torch.linalg.eigh, on a's device."""
    return _by_gram(a, k, _torch_top)


def _svd(a: Float[Tensor, "m n"], k: int) -> tuple[Tensor, Tensor]:
    """The plain way, and the fallback: a full SVD in float64 on the CPU."""
    u, s, vh = torch.linalg.svd(a.cpu().double(), full_matrices=False)
    return (u[:, :k] * s[:k]).to(a.device, torch.float32), vh[:k].T.to(a.device, torch.float32)


def _by_gram(a: Float[Tensor, "m n"], k: int, top: Eigen) -> tuple[Tensor, Tensor]:
    n = a.shape[1]
    if a.dtype == torch.float32 and n > SMALL and k < n:
        g = _gram(a, torch.float32)
        values, vectors = top(g, min(k + GUARD, n))
        vectors = _orthonormal(vectors.to(a.device))
        projected = a @ vectors[:, :k]
        if _certified(a, projected, vectors, values.cpu().double(), g.diagonal().cpu().double().sum().item()):
            return projected, vectors[:, :k]
    basis = _orthonormal(top(_gram(a, torch.float64), k)[1])
    projected = torch.cat([rows @ basis.to(rows.device) for rows in _parts(a, torch.float64)])
    return projected.to(a.device, torch.float32), basis.to(a.device, torch.float32)


def _gram(a: Float[Tensor, "m n"], dtype: torch.dtype) -> Float[Tensor, "n n"]:
    """The lower triangle of AᵀA, block column by block column: little more than half the work of the whole product."""
    n = a.shape[1]
    g = torch.zeros(n, n, dtype=dtype, device=_place(a, dtype))
    for rows in _parts(a, dtype):
        for j in range(0, n, BLOCK):
            g[j:, j : j + BLOCK].addmm_(rows[:, j:].T, rows[:, j : j + BLOCK])
    return g


def _place(a: Tensor, dtype: torch.dtype) -> torch.device:
    """Where to compute in this dtype: on a's device, but float64 on the CPU where an mps device has none."""
    return torch.device("cpu") if a.device.type == "mps" and dtype == torch.float64 else a.device


def _parts(a: Float[Tensor, "m n"], dtype: torch.dtype) -> Iterator[Float[Tensor, "rows n"]]:
    """A in another dtype, some rows at a time so that there is never a whole copy; whole where the dtype is its own."""
    for rows in (a,) if a.dtype == dtype else torch.split(a, 1024):
        yield rows.to(_place(a, dtype)).to(dtype)


def _orthonormal(v: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """One Newton–Schulz step towards the polar factor: a departure δ of VᵀV from I becomes about δ²."""
    exact = v.cpu().double()  # in float32 the sums of a constant vector round all one way
    excess = exact.T @ exact - torch.eye(v.shape[1], dtype=torch.float64)
    return v - v @ (0.5 * excess).to(v)


def _certified(
    a: Float[Tensor, "m n"],
    projected: Float[Tensor, "m k"],
    vectors: Float[Tensor, "n p"],
    values: Float[Tensor, " n"],
    total: float,
) -> bool:
    """Whether float32 eigenvectors of AᵀA, the first k of them kept, meet the contract.

    Args:
        a: the matrix.
        projected: A V for the k kept vectors.
        vectors: the p ≥ k leading vectors, orthonormal.
        values: all eigenvalues, descending, float64.
        total: ‖A‖_F².
    """
    k, p = projected.shape[1], vectors.shape[1]
    image = a.T @ projected
    inside = vectors.T @ image
    outside = torch.linalg.vector_norm(image - vectors @ inside, dim=0)
    # coupling[i, j], squared: of kept vector i to guard vector j; in the last column, to all that is beyond the guards.
    # One measured number may be small by luck: each counts double, and as no less than rounding could make it.
    coupling = torch.cat([2 * inside[k:], outside[None]]).T.cpu().double().square()
    kept, cut = values[:k, None].clamp(min=0), values[k : p + 1].clamp(min=0)
    if p == len(values):
        coupling = coupling[:, :-1]  # nothing is beyond
    coupling += EPS**2 * kept * cut

    noise = 4 * EPS * values[0].item()  # what rounding does to an eigenvalue
    distance = (kept - cut - noise).clamp(min=1e-300)
    lost = (coupling / torch.maximum(distance, coupling.sqrt())).sum().item()
    moved = ((kept + cut) * coupling / distance**2).sum().sqrt().item()

    rest = max(total - _energy(projected) - 1e-5 * total, 0.0)
    gap = values[k - 1].clamp(min=0).sqrt() - (values[k] - noise).clamp(min=0).sqrt()
    degenerate = gap.item() < 0.8e-3 * values[0].sqrt().item()  # 0.8: the gap itself is known to about 0.2e-3
    enough = lost < 2e-6 * math.sqrt(total * rest)  # half the slack; never where nothing seems to be left out
    return enough and (degenerate or moved <= 0.9e-5 * math.sqrt(total))


# --- the leading eigenvectors of a symmetric matrix given by its lower triangle: (G, p) -> (all values, p vectors) ---


def _torch_top(g: Float[Tensor, "n n"], p: int) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(g)
    return values.flip(0), vectors[:, -p:].flip(1)


def _lapack_top(g: Float[Tensor, "n n"], p: int) -> tuple[Tensor, Tensor]:
    g = g.cpu()
    n, dtype = len(g), g.dtype
    if dtype not in LAPACK or p > n // 5:  # with many vectors, divide and conquer is faster
        return _torch_top(g, p)
    sytrd, sterf, stein, ormtr = (LAPACK[dtype][name] for name in SIGNATURES)
    q, z = g.clone(), torch.empty(p, n, dtype=dtype)  # Fortran reads transposed: our lower triangle is its upper one
    d, e, tau, work = (torch.empty(size, dtype=dtype) for size in (n, n, n, 64 * n))
    ones, ends, iwork, failed = (torch.full((n,), x, dtype=torch.int32) for x in (1, n, 0, 0))
    # stein is told of one block, however the matrix splits, and takes sterf's eigenvalues: stebz, which would find the
    # blocks and only the eigenvalues needed, is no faster and can lose eigenvalues of a cluster without saying so.
    failure = (
        sytrd(b"U", n, q, n, d, e, tau, work, 64 * n)
        or sterf(n, values := d.clone(), e.clone())
        or stein(n, d, e, p, values[-p:].clone(), ones, ends, z, n, work, iwork, failed)
        or ormtr(b"L", b"U", b"N", n, p, q, n, tau, z, n, work, 64 * n)
    )
    # Inverse iteration inside a cluster can also end with vectors that are not orthogonal.
    if failure or (z @ z.T - torch.eye(p, dtype=dtype)).abs().max() > 1e-4:
        return _torch_top(g, p)
    return values.flip(0), z.flip(0).T


# LAPACK's own routines, called so that the interpreter is free meanwhile: scipy's wrappers hold its lock.
# Arguments as in Fortran, each by reference; c: char, i: 32-bit int, r: real. The last is `info`, returned.
SIGNATURES = {"sytrd": "cirirrrrii", "sterf": "irri", "stein": "irririiririii", "ormtr": "ccciirirririi"}


def _lapack_routine(name: str, signature: str) -> Callable[..., int] | None:
    """A routine of scipy's LAPACK, or None where scipy was built with other types than these."""
    capsule = scipy.linalg.cython_lapack.__pyx_capi__.get(name)
    if capsule is None:
        return None
    get_name, get_pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    declared = get_name(capsule)
    types = {"c": "char *", "i": "int *", "r": "real *"}
    real = {"s": r"\b(float|__pyx_t_\w+_s) \*", "d": r"\b(double|__pyx_t_\w+_d) \*"}[name[0]]
    if re.sub(real, "real *", declared.decode()) != f"void ({', '.join(types[c] for c in signature)})":
        return None
    routine = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(signature))(get_pointer(capsule, declared))

    def call(*arguments: bytes | int | Tensor) -> int:
        info = ctypes.c_int()
        pointers = [
            x.data_ptr() if isinstance(x, Tensor) else ctypes.byref(ctypes.c_int(x)) if isinstance(x, int) else x
            for x in arguments
        ]
        routine(*pointers, ctypes.byref(info))
        return info.value

    return call


def _load_lapack() -> dict[torch.dtype, dict[str, Callable[..., int]]]:
    """The routines in float32 and float64, or nothing if any is missing."""
    table: dict[torch.dtype, dict[str, Callable[..., int]]] = {}
    for prefix, dtype in (("s", torch.float32), ("d", torch.float64)):
        for name, signature in SIGNATURES.items():
            routine = _lapack_routine(prefix + name, signature)
            if routine is None:
                return {}
            table.setdefault(dtype, {})[name] = routine
    return table


LAPACK = _load_lapack()
SOLVERS: dict[str, Solver] = {"gram-lapack": _gram_lapack, "gram-torch": _gram_torch, "svd": _svd}
