"""Explicit constants behind the convergence of ANIL: how smooth the meta-objective is, and what step sizes that allows.

Everything here is a function of numbers. The paper (Ji, Lee, Liang, Poor, NeurIPS 2020) proves orders; the constants are
derived in docs/theory.md. Letters as there: w adapts, φ is shared, N inner steps of size α, ``r_m`` the path sensitivity::

    q = max(|1 − αμ|, |1 − αL|)  strongly convex,  1 + αL  otherwise;   S_m = Σ_{i<m} q^i
    r_m^w = q^m,   r_m^φ = 1 + αL S_m
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from headstart.errors import ConfigError

Block = Literal["w", "phi"]


@dataclass(frozen=True)
class Constants:
    """What is assumed of the support loss L_S and the query loss L_D of every task (paper: Assumptions 1 to 3).

    Args:
        mu: least eigenvalue of ∇²_w L_S; 0 or less means that L_S is not strongly convex, and then only L is used.
        L: Lipschitz constant of the gradients of L_S and of L_D in (w, φ) together.
        M: Lipschitz constant of L_D in (w, φ) together.
        rho: Lipschitz constant of ∇²_w L_S in (w, φ).
        tau: Lipschitz constant of ∇_φ∇_w L_S in (w, φ).

    Raises:
        ConfigError: a constant is negative or not finite, L is zero, or μ is above L.

    Example:
        >>> Constants(mu=0.1, L=1.0, M=2.0, rho=0.5, tau=0.5).strongly_convex
        True
    """

    mu: float
    L: float
    M: float
    rho: float
    tau: float

    def __post_init__(self) -> None:
        for name, value in (("L", self.L), ("M", self.M), ("rho", self.rho), ("tau", self.tau)):
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}={value!r}: a Lipschitz constant must be 0 or more and finite; give an upper estimate")
        if not self.L > 0:
            raise ConfigError(f"L={self.L!r}: the gradients of the losses must change somewhere; give a value above 0")
        if not self.mu <= self.L:
            raise ConfigError(f"mu={self.mu!r} is above L={self.L!r}: the least eigenvalue of a Hessian is at most the largest; swap them")

    @property
    def strongly_convex(self) -> bool:
        """Whether μ > 0: the first column of the paper's table applies; otherwise the second."""
        return self.mu > 0


@dataclass(frozen=True)
class Lipschitz:
    """Block Lipschitz constants of the meta-gradient: ``w_phi`` is that of ∂F/∂w in φ.

    Args:
        w_w, w_phi, phi_w, phi_phi: the four blocks; those with φ are 0 where everything adapts (MAML).
    """

    w_w: float
    w_phi: float
    phi_w: float
    phi_phi: float


@dataclass(frozen=True)
class StepSizes:
    """Outer step sizes of Algorithm 1.

    Args:
        w: β_w.
        phi: β_φ; 0 where everything adapts.
    """

    w: float
    phi: float

    @property
    def lr(self) -> float:
        """The larger of the two: the outer learning rate that :attr:`factors` scale."""
        return max(self.w, self.phi)

    @property
    def factors(self) -> Mapping[str, float]:
        """What to multiply one outer learning rate by for the parameter groups ``w`` and ``phi``, at most 1 each.

        Example:
            >>> StepSizes(w=0.2, phi=0.05).factors
            {'w': 1.0, 'phi': 0.25}
        """
        return {"w": self.w / self.lr, "phi": self.phi / self.lr} if self.lr else {"w": 1.0, "phi": 1.0}


def contraction(c: Constants, lr: float) -> float:
    """q: by how much one inner step multiplies a distance in w, at most. Explicit constant, derived in docs/theory.md.

    Args:
        c: the constants.
        lr: α, above 0.

    Raises:
        ConfigError: α is not above 0 and finite.

    Example:
        >>> contraction(Constants(0.5, 1.0, 1.0, 0.0, 0.0), lr=1.0), contraction(Constants(0.0, 1.0, 1.0, 0.0, 0.0), lr=1.0)
        (0.5, 2.0)
    """
    if not (math.isfinite(lr) and lr > 0):
        raise ConfigError(f"lr={lr!r}: the inner step size must be above 0 and finite; mu/L² to 1/L is usual")
    return max(abs(1 - lr * c.mu), abs(1 - lr * c.L)) if c.strongly_convex else 1 + lr * c.L


