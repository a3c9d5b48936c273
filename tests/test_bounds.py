"""The explicit constants against hand calculations, an independent derivation, limits, and the paper's counts."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from headstart.errors import ConfigError
from headstart.theory import complexity, oracle_counts
from headstart.theory.bounds import (
    Constants,
    Lipschitz,
    StepSizes,
    balance,
    contraction,
    convergence_bound,
    deviations,
    geometric_sum,
    lipschitz,
    noise_floor,
    sensitivity,
    step_sizes,
)

CONVEX = Constants(mu=0.5, L=1.0, M=2.0, rho=0.3, tau=0.7)
NONCONVEX = Constants(mu=-1.0, L=1.0, M=2.0, rho=0.3, tau=0.7)
BLOCKS = ("w_w", "w_phi", "phi_w", "phi_phi")


def propagated(c: Constants, lr: float, steps: int, dw: float, dphi: float) -> tuple[float, float]:
    """How much ∂F/∂w and ∂F/∂φ can change, by carrying a change forward along the path and back through Proposition 1."""
    rate = max(abs(1 - lr * c.mu), abs(1 - lr * c.L)) if c.mu > 0 else 1 + lr * c.L
    moved = [dw]
    for _ in range(steps):
        moved.append(rate * moved[-1] + lr * c.L * dphi)
    r = [d + dphi for d in moved]
    v, change_v, change_u = c.M, c.L * r[-1], c.L * r[-1]
    for m in reversed(range(steps)):
        change_u += lr * (c.tau * r[m] * v + c.L * change_v)
        change_v = rate * change_v + lr * c.rho * r[m] * v
        v *= rate
    return change_v, change_u


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 9])
def test_lipschitz_constants_are_those_of_the_recursion(steps: int) -> None:
    draw = random.Random(steps)
    for _ in range(30):
        L = draw.uniform(0.1, 5)
        mu = draw.choice([draw.uniform(0.01, 1) * L, 0.0, -L])
        c, lr = Constants(mu, L, draw.uniform(0, 5), draw.uniform(0, 5), draw.uniform(0, 5)), draw.uniform(0.01, 2) / L
        ell = lipschitz(c, lr, steps)
        (w_w, phi_w), (w_phi, phi_phi) = propagated(c, lr, steps, 1, 0), propagated(c, lr, steps, 0, 1)
        assert [ell.w_w, ell.w_phi, ell.phi_w, ell.phi_phi] == pytest.approx([w_w, w_phi, phi_w, phi_phi], rel=1e-12)


def test_by_hand() -> None:
    """q = 1/2 at α = 1; N = 2: S = 1.5, r^w = 1, 1/2, 1/4, r^φ = 1, 2, 2.5."""
    assert contraction(CONVEX, 1.0) == 0.5
    assert geometric_sum(CONVEX, 1.0, 2) == 1.5
    assert [sensitivity(CONVEX, 1.0, m, "w") for m in range(3)] == [1, 0.5, 0.25]
    assert [sensitivity(CONVEX, 1.0, m, "phi") for m in range(3)] == [1, 2, 2.5]
    ell = lipschitz(CONVEX, 1.0, 2)
    assert ell.w_w == pytest.approx(2 * 0.3 * 0.5 * 1.5 + 0.25 * 0.25)
    assert ell.w_phi == pytest.approx(2 * 0.3 * 0.5 * 3 + 0.25 * 2.5)
    # τ (1·½ + ½·1) + Lαρ·(r_1) for m = 0, then L² S r_2 and L r_2
    assert ell.phi_w == pytest.approx(2 * (0.7 * 1.0 + 0.3 * 0.5) + 1.5 * 0.25 + 0.25)
    assert ell.phi_phi == pytest.approx(2 * (0.7 * 2.5 + 0.3 * 2) + 1.5 * 2.5 + 2.5)
    assert deviations(CONVEX, 1.0, 2) == (0.5, 5.0)


def test_no_inner_steps_leave_the_query_loss() -> None:
    assert lipschitz(CONVEX, 0.3, 0) == Lipschitz(1.0, 1.0, 1.0, 1.0)
    assert deviations(CONVEX, 0.3, 0) == (2.0, 2.0)


def test_the_stiff_end_of_the_spectrum_counts_too() -> None:
    assert contraction(CONVEX, 1.8) == pytest.approx(0.8)
    assert contraction(CONVEX, 4 / 3) == pytest.approx(1 / 3)  # 2/(L + μ) is the best
    assert contraction(NONCONVEX, 0.5) == contraction(Constants(0.0, 1.0, 1, 0, 0), 0.5) == 1.5


def test_many_steps_in_the_strongly_convex_case() -> None:
    """∂F/∂w vanishes, and ∂F/∂φ becomes that of the solution: the limits of the geometric series."""
    ell = lipschitz(CONVEX, 1.0, 200)
    assert max(ell.w_w, ell.w_phi, ell.phi_w) < 1e-50
    r, S = 1 + 1 / (1 - 0.5), 1 / (1 - 0.5)
    assert ell.phi_phi == pytest.approx(2 * (0.7 * r * S + 0.3 * r * S**2) + S * r + r)
    sigma_w, sigma_phi = deviations(CONVEX, 1.0, 200)
    assert sigma_w < 1e-50
    assert sigma_phi == pytest.approx(2 * r)


def test_many_steps_in_the_nonconvex_case() -> None:
    grows = [lipschitz(NONCONVEX, 0.1, N) for N in range(8)]
    for name in BLOCKS:
        values = [getattr(ell, name) for ell in grows]
        assert values == sorted(values)
        assert len(set(values)) == len(values)
    bounded = [lipschitz(NONCONVEX, 1 / N, N) for N in (1, 10, 100)]  # with α = 1/N nothing explodes
    assert all(getattr(ell, name) < 100 for ell in bounded for name in BLOCKS)


@pytest.mark.parametrize("c", [CONVEX, NONCONVEX])
def test_larger_constants_give_larger_bounds(c: Constants) -> None:
    base = [getattr(lipschitz(c, 0.4, 3), name) for name in BLOCKS]
    for name in ("L", "M", "rho", "tau"):
        more = lipschitz(Constants(**{**vars(c), name: 1.5 * getattr(c, name)}), 0.4, 3)
        assert all(getattr(more, block) >= value for block, value in zip(BLOCKS, base, strict=True))
        assert any(getattr(more, block) > value for block, value in zip(BLOCKS, base, strict=True))


def test_mixed_blocks_agree_where_rho_is_tau() -> None:
    """They bound a matrix and its transpose; they differ by αMNq^{N−1}(ρ − τ) only."""
    for N, c in itertools.product(range(6), (CONVEX, NONCONVEX)):
        ell, q = lipschitz(c, 0.6, N), contraction(c, 0.6)
        assert ell.w_phi - ell.phi_w == pytest.approx(0.6 * 2.0 * N * q ** (N - 1) * (0.3 - 0.7), abs=1e-12)


def test_step_sizes() -> None:
    ell = lipschitz(CONVEX, 1.0, 2)
    both = (ell.w_phi + ell.phi_w) / 2
    beta = step_sizes(CONVEX, 1.0, 2)
    assert beta.w / beta.phi == pytest.approx(ell.phi_phi / ell.w_w)
    for b in (beta, step_sizes(CONVEX, 1.0, 2, t=0.3)):
        # diag(1/β) − [[ℓ_ww, c], [c, ℓ_φφ]] is positive semidefinite: all that descent needs
        assert (1 / b.w - ell.w_w) * (1 / b.phi - ell.phi_phi) == pytest.approx(both**2)
    assert step_sizes(CONVEX, 1.0, 2, shared=False) == StepSizes(1 / ell.w_w, 0.0)
    assert beta.lr * beta.factors["w"] == pytest.approx(beta.w)
    assert beta.lr * beta.factors["phi"] == pytest.approx(beta.phi)
    assert max(beta.factors.values()) == 1


def test_step_sizes_do_not_depend_on_units() -> None:
    """With w in other units, β_w changes as its square and β_φ not at all."""
    ell = Lipschitz(3.0, 2.0, 2.0, 5.0)
    other = Lipschitz(3.0 * 100, 2.0 * 10, 2.0 * 10, 5.0)
    assert ell.w_w + 2 * balance(ell) == pytest.approx((other.w_w + 20 * balance(other)) / 100)
    assert ell.phi_phi + 2 / balance(ell) == pytest.approx(other.phi_phi + 20 / balance(other))


def test_step_size_in_w_grows_with_steps_when_strongly_convex() -> None:
    betas = [step_sizes(CONVEX, 1.0, N).w for N in range(3, 12)]
    assert betas == sorted(betas)


def test_a_start_without_influence_needs_no_step() -> None:
    """μ = L and α = 1/L: one step solves the inner problem."""
    c = Constants(1.0, 1.0, 1.0, 0.0, 0.0)
    assert contraction(c, 1.0) == 0
    assert step_sizes(c, 1.0, 2).w == 0
    assert step_sizes(c, 1.0, 2).phi == pytest.approx(1 / 4)
    assert noise_floor(c, 1.0, 2) == pytest.approx(1.0)


def test_convergence_bound() -> None:
    value = convergence_bound(CONVEX, 1.0, 2, delta=3.0, iterations=10, batch=4)
    beta = step_sizes(CONVEX, 1.0, 2)
    assert value == pytest.approx(0.6 + (beta.w * 0.25 + beta.phi * 25) / 4)
    assert convergence_bound(CONVEX, 1.0, 2, 3.0, 10, 4, shared=False) == pytest.approx(0.6 + 0.25 / 4 / lipschitz(CONVEX, 1.0, 2).w_w)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: Constants(0.1, -1.0, 1, 1, 1), r"L=-1\.0.*Lipschitz"),
        (lambda: Constants(0.1, 0.0, 1, 1, 1), r"L=0\.0.*above 0"),
        (lambda: Constants(2.0, 1.0, 1, 1, 1), r"mu=2\.0 is above L"),
        (lambda: Constants(0.1, 1.0, math.inf, 1, 1), "M=inf"),
        (lambda: Constants(math.nan, 1.0, 1, 1, 1), "mu=nan"),
        (lambda: contraction(CONVEX, 0.0), r"lr=0\.0"),
        (lambda: lipschitz(CONVEX, 1.0, -1), "steps=-1"),
        (lambda: lipschitz(CONVEX, 1.0, 1.5), r"steps=1\.5"),
        (lambda: step_sizes(CONVEX, 1.0, 1, t=0.0), r"t=0\.0"),
        (lambda: convergence_bound(CONVEX, 1.0, 1, 1.0, 0, 1), "iterations=0"),
        (lambda: convergence_bound(CONVEX, 1.0, 1, -1.0, 1, 1), r"delta=-1\.0"),
        (lambda: complexity.predict(CONVEX, 1.0, 1, 0.0, 1.0), r"eps=0\.0"),
        (lambda: complexity.predict(CONVEX, 1.0, 1, 0.1, -1.0), r"delta=-1\.0"),
        (lambda: complexity.predict(CONVEX, 1.0, 1, 0.1, 1.0).cost({"hpv": 1.0}), "hpv"),
        (lambda: complexity.cheapest(CONVEX, 0.1, 1.0, steps=[]), "steps is empty"),
    ],
)
def test_values_out_of_range_are_refused(bad, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        bad()


def test_paper_orders() -> None:
    mu, L = 0.5, 1.0
    for N in (2, 4):
        orders = complexity.paper_complexity(N, mu, L, eps=0.1)
        base = mu**-4 * 0.75 ** (N / 2) + mu**-5
        assert orders.gradients_w == orders.second_order == pytest.approx(N * base * 100)
        assert orders.gradients_phi == pytest.approx(base * 100)
        assert complexity.paper_lipschitz(N, mu, L)["w_w"] == pytest.approx(2 * 0.75**N)
        assert complexity.paper_lipschitz(N, mu, L)["phi_phi"] == 8
    assert complexity.paper_complexity(4, mu, L, 0.1).iterations < complexity.paper_complexity(2, mu, L, 0.1).iterations
    assert complexity.paper_complexity(4, 0.0, L, 0.1).iterations > complexity.paper_complexity(2, 0.0, L, 0.1).iterations
    w, phi = complexity.paper_rates(4, mu, L, iterations=100, batch=10)
    assert w == pytest.approx(4 * 0.5625 / 100 + 2 * 0.5625 / 10)
    assert phi == pytest.approx((4 * 0.5625 + 8) / 100 + (2 * 0.75**6 + 4) / 10)


def test_oracle_calls_are_the_papers_table() -> None:
    assert list(oracle_counts.oracle_calls(3, 2).values()) == [6, 2, 2, 6, 6]
    assert list(oracle_counts.oracle_calls(3, 2, shared=False).values()) == [6, 2, 0, 6, 0]
    assert list(oracle_counts.oracle_calls(3, 2, first_order=True).values()) == [6, 2, 2, 0, 0]


@pytest.mark.parametrize("shared", [True, False])
def test_predicted_iterations_and_tasks_reach_epsilon(shared: bool) -> None:
    """With K(ε) and B(ε) the convergence bound holds both gradients to ε; with a tenth fewer of either it does not."""
    eps, delta = 1e-3, 2.0
    p = complexity.predict(CONVEX, 1.0, 3, eps, delta, shared)
    beta = step_sizes(CONVEX, 1.0, 3, shared)
    least = min(beta.w, beta.phi) if shared else beta.w
    assert convergence_bound(CONVEX, 1.0, 3, delta, p.iterations, p.batch, shared) <= eps * least * (1 + 1e-12)
    assert convergence_bound(CONVEX, 1.0, 3, delta, int(0.9 * p.iterations), p.batch, shared) > eps * least
    assert p.calls == {k: p.iterations * v for k, v in oracle_counts.oracle_calls(3, p.batch, shared).items()}
    assert p.cost() == sum(p.calls.values())
    assert p.cost({"hvp": 2.0}) == 2 * p.calls["hvp"]


def test_cheapest_finds_the_least_of_all() -> None:
    c = Constants(mu=1.0, L=1.4, M=1.0, rho=0.1, tau=0.1)
    far = lambda steps, lr: 100 * contraction(c, lr) ** steps + 1  # noqa: E731  (a start whose loss the inner loop lowers)
    best = complexity.cheapest(c, 0.01, far, steps=range(1, 20), lrs=[0.1, 0.5])
    tried = [complexity.predict(c, lr, N, 0.01, far).cost() for N in range(1, 20) for lr in (0.1, 0.5)]
    assert best.cost() == min(tried)
    assert 1 < best.steps < 19
    assert complexity.cheapest(NONCONVEX, 0.01, 1.0).steps == 1


def test_anil_and_maml_side_by_side() -> None:
    rows = complexity.side_by_side(CONVEX, NONCONVEX, complexity.usual_lr, [1, 2, 4], eps=0.1, delta=1.0)
    assert [(a.steps, m.steps) for a, m in rows] == [(1, 1), (2, 2), (4, 4)]
    assert all(m.calls["grad_phi_query"] == m.calls["cvp"] == 0 < a.calls["cvp"] for a, m in rows)
