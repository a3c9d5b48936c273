"""The problems that the theory is verified on, and how nearly each must attain the bounds that it was built for.

For both geometries, on boxes with L = 1:

- *quadratic* reaches ``L q^{2N}`` of ℓ_ww, *cubic* that and the term in ρ, in equal parts and of equal sign;
- *reflected* has a mixed derivative C and a query loss whose Hessian is a reflection: ``L q^N (1 + αL S_N)`` of ℓ_wφ and ℓ_φw;
- *coupled* has the same C and the query loss ‖(w, φ)‖²/2: ``L (1 + αL S_N)²`` of ℓ_φφ;
- *bent* has C and a third derivative in w, and a query loss so steep that only the terms in ρ count;
- *wwφ* and *wφφ* have third derivatives with φ, and reach the terms in τ;
- *opposite* and *turned* are pairs of tasks that pull in opposite directions, and reach σ_w and σ_φ.

What keeps a share from 1: bounds add two lengths at right angles, (1 + a) for √(1 + a²); and where L bounds both H and C, they
cannot both be as large as L, since h² + c² ≤ L². The second costs the nonconvex bounds most, where αLN is not small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from headstart.verifying.problems import Problem, cubic, log_cosh


@dataclass(frozen=True, eq=False)
class Case:
    """A problem with an inner loop.

    Args:
        problem: the problem.
        steps, lr: N and α.
        attains: from the name of a Lipschitz constant (``w_phi``) or deviation (``sigma_w``) to the least share of its bound that
            is reached: what was measured, less about a hundredth.
        shared: False for a problem without φ (MAML).
    """

    problem: Problem
    steps: int
    lr: float
    attains: Mapping[str, float] = field(default_factory=dict)
    shared: bool = True


@dataclass(frozen=True)
class _Tight:
    """One setting of the tight problems: h beside a C that is as large as it can be, and the shares that are reached."""

    kind: str
    steps: int
    lr: float
    h: float
    cubic: float
    reflected: float
    coupled: float
    turned: float
    bent: tuple[float, float, float]  # of ℓ_wφ, ℓ_φw, ℓ_φφ


_TIGHT = (
    _Tight("strongly convex", 1, 0.6, 0.2, cubic=0.99, reflected=0.71, coupled=0.51, turned=0.71, bent=(0, 0, 0)),
    _Tight("strongly convex", 3, 0.6, 0.2, cubic=0.99, reflected=0.70, coupled=0.50, turned=0.70, bent=(0.35, 0.96, 0.46)),
    _Tight("strongly convex", 8, 5 / 3, 0.2, cubic=0.88, reflected=0.82, coupled=0.68, turned=0.82, bent=(0.73, 0.96, 0.77)),
    _Tight("nonconvex", 3, 0.05, -0.1, cubic=0.99, reflected=0.76, coupled=0.75, turned=0.86, bent=(0.04, 0.76, 0.04)),
    _Tight("nonconvex", 1, 0.5, -math.sqrt(0.5), cubic=0.99, reflected=0.63, coupled=0.49, turned=0.70, bent=(0, 0, 0)),
    _Tight("nonconvex", 1, 2.0, -0.5, cubic=0.99, reflected=0.43, coupled=0.43, turned=0.65, bent=(0, 0, 0)),
    _Tight("nonconvex", 2, 2.0, -0.5, cubic=0.99, reflected=0.25, coupled=0.34, turned=0.58, bent=(0.28, 0.56, 0.48)),
    _Tight("nonconvex", 3, 1.0, -math.sqrt(0.5), cubic=0.99, reflected=0.31, coupled=0.25, turned=0.50, bent=(0.26, 0.46, 0.27)),
)


@lru_cache
def zoo() -> tuple[Case, ...]:
    """All cases: log-cosh problems of several dimensions, tight problems for each term, and one without φ."""
    convex, concave = log_cosh("log-cosh", mu=0.5), log_cosh("log-cosh, nonconvex", mu=0.0, concave=True)
    L, mu, L_n = convex.constants.L, convex.constants.mu, concave.constants.L
    cases = [Case(convex, N, lr) for N, lr in ((1, mu / L**2), (4, 1 / L), (10, 1 / L), (3, 2 / (L + mu)))]
    cases += [Case(concave, N, 1 / (N * L_n)) for N in (1, 3, 10)]
    for setting in _TIGHT:
        cases += _quadratic_and_beyond(setting)
    for kind, h, second in (("strongly convex", 1.0, 0.74), ("nonconvex", -1.0, 0.82)):
        for N, in_w, in_phi in ((1, 0.99, 0.99), (2, 0.79, second)):
            with_w = cubic(f"{kind} wwφ", N, 0.5, h=h, wwp=1.0, slope=(1e3, 0.0))
            with_phi = cubic(f"{kind} wφφ", N, 0.5, h=h, wpp=1.0, slope=(1e3, 0.0))
            cases += [Case(with_w, N, 0.5, {"w_phi": in_w, "phi_w": in_w}), Case(with_phi, N, 0.5, {"phi_phi": in_phi})]
    # The other end of the spectrum contracts least here, q = |1 − αL|; μ may be any lower bound.
    steep = cubic("strongly convex steep", 3, 1.9, h=1.0, curvature=(1.0, 0.0, 0.0))
    cases.append(Case(replace(steep, constants=replace(steep.constants, mu=0.2)), 3, 1.9, {"w_w": 0.999}))
    alone = cubic("strongly convex without φ", 3, 0.6, h=0.2, curvature=(1.0, 0.0, 0.0))
    cases.append(Case(alone, 3, 0.6, {"w_w": 0.999}, shared=False))
    return tuple(cases)


def _quadratic_and_beyond(s: _Tight) -> list[Case]:
    """The tight problems of one setting, up to *turned*."""
    N, lr, h = s.steps, s.lr, s.h
    c = -math.sqrt(1 - h**2)  # its sign makes ∂w_N/∂φ positive
    alone = h if s.kind == "strongly convex" else -1.0  # without C, H may be as large as L
    q = 1 - lr * alone
    equal = q ** (N + 1) / (lr * sum(q**j for j in range(N)))  # slope at which the two terms of ℓ_ww are equal
    a = -lr * c * sum((1 - lr * h) ** j for j in range(N))  # ∂w_N/∂φ
    unit, up = math.hypot(1, a), (1.0, 0.0, 0.0)
    built: list[tuple[Problem, Mapping[str, float]]] = [
        (cubic(f"{s.kind} quadratic", N, lr, h=alone, curvature=up), {"w_w": 0.999}),
        (cubic(f"{s.kind} cubic", N, lr, h=alone, www=-1.0, slope=(equal, 0.0), curvature=up), {"w_w": s.cubic}),
        (
            cubic(f"{s.kind} reflected", N, lr, h=h, c=c, curvature=(a / unit, 1 / unit, -a / unit)),
            {"w_phi": s.reflected, "phi_w": s.reflected},
        ),
        (cubic(f"{s.kind} coupled", N, lr, h=h, c=c, curvature=(1.0, 0.0, 1.0)), {"phi_phi": s.coupled}),
        (
            cubic(f"{s.kind} bent", N, lr, h=h, c=c, www=-1.0, slope=(1e3, 0.0)),
            dict(zip(("w_phi", "phi_w", "phi_phi"), s.bent, strict=True)),
        ),
        (cubic(f"{s.kind} opposite", N, lr, h=alone, slope=(1.0, 0.0), signs=(1.0, -1.0)), {"sigma_w": 0.99}),
        (cubic(f"{s.kind} turned", N, lr, h=h, c=c, slope=(a, 1.0), signs=(1.0, -1.0)), {"sigma_phi": s.turned}),
    ]
    return [Case(problem, N, lr, attains) for problem, attains in built]
