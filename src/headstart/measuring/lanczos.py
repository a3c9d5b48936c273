"""Eigenvalues and norms of linear maps that are known only by their products with vectors."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.errors import MethodError

Product = Callable[[Tensor], Tensor]
DENSE = 64
"""Matrices up to this size are built from their products and solved whole."""
DIVERGED = "the inner Hessian holds values that are not finite: the inner loop diverges; use a smaller lr"


@dataclass(frozen=True, eq=False)
class Ends:
    """The two ends of a spectrum, a vector rich in both eigenvectors, and whether they converged."""

    smallest: float
    largest: float
    vector: NDArray[Any] | None = None
    converged: bool = True


def ends_of(product: Product, like: Tensor, tolerance: float, restarts: int, start: NDArray[Any] | None) -> Ends:
    """The ends of the spectrum of a symmetric matrix that is known by its products.

    Args:
        product: v ↦ H v; runs in the dtype of ``like``, while the iteration is in float64.
        like: a tensor with the length, dtype and device of v.
        tolerance: relative to the largest magnitude.
        restarts: at most.
        start: the first vector; None for a fixed random one.
    """
    size = like.numel()
    recent: list[tuple[NDArray[Any], NDArray[Any]]] = []

    def of(v: NDArray[Any]) -> NDArray[Any]:
        found = product(torch.from_numpy(np.ascontiguousarray(v, dtype=np.float64).reshape(-1)).to(like)).detach().double().cpu().numpy()
        if not np.isfinite(found).all():
            raise MethodError(DIVERGED)
        return found

    if size <= DENSE:
        H = np.stack([of(e) for e in np.eye(size)])
        values = np.linalg.eigvalsh((H + H.T) / 2)
        return Ends(float(values[0]), float(values[-1]))

    v = np.random.default_rng(0).standard_normal(size)
    v /= np.linalg.norm(v)
    if start is not None:
        v = start + 0.1 * v
    probe, scale = v / np.linalg.norm(v), 0.0
    for _ in range(5):
        probe = of(probe)
        scale = float(np.linalg.norm(probe))
        if scale == 0:
            return Ends(0.0, 0.0)
        probe /= scale
    # ARPACK's tolerance is relative to each eigenvalue, and the smallest may be 0: after a shift both ends are of the size
    # of the largest. The Krylov space is the same.
    shift, ncv = 4 * scale, min(size, 24)

    def shifted(v: NDArray[Any]) -> NDArray[Any]:
        v = v.reshape(-1)
        found = of(v)
        recent.append((v.copy(), found))
        del recent[: -2 * ncv]
        return found + shift * v

    arpack = arpack_module()
    operator = arpack.LinearOperator((size, size), matvec=shifted, dtype=np.float64)
    try:
        values, vectors = arpack.eigsh(operator, k=2, which="BE", v0=v, ncv=ncv, maxiter=restarts, tol=tolerance)
    except arpack.ArpackNoConvergence:
        # Of ARPACK's own estimates only those that converged can be had. Rayleigh–Ritz in the span of the last products
        # is as good, and its ends, too, lie inside the spectrum.
        values, vectors = _rayleigh_ritz(recent)
        return Ends(float(values[0]), float(values[-1]), vectors[:, 0] + vectors[:, -1], converged=False)
    low, high = np.argmin(values), np.argmax(values)
    return Ends(float(values[low] - shift), float(values[high] - shift), vectors[:, low] + vectors[:, high])


def _rayleigh_ritz(pairs: list[tuple[NDArray[Any], NDArray[Any]]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Ritz values and vectors in the span of vectors v whose products H v are known."""
    V, HV = np.stack([p[0] for p in pairs], 1), np.stack([p[1] for p in pairs], 1)
    U, s, Wt = np.linalg.svd(V, full_matrices=False)
    kept = s > 1e-6 * s[0]
    back = Wt[kept].T / s[kept]  # V @ back is the orthonormal basis U
    small = U[:, kept].T @ HV @ back
    values, y = np.linalg.eigh((small + small.T) / 2)
    return values, U[:, kept] @ y


def operator_norm(product: Product, start: Tensor, steps: int) -> tuple[float, Tensor]:
    """A lower estimate of the norm of a linear map of a space into itself, and a unit vector that is stretched by it.

    In the Krylov space of the start, with an orthonormal basis Q, it is the largest singular value of ``A Q``. The map need
    not be symmetric. For symmetric ones this is a Lanczos iteration without restarts.

    Args:
        product: v ↦ A v.
        start: the first vector.
        steps: products to take.

    Example:
        >>> A = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
        >>> round(operator_norm(lambda v: A @ v, torch.tensor([1.0, 0.0]), steps=2)[0], 4)
        4.0
    """
    q = start / start.norm()
    basis, images = [], []
    for _ in range(min(steps, start.numel())):
        basis.append(q)
        images.append(product(q).detach().to(start))
        q = images[-1]
        length = float(q.norm())
        if not length:
            break
        for _ in range(2):  # twice is enough
            for b in basis:
                q = q - (b @ q) * b
        if float(q.norm()) <= 1e-6 * length:
            break
        q = q / q.norm()
    gram = torch.stack([torch.stack([a @ b for b in images]) for a in images]).double()
    values, y = torch.linalg.eigh(gram)
    best = sum((float(c) * b for c, b in zip(y[:, -1], basis, strict=True)), torch.zeros_like(start))
    return float(values[-1].clamp_min(0).sqrt()), best / best.norm()


def arpack_module() -> Any:
    try:
        return importlib.import_module("scipy.sparse.linalg")
    except ImportError as error:
        raise MethodError("eigenvalues of large Hessians need SciPy: pip install 'headstart[theory]'") from error