def geometric_sum(c: Constants, lr: float, m: int) -> float:
    """S_m = Σ_{i<m} q^i. Explicit constant, derived in docs/theory.md."""
    q = contraction(c, lr)
    return sum(q**i for i in range(_whole(m)))


def sensitivity(c: Constants, lr: float, m: int, block: Block) -> float:
    """r_m: how far (w_m, φ) moves per unit of w_0 or of φ, at most. Explicit constant, derived in docs/theory.md.

    Args:
        c: the constants.
        lr: α.
        m: the inner step, 0 to N.
        block: what moves: ``"w"`` or ``"phi"``.

    Example:
        >>> sensitivity(Constants(0.5, 1.0, 1.0, 0.0, 0.0), lr=1.0, m=2, block="w")
        0.25
    """
    if block == "w":
        return contraction(c, lr) ** _whole(m)
    return 1 + lr * c.L * geometric_sum(c, lr, m)


def smoothness_of_w(c: Constants, lr: float, steps: int, block: Block) -> float:
    """ℓ_wx, the Lipschitz constant of ∂F/∂w in the block x. Explicit constant, derived in docs/theory.md.

    ``ℓ_wx = M αρ q^{N−1} Σ_{j<N} r_j^x + L q^N r_N^x``; its order is in the table of docs/theory.md.

    Example:
        >>> smoothness_of_w(Constants(0.5, 1.0, 1.0, 0.0, 0.0), lr=1.0, steps=2, block="w")  # L q^{2N}
        0.0625
    """
    q, N, r = contraction(c, lr), _whole(steps), [sensitivity(c, lr, m, block) for m in range(steps + 1)]
    hessians = sum(c.M * lr * c.rho * q ** (N - 1) * r[j] for j in range(N))
    end = c.L * q**N * r[N]
    return hessians + end


def smoothness_of_phi(c: Constants, lr: float, steps: int, block: Block) -> float:
    """ℓ_φx, the Lipschitz constant of ∂F/∂φ in the block x. Explicit constant, derived in docs/theory.md.

    ``ℓ_φx = α [ M Σ_m ( τ r_m^x q^{N−1−m} + L αρ q^{N−2−m} Σ_{m<j<N} r_j^x ) + L² S_N r_N^x ] + L r_N^x``; its order is in the
    table of docs/theory.md.

    Example:
        >>> smoothness_of_phi(Constants(0.5, 1.0, 1.0, 0.0, 0.0), lr=1.0, steps=1, block="w")  # L q (αL + 1)
        1.0
    """
    q, N, r = contraction(c, lr), _whole(steps), [sensitivity(c, lr, m, block) for m in range(steps + 1)]
    mixed = sum(c.M * lr * c.tau * r[m] * q ** (N - 1 - m) for m in range(N))
    hessians = sum(c.M * lr * c.L * lr * c.rho * q ** (N - 2 - m) * r[j] for m in range(N) for j in range(m + 1, N))
    through_path = lr * c.L**2 * geometric_sum(c, lr, N) * r[N]
    direct = c.L * r[N]
    return mixed + hessians + through_path + direct


def lipschitz(c: Constants, lr: float, steps: int, shared: bool = True) -> Lipschitz:
    """The four block Lipschitz constants of the meta-gradient. Explicit constants, derived in docs/theory.md.

    Args:
        c: the constants.
        lr: α.
        steps: N, 0 or more.
        shared: False where everything adapts (MAML), so that there is no φ.

    Raises:
        ConfigError: N is not a whole number of 0 or more.

    Example:
        >>> lipschitz(Constants(0.5, 1.0, 1.0, 0.0, 0.0), lr=1.0, steps=1)
        Lipschitz(w_w=0.25, w_phi=1.0, phi_w=1.0, phi_phi=4.0)
    """
    w_w = smoothness_of_w(c, lr, steps, "w")
    if not shared:
        return Lipschitz(w_w, 0.0, 0.0, 0.0)
    w_phi = smoothness_of_w(c, lr, steps, "phi")
    return Lipschitz(w_w, w_phi, smoothness_of_phi(c, lr, steps, "w"), smoothness_of_phi(c, lr, steps, "phi"))


def deviations(c: Constants, lr: float, steps: int, shared: bool = True) -> tuple[float, float]:
    """(σ_w, σ_φ): how much the gradient of one task differs from the mean, at most. Explicit constants, docs/theory.md.

    ``σ_w ≤ q^N M`` and ``σ_φ ≤ M (1 + αL S_N)``, as standard deviations of a task's gradient; σ_φ is 0 without φ.

    Example:
        >>> deviations(Constants(0.5, 1.0, 3.0, 0.0, 0.0), lr=1.0, steps=1)
        (1.5, 6.0)
    """
    sigma_w = contraction(c, lr) ** _whole(steps) * c.M
    return sigma_w, c.M * (1 + lr * c.L * geometric_sum(c, lr, steps)) if shared else 0.0


