"""Problems whose constants are known in closed form: where the theory can be checked without estimating anything.

Two kinds. The log-cosh problem is smooth everywhere, has any number of dimensions, and meets every assumption with constants
that can be written down. The cubic problems live on a small box, and are built so that one bound is nearly attained there:
they show how loose a bound is. :mod:`headstart.verifying.zoo` has both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, hessian, jacrev, vmap

from headstart.theory.bounds import Constants

LossOfTask = Callable[[Tensor, Tensor, Tensor], Tensor]
LOG_COSH_THIRD = 4 / (3 * math.sqrt(3))
"""The largest |d³ log cosh(x)/dx³|, where tanh² = 1/3."""


@dataclass(frozen=True, eq=False)
class Losses:
    """The losses of a task as functions of flat (w, φ).

    Args:
        support, query: L_S and L_D of (n_w,) w, (n_φ,) φ and a tensor that says which task it is.
    """

    support: LossOfTask
    query: LossOfTask

    def path(self, w: Tensor, phi: Tensor, task: Tensor, steps: int, lr: float) -> list[Tensor]:
        """w_0 … w_N of one task: Algorithm 1, lines 5 to 7."""
        path = [w]
        for _ in range(steps):
            path.append(path[-1] - lr * grad(self.support)(path[-1], phi, task))
        return path

    def objective(self, w: Tensor, phi: Tensor, task: Tensor, steps: int, lr: float) -> Tensor:
        """F of one task: ``L_D(w_N(w, φ), φ)``."""
        return self.query(self.path(w, phi, task, steps, lr)[-1], phi, task)


@dataclass(frozen=True, eq=False)
class Problem(Losses):
    """Tasks with their losses, and constants that hold for all of them.

    Args:
        name: what it is called in tables.
        constants: true on the region, for every task.
        tasks: (T, ·) the parameters of each task; the distribution over tasks is uniform on the rows.
        n_w, n_phi: numbers of parameters.
        start_w, start_phi: half the edge of the boxes that starts are drawn from.
        region: half the edge of the box of (w, φ) that the constants are true on; infinite where they hold everywhere.
        lower: a lower bound of L_D, which the convergence bound needs; None where there is none.
    """

    name: str
    constants: Constants
    tasks: Tensor
    n_w: int
    n_phi: int
    start_w: float
    start_phi: float
    region: float = math.inf
    lower: float | None = None

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(count, n_w) starts, (count, n_φ) shared parameters and (count, ·) tasks, uniform on their boxes."""
        w, phi = (2 * torch.rand(count, n, generator=generator, dtype=torch.float64) - 1 for n in (self.n_w, self.n_phi))
        task = self.tasks[torch.randint(len(self.tasks), (count,), generator=generator)]
        return self.start_w * w, self.start_phi * phi, task

    def values(self, w: Tensor, phi: Tensor, task: Tensor, steps: int, lr: float) -> Tensor:
        """(n,) objectives of n points, each with its task."""
        return vmap(lambda w, p, t: self.objective(w, p, t, steps, lr))(w, phi, task)

    def gradients(self, w: Tensor, phi: Tensor, task: Tensor, steps: int, lr: float) -> tuple[Tensor, Tensor]:
        """(n, n_w) ∂F/∂w and (n, n_φ) ∂F/∂φ of n points by autograd through the path, each with its task."""
        return vmap(grad(lambda w, p, t: self.objective(w, p, t, steps, lr), argnums=(0, 1)))(w, phi, task)

    def blocks(self, w: Tensor, phi: Tensor, task: Tensor, steps: int, lr: float) -> dict[str, Tensor]:
        """(n,) spectral norms of the blocks of ∇²F at n points: the local values of the four Lipschitz constants."""
        second = vmap(hessian(lambda w, p, t: self.objective(w, p, t, steps, lr), argnums=(0, 1)))(w, phi, task)
        named = {"w_w": second[0][0], "w_phi": second[0][1], "phi_w": second[1][0], "phi_phi": second[1][1]}
        return {name: torch.linalg.matrix_norm(block, ord=2) for name, block in named.items()}

    def farthest(self, w: Tensor, phi: Tensor, task: Tensor, steps: int, lr: float) -> float:
        """The largest coordinate of (w_m, φ) on the paths of n points, as a share of the region; 0 where it has no end."""
        paths = vmap(lambda w, p, t: torch.stack(self.path(w, p, t, steps, lr)))(w, phi, task)
        return max(float(paths.abs().max()), float(phi.abs().max())) / self.region


