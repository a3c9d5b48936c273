"""Many small quadratic programs over products of simplices, solved to convergence and differentiated by their optimality conditions.

Each is ``min ½ Σ_k u_kᵀ K u_k + ⟨Q, u⟩`` over (S, C) numbers u, whose rows are at least 0 and sum to one. A primal-dual interior-point
method keeps ``u, z > 0`` and lets μ = ⟨u, z⟩/(SC) fall to zero under

    K u_k + Q_k − ν − z_k = 0,   Σ_k u_k = 1,   u z = μ

A Newton step for these is ``(K + D_k) du_k = b_k + dν`` with D = z/u and ``Σ_k du_k = r``: one S×S system for each column and one for
dν, never one of SC×SC. At the solution the same system is the derivative of the solution (Amos and Kolter, ICML 2017, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.errors import MethodError

ITERATIONS = 100
TOLERANCE, ENOUGH = 1e-12, 1e-8
"""Of μ, relative to the largest number in the gradient K u + Q: what is aimed at, and what is not converged above."""
ROUNDING, LEAST, DERIVED = 1e-15, 1e-13, 1e-9
"""Of the largest number in K: below the first μ is not known; the second is the least D of a step, and the third that of the derivative,
where K has no inverse: u is not unique along its null space then, though K u is, and what is not unique must not grow out of rounding."""
BACK_OFF = 0.995
"""Of the step to the boundary."""


@dataclass(frozen=True)
class Solution:
    """Where T programs are solved.

    Args:
        u: (T, S, C) the solution.
        system: the Newton system there.
        gap: (T,) μ, relative to the largest number in the gradient K u + Q.
    """

    u: Tensor
    system: Newton
    gap: Tensor

    def moved(self, b: Tensor) -> Tensor:
        """u as a function of b, (T, S, C) small changes of −(K u + Q): its value is u where b is zero, and its derivative the program's."""
        return self.u + self.system.solve(b, torch.zeros_like(b[..., 0]))[0]


class Newton:
    """Solves ``(K + D_k) x_k = b_k + y``, ``Σ_k x_k = r`` for many b and r."""

    def __init__(self, K_TSS: Tensor, D_TSC: Tensor, least: float = LEAST) -> None:
        inside = K_TSS.unsqueeze(1) + torch.diag_embed(torch.maximum(D_TSC, least * _size(K_TSS)[:, None, None]).mT)
        self.inverse_TCSS = torch.cholesky_inverse(torch.linalg.cholesky_ex(inside)[0])
        self.root_TSS = torch.linalg.cholesky_ex(self.inverse_TCSS.sum(1))[0]

    def solve(self, b: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """(T, S, C) x and (T, S) y."""
        by_itself = self._by_column(b)
        y = torch.cholesky_solve((r - by_itself.sum(-1)).unsqueeze(-1), self.root_TSS).squeeze(-1)
        return by_itself + self._by_column(y.unsqueeze(-1).expand_as(b)), y

    def _by_column(self, b: Tensor) -> Tensor:
        return (self.inverse_TCSS @ b.mT.unsqueeze(-1)).squeeze(-1).mT


def solve(K_TSS: Tensor, Q_TSC: Tensor) -> Solution:
    """Solves T programs at once, each until it has converged.

    Args:
        K_TSS: symmetric, without negative eigenvalues; float64.
        Q_TSC: the linear terms.

    Raises:
        MethodError: one did not converge. Programs whose numbers are not finite give such numbers.

    Example:
        >>> K, Q = torch.zeros(1, 1, 1).double(), torch.tensor([[[1.0, -1.0, 0.5]]]).double()
        >>> solve(K, Q).u.round(decimals=6) + 0.0
        tensor([[[0., 1., 0.]]], dtype=torch.float64)
    """
    finite = K_TSS.isfinite().all(2).all(1) & Q_TSC.isfinite().all(2).all(1)
    K_TSS, Q_TSC = (torch.where(finite[:, None, None], v, 0.0) for v in (K_TSS, Q_TSC))
    u = torch.full_like(Q_TSC, 1 / Q_TSC.shape[-1])
    gradient = K_TSS @ u + Q_TSC
    nu = gradient.amin(-1) - _size(gradient)[:, None]  # so that z > 0 and every condition but u z = 0 holds
    known = ROUNDING * _size(K_TSS)
    z = gradient - nu.unsqueeze(-1)
    for _ in range(ITERATIONS):
        mu = (u * z).mean((1, 2))
        open_ = mu > TOLERANCE * _size(K_TSS @ u + Q_TSC) + known
        if not bool(open_.any()):
            break
        system = Newton(K_TSS, z / u)
        du, dnu, dz = _direction(K_TSS, Q_TSC, u, nu, z, system, mu)
        step = torch.minimum(_to_boundary(u, du), _to_boundary(z, dz)) * open_
        u, nu, z = u + step[:, None, None] * du, nu + step[:, None] * dnu, z + step[:, None, None] * dz
    gap = ((u * z).mean((1, 2)) - known).clamp_min(0) / _size(K_TSS @ u + Q_TSC)
    if bool((gap > ENOUGH).any()):
        raise MethodError(
            f"a support-vector head did not converge: its relative gap is {float(gap.max()):.1g} after {ITERATIONS} iterations; take a"
            " smaller C, or features of a usual size"
        )
    return Solution(torch.where(finite[:, None, None], u, torch.nan), Newton(K_TSS, z / u, DERIVED), gap)


def _direction(K: Tensor, Q: Tensor, u: Tensor, nu: Tensor, z: Tensor, system: Newton, mu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mehrotra's predictor and corrector: how far a pure Newton step would get says how much to centre."""
    left = z + nu.unsqueeze(-1) - K @ u - Q
    missing = 1 - u.sum(-1)

    def along(complement: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        du, dnu = system.solve(left + complement / u, missing)
        return du, dnu, (complement - z * du) / u

    du, _, dz = along(-u * z)
    reach = torch.minimum(_to_boundary(u, du), _to_boundary(z, dz))[:, None, None]
    after = ((u + reach * du) * (z + reach * dz)).mean((1, 2))
    centre = (after / mu).clamp(0, 1) ** 3 * mu
    return along(centre[:, None, None] - u * z - du * dz)


def _to_boundary(x: Tensor, dx: Tensor) -> Tensor:
    """(T,) the longest step, at most 1, that keeps x above zero."""
    ratio = torch.where(dx < 0, -x / dx.where(dx < 0, -torch.ones_like(dx)), torch.full_like(x, torch.inf))
    return (BACK_OFF * ratio.amin((1, 2))).clamp(max=1.0)


def _size(x: Tensor) -> Tensor:
    """(T,) the largest absolute number, above zero."""
    return x.abs().amax((1, 2)).clamp_min(torch.finfo(x.dtype).tiny ** 0.5)
