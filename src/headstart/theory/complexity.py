"""What it costs to reach an accuracy ε: the paper's orders, and numbers from explicit constants.

ε-accuracy is the paper's: ``E‖∂F/∂w‖² ≤ ε`` and ``E‖∂F/∂φ‖² ≤ ε`` on average over the iterations (Ji et al., 2020). The orders
hold up to factors that do not depend on N, K, B and ε; the numbers come from :mod:`headstart.theory.bounds`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from headstart.errors import ConfigError
from headstart.theory.bounds import Constants, noise_floor, step_sizes
from headstart.theory.oracle_counts import ORACLES, oracle_calls

Delta = float | Callable[[int, float], float]


# -- the paper's orders ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Orders:
    """Orders of the number of evaluations to reach ε (paper's order): not counts, comparable over N only.

    Args:
        iterations: K, as the gradient evaluations in φ are B·K with B of order 1/ε.
        gradients_w: of ∇_w L_S.
        gradients_phi: of ∇_φ L_D.
        second_order: of H·v and C·v.
    """

    iterations: float
    gradients_w: float
    gradients_phi: float
    second_order: float


def paper_lipschitz(steps: int, mu: float, L: float) -> dict[str, float]:
    """Lipschitz constants of the meta-gradient, paper's order, for α = μ/L² (strongly convex) or α = O(1/N).

    Args:
        steps: N.
        mu: μ; 0 or less takes the nonconvex column.
        L: the smoothness of the losses.

    Example:
        >>> paper_lipschitz(4, mu=0.0, L=1.0)
        {'w_w': 4.0, 'w_phi': 4.0, 'phi_w': 4.0, 'phi_phi': 4.0}
    """
    if mu <= 0:
        return dict.fromkeys(("w_w", "w_phi", "phi_w", "phi_phi"), float(steps))
    q, kappa = _paper_q(mu, L), L / mu
    return {"w_w": kappa * q**steps, "w_phi": (kappa + 1) * steps * q**steps, "phi_w": kappa * q ** (steps / 2), "phi_phi": kappa**3}


def paper_rates(steps: int, mu: float, L: float, iterations: int, batch: int) -> tuple[float, float]:
    """The rates of E‖∂F/∂w‖² and E‖∂F/∂φ‖² after K iterations with B tasks, paper's order.

    Example:
        >>> paper_rates(4, mu=0.0, L=1.0, iterations=4, batch=2)
        (3.0, 3.0)
    """
    K, B = iterations, batch
    if mu <= 0:
        return steps / K + steps / B, steps / K + steps / B
    q = _paper_q(mu, L)
    half, more = q ** (steps / 2), q ** (3 * steps / 2)
    return mu**-2 * half / K + half / mu / B, (mu**-2 * half + mu**-3) / K + (more / mu + mu**-2) / B


def paper_complexity(steps: int, mu: float, L: float, eps: float) -> Orders:
    """Evaluations to reach ε with ANIL, paper's order (docs/theory.md, section 4).

    Args:
        steps: N.
        mu: μ; 0 or less takes the nonconvex column.
        L: the smoothness of the losses.
        eps: ε.

    Example:
        >>> paper_complexity(2, mu=0.0, L=1.0, eps=0.5)
        Orders(iterations=4.0, gradients_w=16.0, gradients_phi=8.0, second_order=16.0)
    """
    _positive(eps=eps)
    base = float(steps) if mu <= 0 else mu**-4 * _paper_q(mu, L) ** (steps / 2) + mu**-5
    return Orders(base / eps, steps * base / eps**2, base / eps**2, steps * base / eps**2)


def _paper_q(mu: float, L: float) -> float:
    return 1 - mu**2 / L**2  # 1 − αμ with α = μ/L²


# -- explicit constants ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """What it takes to reach ε in the worst case that the constants allow. Explicit constants, derived in docs/theory.md.

    Args:
        steps: N.
        lr: α.
        iterations: K.
        batch: B.
        calls: oracle calls of all K iterations, by the names in :data:`~headstart.theory.oracle_counts.ORACLES`.
    """

    steps: int
    lr: float
    iterations: int
    batch: int
    calls: Mapping[str, int]

    def cost(self, prices: Mapping[str, float] | None = None) -> float:
        """The price of all calls; every call costs 1 where no prices are given.

        Raises:
            ConfigError: a price is for no oracle, or negative.
        """
        prices = dict.fromkeys(ORACLES, 1.0) if prices is None else prices
        for name, price in prices.items():
            if name not in ORACLES or not price >= 0:
                raise ConfigError(f"prices[{name!r}]={price!r}: give prices of 0 or more for some of {', '.join(ORACLES)}")
        return sum(prices.get(name, 0.0) * count for name, count in self.calls.items())


def predict(c: Constants, lr: float, steps: int, eps: float, delta: Delta, shared: bool = True) -> Prediction:
    """K(ε), B(ε) and the oracle calls to reach ε. Explicit constants, derived in docs/theory.md.

    The convergence bound holds both gradients to ε when ``2Δ/K + V/B ≤ ε min(β_w, β_φ)``. Half for each term makes K·B least.

    Args:
        c: the constants; for MAML those of all parameters.
        lr: α.
        steps: N.
        eps: ε.
        delta: Δ = F(w_0, φ_0) − inf F, or a function of (N, α), as F depends on them.
        shared: False where everything adapts (MAML).

    Raises:
        ConfigError: ε is not above 0, or Δ is negative.

    Example:
        >>> predict(Constants(0.5, 1.0, 1.0, 0.0, 0.0), lr=1.0, steps=2, eps=0.1, delta=1.0, shared=False).iterations
        3
    """
    _positive(eps=eps)
    gap = delta(steps, lr) if callable(delta) else delta
    if not gap >= 0:
        raise ConfigError(f"delta={gap!r}: F(w_0, φ_0) − inf F cannot be negative; give F at the start minus a lower bound of F")
    beta = step_sizes(c, lr, steps, shared)
    share = eps * (min(b for b in (beta.w, beta.phi) if b > 0) if shared else beta.w) / 2
    K, B = (max(1, math.ceil(x / share)) if share else 1 for x in (2 * gap, noise_floor(c, lr, steps, shared)))
    return Prediction(steps, lr, K, B, {name: K * count for name, count in oracle_calls(steps, B, shared).items()})


def side_by_side(
    anil: Constants, maml: Constants, lr: Callable[[Constants, int], float], steps: Iterable[int], eps: float, delta: Delta
) -> list[tuple[Prediction, Prediction]]:
    """ANIL and MAML for each N, ready to plot. Explicit constants, derived in docs/theory.md.

    Args:
        anil: constants with w the adapted part.
        maml: constants with w all parameters; rarely strongly convex.
        lr: (constants, N) to α, such as :func:`usual_lr`.
        steps: values of N.
        eps: ε.
        delta: Δ, as in :func:`predict`.
    """
    return [(predict(anil, lr(anil, N), N, eps, delta), predict(maml, lr(maml, N), N, eps, delta, shared=False)) for N in steps]


def usual_lr(c: Constants, steps: int) -> float:
    """The paper's α: μ/L² where strongly convex, 1/(LN) otherwise.

    Example:
        >>> usual_lr(Constants(0.5, 1.0, 1.0, 0.0, 0.0), 3), usual_lr(Constants(0.0, 1.0, 1.0, 0.0, 0.0), 4)
        (0.5, 0.25)
    """
    return c.mu / c.L**2 if c.strongly_convex else 1 / (c.L * max(1, steps))


def cheapest(
    c: Constants,
    eps: float,
    delta: Delta,
    prices: Mapping[str, float] | None = None,
    steps: Iterable[int] = range(1, 51),
    lrs: Sequence[float] | None = None,
    shared: bool = True,
) -> Prediction:
    """The N, and the α, that minimise the predicted cost to ε. Explicit constants, derived in docs/theory.md.

    Args:
        c: the constants.
        eps: ε.
        delta: Δ, as in :func:`predict`.
        prices: of one call of each oracle; None for 1 each.
        steps: values of N to try.
        lrs: values of α to try; None for the paper's alone.
        shared: False where everything adapts (MAML).

    Raises:
        ConfigError: there is nothing to try.

    Example:
        >>> cheapest(Constants(0.0, 1.0, 1.0, 1.0, 1.0), eps=0.1, delta=1.0).steps
        1
    """
    tried = [predict(c, lr, N, eps, delta, shared) for N in steps for lr in (lrs or [usual_lr(c, N)])]
    if not tried:
        raise ConfigError("steps is empty: give the numbers of inner steps to try, such as range(1, 51)")
    return min(tried, key=lambda p: p.cost(prices))


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name}={value!r}: it must be above 0 and finite")