def balance(ell: Lipschitz) -> float:
    """t that splits the mixed blocks in proportion: ``√(ℓ_ww/ℓ_φφ)``, so that β_w/β_φ = ℓ_φφ/ℓ_ww. Derived in docs/theory.md.

    Any t > 0 gives a valid bound. This one does not change when w is measured in other units, and keeps β_w growing with N
    while ℓ_ww falls, as the paper's rate for ∂F/∂w has it.
    """
    return math.sqrt(ell.w_w / ell.phi_phi) if ell.w_w > 0 and ell.phi_phi > 0 else 1.0


def step_sizes(c: Constants, lr: float, steps: int, shared: bool = True, t: float | None = None) -> StepSizes:
    """β_w = 1/L_w and β_φ = 1/L_φ, with which Algorithm 1 descends. Explicit constants, derived in docs/theory.md.

    ``L_w = ℓ_ww + c t`` and ``L_φ = ℓ_φφ + c/t`` with ``c = (ℓ_wφ + ℓ_φw)/2``: what one block costs the other.

    Args:
        c: the constants.
        lr: α.
        steps: N.
        shared: False where everything adapts.
        t: above 0; None for :func:`balance`.

    Raises:
        ConfigError: t is not above 0.

    Example:
        >>> step_sizes(Constants(1.0, 2.0, 1.0, 0.0, 0.0), lr=0.5, steps=1).factors["w"]
        1.0
    """
    ell = lipschitz(c, lr, steps, shared)
    if not shared:
        return StepSizes(_inverse(ell.w_w), 0.0)
    t = balance(ell) if t is None else t
    if not t > 0:
        raise ConfigError(f"t={t!r}: the weight between the blocks must be above 0; leave it out for the usual one")
    both = (ell.w_phi + ell.phi_w) / 2
    return StepSizes(_inverse(ell.w_w + both * t), _inverse(ell.phi_phi + both / t))


def convergence_bound(c: Constants, lr: float, steps: int, delta: float, iterations: int, batch: int, shared: bool = True) -> float:
    """The right side of the convergence bound, ``2Δ/K + (β_w σ_w² + β_φ σ_φ²)/B``. Explicit constant, derived in docs/theory.md.

    It bounds the mean over K iterations of ``β_w E‖∂F/∂w‖² + β_φ E‖∂F/∂φ‖²`` for the step sizes of :func:`step_sizes`.

    Args:
        c: the constants.
        lr: α.
        steps: N.
        delta: Δ = F(w_0, φ_0) − inf F.
        iterations: K, 1 or more.
        batch: B, tasks per iteration, 1 or more.
        shared: False where everything adapts.

    Raises:
        ConfigError: K or B is below 1, or Δ is negative.

    Example:
        >>> convergence_bound(Constants(1.0, 1.0, 0.0, 0.0, 0.0), lr=0.5, steps=1, delta=3.0, iterations=10, batch=1)
        0.6
    """
    if iterations < 1 or batch < 1:
        raise ConfigError(f"iterations={iterations}, batch={batch}: both must be at least 1")
    if not delta >= 0:
        raise ConfigError(f"delta={delta!r}: F(w_0, φ_0) − inf F cannot be negative; give F at the start minus a lower bound of F")
    return 2 * delta / iterations + noise_floor(c, lr, steps, shared) / batch


def noise_floor(c: Constants, lr: float, steps: int, shared: bool = True) -> float:
    """``β_w σ_w² + β_φ σ_φ²``, what one task per iteration leaves of the bound. Explicit constant, docs/theory.md."""
    beta, (sigma_w, sigma_phi) = step_sizes(c, lr, steps, shared), deviations(c, lr, steps, shared)
    return beta.w * sigma_w**2 + beta.phi * sigma_phi**2


def _whole(steps: int) -> int:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ConfigError(f"steps={steps!r}: the number of inner steps is a whole number, 0 or more")
    return steps


def _inverse(smoothness: float) -> float:
    """1/L; 0 for a block whose gradient is zero everywhere, which needs no steps."""
    return 1 / smoothness if smoothness > 0 else 0.0