def proposition_1(losses: Losses, w: Tensor, phi: Tensor, task: Tensor, steps: int, lr: float) -> tuple[Tensor, Tensor]:
    """∂F/∂w and ∂F/∂φ of one task from dense matrices (paper: Proposition 1), with the products written out.

    ``∂/∂w = Π (I − αH_m) g`` and ``∂/∂φ = ∇_φ L_D − α Σ_m C_m Π_{j>m} (I − αH_j) g``.
    """
    path, eye = losses.path(w, phi, task, steps, lr), torch.eye(len(w), dtype=w.dtype)
    g, direct = grad(losses.query, argnums=(0, 1))(path[-1], phi, task)
    H = [hessian(losses.support)(w_m, phi, task) for w_m in path[:-1]]
    C = [jacrev(grad(losses.support), argnums=1)(w_m, phi, task).T for w_m in path[:-1]]  # n_φ × n_w
    for m in range(steps):
        tail = g
        for j in range(steps - 1, m, -1):
            tail = (eye - lr * H[j]) @ tail
        direct = direct - lr * C[m] @ tail
    for m in range(steps - 1, -1, -1):
        g = (eye - lr * H[m]) @ g
    return g, direct


def log_cosh(
    name: str,
    mu: float,
    *,
    n_w: int = 3,
    n_phi: int = 4,
    terms: int = 5,
    tasks: int = 8,
    concave: bool = False,
    start: float = 2.0,
    scale: float = 0.5,
    coupling: float = 1.0,
    seed: int = 0,
) -> Problem:
    """``L_S = (μ/2)‖w‖² + Σ_i ± log cosh(a_iᵀw + b_iᵀφ − c_i)`` and ``L_D = Σ_i log cosh(a'_iᵀw + b'_iᵀφ − c'_i)``.

    Tasks differ in c and c'. With s = (a, b): |(log cosh)''| ≤ 1 and |(log cosh)'''| ≤ 4/(3√3) give all constants.

    Args:
        name: what it is called.
        mu: μ; 0 for a problem that is not strongly convex.
        n_w, n_phi: numbers of parameters.
        terms: of each sum.
        tasks: T.
        concave: whether every second term of L_S is subtracted, so that L_S is not convex.
        start: half the edge of the box that starts are drawn from.
        scale: standard deviation of the entries of a, b, a' and b'.
        coupling: of b and b', by which φ enters, relative to that of a and a'.
        seed: of a, b, c, a', b', c'.

    Example:
        >>> problem = log_cosh("example", mu=0.5)
        >>> problem.constants.strongly_convex, problem.lower
        (True, 0.0)
    """
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    a, b, a_q, b_q = (scale * normal(terms, n) for n in (n_w, n_phi, n_w, n_phi))
    b, b_q, offsets = coupling * b, coupling * b_q, normal(tasks, 2 * terms)
    sign = torch.ones(terms, dtype=torch.float64)
    sign[1::2] = -1 if concave else 1

    def support(w: Tensor, phi: Tensor, task: Tensor) -> Tensor:
        return mu / 2 * w @ w + sign @ _log_cosh(a @ w + b @ phi - task[:terms])

    def query(w: Tensor, phi: Tensor, task: Tensor) -> Tensor:
        return _log_cosh(a_q @ w + b_q @ phi - task[terms:]).sum()

    s, s_q = torch.cat([a, b], 1), torch.cat([a_q, b_q], 1)
    ridge = torch.diag(torch.tensor([mu] * n_w + [0.0] * n_phi, dtype=torch.float64))
    upper = [ridge + s[sign > 0].T @ s[sign > 0], s[sign < 0].T @ s[sign < 0], s_q.T @ s_q]  # of ±∇²L_S and of ∇²L_D
    L = max(float(torch.linalg.matrix_norm(u, ord=2)) for u in upper)
    constants = Constants(
        mu=-L if concave else mu,
        L=L,
        M=math.sqrt(terms) * float(torch.linalg.matrix_norm(s_q, ord=2)),  # ‖Σ tanh_i s'_i‖ ≤ ‖s'‖ √terms
        rho=LOG_COSH_THIRD * float((a.norm(dim=1) ** 2 * s.norm(dim=1)).sum()),
        tau=LOG_COSH_THIRD * float((a.norm(dim=1) * b.norm(dim=1) * s.norm(dim=1)).sum()),
    )
    return Problem(support, query, name, constants, offsets, n_w, n_phi, start, start, lower=0.0)


