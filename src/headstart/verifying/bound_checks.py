"""Checks of the bounds: Lipschitz constants, variances over tasks, and the descent that follows, on the zoo of problems."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from headstart.theory import bounds
from headstart.verifying.problems import Problem
from headstart.verifying.table import Row
from headstart.verifying.zoo import Case

SYMBOLS = {"w_w": "ℓ_ww", "w_phi": "ℓ_wφ", "phi_w": "ℓ_φw", "phi_phi": "ℓ_φφ"}
STARTS, ITERATIONS, BATCH = 4, 25, 2  # of the runs of Algorithm 1
EVERY = 5  # iterations between looks at what a single task would do
POINTS = 100  # at which whole second derivatives are taken


def lipschitz(cases: Sequence[Case], pairs: int, seed: int) -> Iterator[Row]:
    """Every Lipschitz bound, against difference quotients of pairs of points and second derivatives at points."""
    for case in cases:
        ell, worst = bounds.lipschitz(case.problem.constants, case.lr, case.steps, case.shared), _measured(case, pairs, seed)
        if case.problem.region < math.inf:
            yield _row("lipschitz", case, "path in its region", pairs, worst["region"], 1.0)
        for block, symbol in SYMBOLS.items():
            if worst[block] or case.attains.get(block):  # a gradient that does not change in a block says nothing
                yield _row("lipschitz", case, symbol, pairs, worst[block], getattr(ell, block), case.attains.get(block, 0.0))


@lru_cache(maxsize=256)
def _measured(case: Case, pairs: int, seed: int) -> dict[str, float]:
    """The largest difference quotient or second derivative seen, by block. No bound enters, so it is kept between calls."""
    problem, N, lr = case.problem, case.steps, case.lr
    generator = torch.Generator().manual_seed(seed)
    w, phi, task = problem.sample(pairs, generator)
    w_far, phi_far, _ = problem.sample(pairs, generator)
    share = torch.ones(pairs, 1, dtype=w.dtype)
    share[::2] = 0.01  # near pairs lie on the segment to a far one, so they are in the box too
    w_to, phi_to = w + share * (w_far - w), phi + share * (phi_far - phi)
    points = ((w, phi), (w_to, phi), (w, phi_to))
    here, moved_w, moved_phi = (problem.gradients(*at, task, N, lr) for at in points)
    some = slice(0, POINTS)
    worst = {k: float(v.max()) for k, v in problem.blocks(w[some], phi[some], task[some], N, lr).items()}
    worst["region"] = max(problem.farthest(*at, task, N, lr) for at in points)
    for x, moved, distance in (("w", moved_w, (w_to - w).norm(dim=1)), ("phi", moved_phi, (phi_to - phi).norm(dim=1))):
        for of, a, b in zip(("w", "phi"), moved, here, strict=True):
            worst[f"{of}_{x}"] = max(worst[f"{of}_{x}"], float(((a - b).norm(dim=1) / distance).max()))
    return worst


def variance(cases: Sequence[Case], pairs: int, seed: int) -> Iterator[Row]:
    """σ_w and σ_φ, against the deviation of a task's gradient from the mean over tasks at random points."""
    for case in cases:
        T = len(case.problem.tasks)
        if T == 1:
            continue
        w, phi, _ = case.problem.sample(max(1, pairs // T), torch.Generator().manual_seed(seed))
        bound = bounds.deviations(case.problem.constants, case.lr, case.steps, case.shared)
        named = {"sigma_w": "σ_w", "sigma_phi": "σ_φ"}
        for (name, symbol), G, most in zip(named.items(), _gradients(case, w, phi), bound, strict=True):
            sigma = float((G - G.mean(1, keepdim=True)).square().sum(2).mean(1).sqrt().max())
            if sigma:
                yield _row("variance", case, symbol, len(w) * T, sigma, most, case.attains.get(name, 0.0))


def descent(cases: Sequence[Case], pairs: int, seed: int) -> Iterator[Row]:
    """Algorithm 1 with the prescribed step sizes: every step descends, and gradients are small on average.

    On problems whose query loss is bounded below, which are smooth enough everywhere for runs to go where they like.
    """
    for case in cases:
        if case.problem.lower is None:
            continue
        # A quadratic in w alone is minimised by one step, which is all that the descent inequality allows.
        attained = 0.0 if case.shared else 0.99
        step, one, mean = _full_batch(case, seed)
        yield _row("descent", case, "step, all tasks", STARTS * ITERATIONS, step, 1.0, attained)
        yield _row("descent", case, "step, one task", STARTS * ITERATIONS // EVERY, one, 1.0)
        yield _row("descent", case, "run, all tasks", STARTS * ITERATIONS, mean, 1.0)
        yield _row("descent", case, f"run, {BATCH} tasks", STARTS * ITERATIONS, _minibatch(case, seed), 1.0)


def _full_batch(case: Case, seed: int) -> tuple[float, float, float]:
    """Worst shares in ``G/2 ≤ F − F₊`` (all tasks), ``E F₊ − F + G/2 ≤ V/2`` (one task) and ``Σ_k G_k ≤ 2Δ``.

    With ``G = β_w‖∂F/∂w‖² + β_φ‖∂F/∂φ‖²`` and ``V = β_w σ_w² + β_φ σ_φ²``.
    """
    c, problem = case.problem.constants, case.problem
    beta, V = bounds.step_sizes(c, case.lr, case.steps, case.shared), bounds.noise_floor(c, case.lr, case.steps, case.shared)
    w, phi, _ = problem.sample(STARTS, torch.Generator().manual_seed(seed))
    F = first = _values(case, w, phi)
    total, step, one = torch.zeros_like(F), 0.0, 0.0
    for k in range(ITERATIONS):
        G_w, G_phi = _gradients(case, w, phi)
        g_w, g_phi = G_w.mean(1), G_phi.mean(1)
        G = beta.w * g_w.square().sum(1) + beta.phi * g_phi.square().sum(1)
        if k % EVERY == 0:
            # The task is one of T, and all T outcomes are tried: this expectation is exact.
            outcomes = (w[:, None] - beta.w * G_w).flatten(0, 1), (phi[:, None] - beta.phi * G_phi).flatten(0, 1)
            expected = _values(case, *outcomes).unflatten(0, G_w.shape[:2]).mean(1)
            one = max(one, float((expected - F + G / 2).max()) / (V / 2))
        w, phi = w - beta.w * g_w, phi - beta.phi * g_phi
        F, before = _values(case, w, phi), F
        total = total + G
        moving = 1e-9 * first < G  # below, differences of F are rounding
        if bool(moving.any()):
            step = max(step, float((G / 2 / (before - F))[moving].max()))
    return step, one, float((total / (2 * (first - (problem.lower or 0.0)))).max())


def _minibatch(case: Case, seed: int) -> float:
    """Mean over runs with few tasks per iteration, of what the convergence bound bounds."""
    c, problem = case.problem.constants, case.problem
    beta = bounds.step_sizes(c, case.lr, case.steps, case.shared)
    generator = torch.Generator().manual_seed(seed)
    w, phi, _ = problem.sample(STARTS, generator)
    delta = float(_values(case, w, phi).mean()) - (problem.lower or 0.0)
    total, rows = 0.0, torch.arange(STARTS)[:, None]
    for _ in range(ITERATIONS):
        G_w, G_phi = _gradients(case, w, phi)
        total += float((beta.w * G_w.mean(1).square().sum(1) + beta.phi * G_phi.mean(1).square().sum(1)).mean())
        drawn = torch.randint(G_w.shape[1], (STARTS, BATCH), generator=generator)
        w, phi = w - beta.w * G_w[rows, drawn].mean(1), phi - beta.phi * G_phi[rows, drawn].mean(1)
    return total / ITERATIONS / bounds.convergence_bound(c, case.lr, case.steps, delta, ITERATIONS, BATCH, case.shared)


def _gradients(case: Case, w: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """(n, T, ·) ∂F/∂w and ∂F/∂φ of every task at n points."""
    flat = case.problem.gradients(*_crossed(case.problem, w, phi), case.steps, case.lr)
    return flat[0].unflatten(0, (len(w), -1)), flat[1].unflatten(0, (len(w), -1))


def _values(case: Case, w: Tensor, phi: Tensor) -> Tensor:
    """(n,) F at n points: the mean over all tasks."""
    return case.problem.values(*_crossed(case.problem, w, phi), case.steps, case.lr).unflatten(0, (len(w), -1)).mean(1)


def _crossed(problem: Problem, w: Tensor, phi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every point with every task."""
    T = len(problem.tasks)
    return w.repeat_interleave(T, 0), phi.repeat_interleave(T, 0), problem.tasks.repeat(len(w), 1)


def _row(check: str, case: Case, bound: str, cases: int, measured: float, most: float, at_least: float = 0.0) -> Row:
    """The row of a measured value and its bound, where both may be zero."""
    tightness = measured / most if most else (0.0 if measured <= 1e-12 else math.inf)
    return Row(check, case.problem.name, f"N={case.steps}, α={case.lr:.2g}", bound, cases, tightness, at_least)