def cubic(
    name: str,
    steps: int,
    lr: float,
    *,
    h: float,
    c: float = 0.0,
    www: float = 0.0,
    wwp: float = 0.0,
    wpp: float = 0.0,
    slope: tuple[float, float] = (0.0, 0.0),
    curvature: tuple[float, float, float] = (0.0, 0.0, 0.0),
    signs: tuple[float, ...] = (1.0,),
    region: float = 1e-3,
) -> Problem:
    """A problem in one w and one φ whose constants are read off the corners of a box; starts are such that paths stay in it.

    ``L_S = h(w² − φ²)/2 + c wφ + www w³/6 + wwp w²φ/2 + wpp wφ²/2`` (the term −hφ²/2 makes ‖∇²L_S‖ = √(h² + c²), so that H and
    C are both as large as L lets them be) and ``L_D = ± slope·(w, φ) + (w, φ) G (w, φ)ᵀ/2``.

    Args:
        name: what it is called.
        steps, lr: N and α that the starts are for.
        h, c: ∇²_w L_S and ∇_φ∇_w L_S in the middle of the box.
        www, wwp, wpp: third derivatives of L_S.
        slope: ∇L_D in the middle of the box.
        curvature: the entries ww, wφ, φφ of G.
        signs: one task for each sign of the slope.
        region: half the edge of the box.

    Example:
        >>> cubic("example", steps=2, lr=1.0, h=0.5).constants.mu
        0.5
    """
    G = torch.tensor([[curvature[0], curvature[1]], [curvature[1], curvature[2]]], dtype=torch.float64)
    g = torch.tensor(slope, dtype=torch.float64)

    def support(w: Tensor, phi: Tensor, task: Tensor) -> Tensor:
        cubic_terms = www * w**3 / 6 + wwp * w**2 * phi / 2 + wpp * w * phi**2 / 2
        return (h * (w**2 - phi**2) / 2 + c * w * phi + cubic_terms).sum()

    def query(w: Tensor, phi: Tensor, task: Tensor) -> Tensor:
        z = torch.cat([w, phi])
        return task[0] * g @ z + z @ G @ z / 2

    corners = torch.tensor([[x, y] for x in (-region, region) for y in (-region, region)], dtype=torch.float64)
    w, phi = corners.T
    # Norms of matrices that are affine in (w, φ) are convex, so their largest values are at corners.
    H, C, E = h + www * w + wwp * phi, c + wwp * w + wpp * phi, -h + wpp * w
    joint = torch.stack([torch.stack([H, C], -1), torch.stack([C, E], -1)], -2)
    L = max(float(torch.linalg.matrix_norm(joint, ord=2).max()), float(torch.linalg.matrix_norm(G, ord=2)))
    mu = float(H.min()) if float(H.min()) > 0 else -L
    M = max(float((sign * g + z @ G).norm()) for sign in signs for z in corners)
    constants = Constants(mu, L, M, rho=math.hypot(www, wwp), tau=math.hypot(wwp, wpp))
    # |w_m| ≤ q^m |w_0| + αL S_m |φ|, as ∇_w L_S(0, 0) = 0.
    q = max(abs(1 - lr * mu), abs(1 - lr * L))
    grown, pushed = max(1.0, q**steps), lr * L * sum(q**i for i in range(steps))
    start_phi = region if not (c or wwp or wpp) else min(region, region / (2 * pushed))
    tasks = torch.tensor(signs, dtype=torch.float64)[:, None]
    lower = 0.0 if not any(slope) and float(torch.linalg.eigvalsh(G)[0]) >= 0 else None
    return Problem(support, query, name, constants, tasks, 1, 1, region / (2 * grown), start_phi, region, lower)


def _log_cosh(x: Tensor) -> Tensor:
    return torch.nn.functional.softplus(2 * x) - x - math.log(2)
