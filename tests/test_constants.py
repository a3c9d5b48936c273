"""Measured constants against dense matrices, closed forms and proven inequalities."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import headstart as hs
from headstart.errors import ConfigError, MethodError, TaskError
from headstart.inner.linear_head import Head
from headstart.inner.problem import QUERY, SUPPORT
from headstart.measuring import lanczos
from headstart.measuring.constants import Estimate, measure
from headstart.measuring.lanczos import ends_of, operator_norm
from headstart.measuring.noise import TaskNoise, task_noise
from headstart.measuring.proven import SOFTMAX_THIRD, head_bounds
from headstart.measuring.smoothness import meta_smoothness
from headstart.measuring.spectrum import Spectrum, head_ends, inner_spectrum
from headstart.measuring.surface import Surface, hessian_product, inner_paths
from truth import Truth
from zoo import MODELS, make, tasks_for

LOG_COSH_THIRD = 4 / (3 * math.sqrt(3))


def zoo_learner(name: str, adapt: str, loss: Any = "cross_entropy", l2: float = 0.0, steps: int = 2) -> hs.MetaLearner:
    return hs.MetaLearner(hs.Partition(make(name), adapt), hs.GradientDescent(steps, 0.3, l2), loss=loss)


def dense_hessians(learner: hs.MetaLearner, tasks: hs.TaskBatch, loss: str = "cross_entropy", l2: float = 0.0) -> list[list[Tensor]]:
    """∇²_w L_S at every iterate of every task, from losses and paths written out again."""
    truth = Truth(learner.model, learner.partition.adapted, tasks, loss, l2)
    found = []
    for t in range(len(tasks)):
        L_S = truth.side(t, "support")
        path = truth.path(t, learner.inner.steps, learner.inner.lr, truth.w, truth.phi)
        found.append([torch.autograd.functional.hessian(lambda w, L_S=L_S: L_S(w, truth.phi), w.detach()) for w in path])
    return found


def ends(hessians: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    values = [[torch.linalg.eigvalsh(H) for H in row] for row in hessians]
    return torch.tensor([[v[0] for v in row] for row in values]), torch.tensor([[v[-1] for v in row] for row in values])


# -- eigenvalues -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*MODELS} - {"encoder"}))
@pytest.mark.usefixtures("double")
def test_lanczos_finds_the_ends_of_the_dense_spectrum(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanczos, "DENSE", 4)
    monkeypatch.setattr("headstart.measuring.spectrum.DENSE", 4)
    learner, tasks = zoo_learner(name, "all", l2=0.05, steps=1), tasks_for(name, weighted=True)[:1]
    found = inner_spectrum(learner, tasks, tolerance=1e-8, restarts=500)
    low, high = ends(dense_hessians(learner, tasks, l2=0.05))
    assert found.method == ("sample space" if name == "linear" else "Lanczos")
    assert bool(found.converged.all())
    torch.testing.assert_close(found.smallest, low, rtol=1e-6, atol=1e-6 * found.L)
    torch.testing.assert_close(found.largest, high, rtol=1e-6, atol=1e-6 * found.L)


@pytest.mark.usefixtures("double")
def test_small_problems_are_solved_whole() -> None:
    learner, tasks = zoo_learner("mlp", "last:2"), tasks_for("mlp")
    found = inner_spectrum(learner, tasks)
    low, high = ends(dense_hessians(learner, tasks))
    assert found.method == "dense"
    torch.testing.assert_close(found.smallest, low)
    torch.testing.assert_close(found.largest, high)
    quartiles = found.quantiles()
    assert float(quartiles[0][0]) == found.mu
    assert float(quartiles[1][-1]) == float(found.largest.max())


def test_single_precision_and_warm_starts_lose_little() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4))
    x, y = torch.randn(1, 10, 6), torch.randint(4, (1, 10))
    single = inner_spectrum(hs.anil(model, steps=3, lr=0.3, adapt="last:2"), hs.TaskBatch(x, y, x, y))
    double = hs.anil(model.double(), steps=3, lr=0.3, adapt="last:2")
    low, high = ends(dense_hessians(double, hs.TaskBatch(x.double(), y, x.double(), y)))
    assert single.method == "Lanczos"
    assert single.geometry == "nonconvex"
    torch.testing.assert_close(single.smallest, low.double(), rtol=0, atol=1e-3 * single.L)
    torch.testing.assert_close(single.largest, high.double(), rtol=0, atol=1e-3 * single.L)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("name", ["linear", "mlp", "no bias", "two inputs"])
@pytest.mark.usefixtures("double")
def test_the_span_of_the_features_gives_a_head_its_exact_spectrum(name: str, loss: str) -> None:
    learner, tasks = zoo_learner(name, "head", loss, l2=0.07), tasks_for(name, weighted=True)
    found = inner_spectrum(learner, tasks)
    low, high = ends(dense_hessians(learner, tasks, loss, 0.07))
    assert found.method == "sample space"
    torch.testing.assert_close(found.smallest, low, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.largest, high, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("double")
def test_a_head_with_more_examples_than_features_and_a_loss_of_ones_own() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 12, 3), torch.randint(2, (2, 12))
    tasks = hs.TaskBatch(x, y, x, y)

    def periodic(logits: Tensor, target: Tensor) -> Tensor:
        return torch.sin(logits * (1 + target[..., None])).sum(-1)

    for loss in ("squared_error", "cross_entropy", periodic):
        learner = hs.MetaLearner(hs.Partition(nn.Linear(3, 2), "head"), hs.GradientDescent(2, 0.3), loss=loss)
        found = inner_spectrum(learner, tasks)
        for t, (problem, path) in enumerate(inner_paths(learner, tasks)):
            for m, w in enumerate(path):
                dense = ends_of(*hessian_product(problem, w), 1e-8, 100, None)
                assert float(found.smallest[t, m]) == pytest.approx(dense.smallest, abs=1e-12)
                assert float(found.largest[t, m]) == pytest.approx(dense.largest, abs=1e-12)
        if loss == "squared_error":
            assert found.geometry == "strongly convex"  # the quadratic is definite without l2
        if loss is periodic:
            assert (found.geometry, found.convex) == ("nonconvex", False)


@pytest.mark.usefixtures("double")
def test_large_heads_agree_with_lanczos_on_products(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 5))
    y = torch.arange(5).repeat(5)[None]
    tasks = hs.TaskBatch(torch.randn(1, 25, 6), y, torch.randn(1, 25, 6), y)
    for loss in ("cross_entropy", "squared_error"):
        learner = hs.anil(model, steps=1, lr=0.5, l2=0.02, loss=loss)
        problem, path = next(inner_paths(learner, tasks))
        exact = head_ends(problem, Head.of(problem), path[-1], 0.02)
        product = ends_of(*hessian_product(problem, path[-1]), 1e-9, 200, None)
        assert product.converged
        assert exact.smallest == pytest.approx(0.02, abs=0)  # λ itself: 41 features, 25 examples
        assert product.smallest == pytest.approx(0.02, abs=1e-6)
        assert product.largest == pytest.approx(exact.largest, rel=1e-8)
        with monkeypatch.context() as patch:
            patch.setattr("headstart.measuring.spectrum.WHOLE", 10)
            iterative = head_ends(problem, Head.of(problem), path[-1], 0.02)
        assert iterative.largest == pytest.approx(exact.largest, rel=1e-7)
        assert iterative.smallest == pytest.approx(0.02, abs=1e-6)


@pytest.mark.usefixtures("double")
def test_without_convergence_the_best_estimates_lie_inside_and_say_so() -> None:
    torch.manual_seed(0)
    eigenvalues = torch.linspace(-1, 1, 400)
    found = ends_of(lambda v: eigenvalues * v, eigenvalues, 1e-12, 2, None)
    assert not found.converged
    assert -1 <= found.smallest < -0.9
    assert 0.9 < found.largest <= 1
    s = Spectrum(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([[True, False]]), 0.0, False, 1e-3, 1e-6, "Lanczos")
    assert "1 of 2 did not converge" in str(s)


@pytest.mark.usefixtures("double")
def test_rank_deficient_and_zero_matrices() -> None:
    few = torch.zeros(300)
    few[7], few[9] = 5.0, 2.0
    found = ends_of(lambda v: few * v, few, 1e-8, 100, None)
    assert (found.smallest, found.largest) == (pytest.approx(0, abs=1e-6), pytest.approx(5))
    nothing = ends_of(lambda v: 0 * v, few, 1e-8, 100, None)
    assert (nothing.smallest, nothing.largest) == (0, 0)


@pytest.mark.usefixtures("double")
def test_the_operator_norm_is_approached_from_below() -> None:
    torch.manual_seed(0)
    A = torch.randn(30, 30)
    norm = float(torch.linalg.matrix_norm(A, 2))
    values = [operator_norm(lambda v: A @ v, torch.randn(30), k)[0] for k in (1, 5, 40)]
    assert all(v <= norm * (1 + 1e-12) for v in values)
    assert values[-1] == pytest.approx(norm)
    value, v = operator_norm(lambda v: (A + A.T) @ v, torch.randn(30), 12)
    assert float(((A + A.T) @ v).norm()) == pytest.approx(value)
    assert value > 0.99 * float(torch.linalg.matrix_norm(A + A.T, 2))


# -- geometry --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("l2", [0.0, 1e-3, 0.5])
def test_a_head_is_strongly_convex_only_with_regularisation(l2: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 4)).to(dtype)
    x, y = torch.randn(3, 8, 6, dtype=dtype), torch.randint(4, (3, 8))
    found = inner_spectrum(hs.anil(model, steps=4, lr=0.5, l2=l2), hs.TaskBatch(x, y, x, y))
    assert found.mu == l2
    assert found.geometry == ("strongly convex" if l2 else "convex")
    assert found.reason.startswith("proven")
    assert found.geometry in str(found)


@pytest.mark.usefixtures("double")
def test_two_layers_are_nonconvex_where_a_dense_eigenvalue_is_negative() -> None:
    learner, tasks = zoo_learner("mlp", "last:2"), tasks_for("mlp")
    assert float(ends(dense_hessians(learner, tasks))[0].min()) < -1e-2
    found = inner_spectrum(learner, tasks)
    assert found.geometry == "nonconvex"
    assert "below 0" in found.reason
    shifted = inner_spectrum(zoo_learner("mlp", "last:2", l2=5.0), tasks)
    assert shifted.geometry == "strongly convex"
    assert shifted.reason.startswith("measured, not proven")


def test_a_zero_that_was_only_sampled_is_not_called_convex() -> None:
    near = lambda low, convex: Spectrum(  # noqa: E731
        torch.tensor([[low]]), torch.tensor([[1.0]]), torch.ones(1, 1).bool(), 0.0, convex, 1e-3, 1e-6, "Lanczos"
    )
    assert near(1e-5, True).geometry == "convex"
    assert near(1e-5, False).geometry == "nonconvex"
    assert near(1e-5, False).reason.startswith("not established")
    assert near(-1e-5, False).reason.startswith("an eigenvalue of")
    assert near(1e-2, False).geometry == "strongly convex"


# -- proven bounds ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
def test_the_third_derivative_of_log_sum_exp_has_norm_root_six_over_nine() -> None:
    third = lambda x: torch.autograd.functional.jacobian(  # noqa: E731
        lambda a: torch.diag(a.softmax(0)) - torch.outer(a.softmax(0), a.softmax(0)), x
    )
    worst = 0.0
    for seed in range(60):
        torch.manual_seed(seed)
        T = third(torch.randn(2 + seed % 5) * 3)
        v = torch.randn(T.shape[0])
        for _ in range(30):  # the higher-order power method
            v = torch.einsum("abc,b,c->a", T, v, v)
            v = v / v.norm().clamp_min(1e-30)
        a, b, c = (u / u.norm() for u in torch.randn(3, T.shape[0]))
        worst = max(worst, abs(float(torch.einsum("abc,a,b,c->", T, v, v, v))), abs(float(torch.einsum("abc,a,b,c->", T, a, b, c))))
        assert worst <= SOFTMAX_THIRD * (1 + 1e-12)
    p = torch.tensor([0.5 - math.sqrt(3) / 6, 0.5 + math.sqrt(3) / 6])
    v = torch.tensor([1.0, -1.0]) / math.sqrt(2)
    attained = float(torch.einsum("abc,a,b,c->", third(p.log()), v, v, v))
    assert abs(attained) == pytest.approx(SOFTMAX_THIRD)
    assert worst > 0.9 * SOFTMAX_THIRD


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.usefixtures("double")
def test_proven_bounds_hold_for_random_weights(loss: str) -> None:
    tasks = tasks_for("mlp", weighted=True)
    learner = zoo_learner("mlp", "head", loss, l2=0.1)
    for problem, path in inner_paths(learner, tasks):
        bounds = head_bounds(problem, 0.1)
        assert bounds is not None
        surface = Surface(learner, problem)
        n = surface.n_w
        L = lambda w, side: surface.loss(torch.cat([w, phi]), side)  # noqa: B023, E731
        phi = surface.point(path[0])[n:]
        H = lambda w, side=SUPPORT: torch.autograd.functional.hessian(lambda u: L(u, side), w)  # noqa: B023, E731
        share = {"L": 0.0, "rho": 0.0, "M": 0.0}
        for seed in range(15):
            torch.manual_seed(seed)
            w = torch.randn(n) * (0.1, 1.0, 4.0)[seed % 3]
            near = w + 10 ** -(seed % 4) * torch.randn(n)
            values = torch.linalg.eigvalsh(H(w))
            assert float(values[0]) >= bounds.mu * (1 - 1e-9)
            assert float(values[-1]) <= bounds.L * (1 + 1e-12)
            assert float(torch.linalg.eigvalsh(H(w, QUERY))[-1]) <= bounds.L_query * (1 + 1e-12)
            rho = float(torch.linalg.matrix_norm(H(near) - H(w), 2) / (near - w).norm())
            assert rho <= bounds.rho + 1e-9
            M = float(torch.func.grad(lambda u: L(u, QUERY))(w).norm())  # noqa: B023
            assert bounds.M is None or bounds.M >= M
            share = {"L": max(share["L"], float(values[-1]) / bounds.L), "rho": max(share["rho"], rho), "M": max(share["M"], M)}
        if loss == "squared_error":
            assert share["L"] == pytest.approx(1)
            assert (bounds.rho, bounds.M) == (0, None)
        else:
            assert share["L"] > 0.5
            assert bounds.M is not None
            assert share["M"] > 0.5 * bounds.M


def test_other_losses_and_partitions_have_no_proven_bounds() -> None:
    tasks = tasks_for("mlp")
    for learner in (zoo_learner("mlp", "last:2"), zoo_learner("mlp", "head", loss=lambda a, y: a.square().sum(-1))):
        problem, _ = next(inner_paths(learner, tasks))
        assert head_bounds(problem, 0.0) is None


# -- sampled estimates -----------------------------------------------------------------------------------------------------


class Affine(nn.Module):
    """aᵀw + bᵀφ for rows (a, b)."""

    def __init__(self, n_w: int, n_phi: int) -> None:
        super().__init__()
        self.w, self.phi = nn.Parameter(torch.randn(n_w) * 0.3), nn.Parameter(torch.randn(n_phi) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        n = len(self.w)
        return (x[:, :n] @ self.w + x[:, n:] @ self.phi)[:, None]


def log_cosh(logits: Tensor, target: Tensor) -> Tensor:
    r = (logits - target).squeeze(-1).abs()
    return r + torch.log1p(torch.exp(-2 * r)) - math.log(2)


def log_cosh_problem(examples: int, dtype: torch.dtype) -> tuple[hs.MetaLearner, hs.TaskBatch, dict[str, float]]:
    """theory.md's test problem, and its constants from above: rows (a, b) with |(log cosh)''| ≤ 1 and |(log cosh)'''| ≤ 4/(3√3)."""
    torch.manual_seed(1)
    n_w, n_phi, mu = 4, 6, 0.2
    model = Affine(n_w, n_phi).to(dtype)
    x = torch.randn(3, examples, n_w + n_phi, dtype=dtype)
    with torch.no_grad():
        at = torch.stack([model(own) for own in x])
    # Residuals at or on both sides of artanh(1/√3) = 0.66, where the third derivative of log cosh is largest.
    y = at - (torch.linspace(0.4, 0.9, examples, dtype=dtype) if examples > 1 else torch.tensor([0.6585], dtype=dtype))[:, None]
    learner = hs.MetaLearner(hs.Partition(model, "w"), hs.GradientDescent(2, 1e-3, mu), loss=log_cosh)
    a, b = x[..., :n_w], x[..., n_w:]
    norm = lambda v: torch.linalg.matrix_norm(v, 2) / examples**0.5  # noqa: E731
    longest = x.norm(dim=-1).amax(1)
    exact = {
        "L": mu + float((norm(x) ** 2).max()),
        "rho": LOG_COSH_THIRD * float((longest * norm(a) ** 2).max()),
        "tau": LOG_COSH_THIRD * float((longest * norm(a) * norm(b)).max()),
        "M": float(norm(x).max()),
    }
    return learner, hs.TaskBatch(x, y, x, y), exact


@pytest.mark.parametrize(("examples", "share"), [(1, 0.95), (5, 0.3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_estimates_come_close_to_known_constants_and_never_exceed_them(examples: int, share: float, dtype: torch.dtype) -> None:
    learner, tasks, exact = log_cosh_problem(examples, dtype)
    found = measure(learner, tasks)
    for name in ("rho", "tau"):
        own = found.estimates[name]
        assert own.value is not None
        assert own.value <= exact[name] * (1 + 1e-6), name
        assert own.value > share * exact[name], name
        assert own.kind == "sampled lower estimate"
        assert own.note == ""
        assert len(own.quantiles) == 5
        assert own.quantiles[-1] == pytest.approx(own.value)
    for name in ("L", "M"):
        assert 0.3 * exact[name] < float(found.estimates[name].value or 0) <= exact[name] * (1 + 1e-6), name
    assert found.geometry == "strongly convex"
    assert 0.2 - 1e-6 < found.to_bounds()["mu"] < exact["L"]


@pytest.mark.usefixtures("double")
def test_estimates_against_dense_matrices() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    x, y = torch.randn(2, 4, 2), torch.randint(2, (2, 4))
    learner, tasks = hs.anil(model, steps=2, lr=0.3, l2=0.1, adapt="last:2"), hs.TaskBatch(x, y, x.flip(1), y)[1:]
    found = measure(learner, tasks, points=3, iterations=10)
    truth = Truth(learner.model, learner.partition.adapted, tasks, "cross_entropy", 0.1)
    n = len(truth.w)
    largest = {"L": 0.0, "M": 0.0, "rho": 0.0, "tau": 0.0}
    for t in range(len(tasks)):
        for w in truth.path(t, 2, 0.3, truth.w, truth.phi):
            at = torch.cat([w.detach(), truth.phi])
            losses = [lambda x, side=side, t=t: truth.side(t, side)(x[:n], x[n:]) for side in ("support", "query")]
            for loss in losses:
                own = float(torch.linalg.matrix_norm(torch.autograd.functional.hessian(loss, at), 2))
                largest["L"] = max(largest["L"], own)
            largest["M"] = max(largest["M"], float(torch.func.grad(losses[1])(at).norm()))
            T = third_derivative(losses[0], at)
            largest["rho"] = max(largest["rho"], form_norm(T[:n, :n]))
            largest["tau"] = max(largest["tau"], form_norm(T[n:, :n]))
    assert found.estimates["L"].value == pytest.approx(largest["L"], rel=1e-3)
    assert found.estimates["M"].value == pytest.approx(largest["M"])
    for name in ("rho", "tau"):
        assert 0.8 * largest[name] < float(found.estimates[name].value or 0) < 1.001 * largest[name]
    assert found.proven == {}


def third_derivative(loss: Callable[[Tensor], Tensor], at: Tensor, h: float = 1e-4) -> Tensor:
    """The third derivative by central differences of dense Hessians; the last index is that of the direction moved in."""
    H = lambda x: torch.autograd.functional.hessian(loss, x)  # noqa: E731
    return torch.stack([(H(at + h * e) - H(at - h * e)) / (2 * h) for e in torch.eye(len(at))], -1)


def form_norm(T: Tensor) -> float:
    """sup of T(u, v, d) over unit vectors: the best of some random starts of the alternating power method."""
    best = 0.0
    for _ in range(20):
        v, d = torch.randn(T.shape[1]), torch.randn(T.shape[2])
        for _ in range(40):
            u = torch.einsum("abk,b,k->a", T, v, d)
            u = u / u.norm()
            d = torch.einsum("abk,a,b->k", T, u, v)
            d = d / d.norm()
            v = torch.einsum("abk,a,k->b", T, u, d)
            best, v = max(best, float(v.norm())), v / v.norm()
    return best


def test_kinks_are_noticed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        model[0].bias.copy_(-(model[0].weight @ torch.ones(3).double()) + 1e-9)  # all units stand at their kink
    x, y = torch.ones(1, 4, 3).double(), torch.tensor([[0, 1, 1, 1]])
    found = measure(hs.anil(model, steps=1, lr=0.1, adapt="all"), hs.TaskBatch(x, y, x, y))
    assert "not Lipschitz" in found.estimates["rho"].note


@pytest.mark.usefixtures("double")
def test_deviations_of_a_problem_with_two_tasks_in_closed_form() -> None:
    """L = ½ (w x − y)² with x = 1 on both sides: ∂/∂w = (1−α)^N (w_N − y_D), w_N = (1−α)^N w + (1 − (1−α)^N) y_S."""
    model = nn.Linear(1, 1, bias=False)
    one = torch.ones(2, 1, 1)
    y_S, y_D = torch.tensor([[1.0], [-2.0]]), torch.tensor([[0.5], [3.0]])
    tasks = hs.TaskBatch(one, y_S, one, y_D)
    found = measure(hs.MetaLearner(hs.Partition(model, "head"), hs.GradientDescent(3, 0.2), loss="squared_error"), tasks)
    q = 0.8**3
    w_N = q * model.weight.item() + (1 - q) * y_S[:, 0]
    g = q * (w_N - y_D[:, 0])
    assert found.estimates["sigma_w"].value == pytest.approx(float((g[0] - g[1]).abs()) / math.sqrt(2))
    assert found.estimates["sigma_w"].quantiles == pytest.approx([float((g[0] - g[1]).abs()) / 2] * 5)
    assert found.estimates["sigma_phi"].value is None
    assert found.estimates["tau"].value is None
    assert (found.spectrum.mu, found.spectrum.L) == (pytest.approx(1), pytest.approx(1))
    noise = task_noise(hs.MetaLearner(hs.Partition(model, "head"), hs.GradientDescent(3, 0.2), loss="squared_error"), [tasks])
    assert noise["phi"] is None
    assert noise["w"] is not None
    assert noise["w"].variance == pytest.approx(float((g[0] - g[1]) ** 2) / 2)
    assert noise["w"].square == pytest.approx(float(g.mean() ** 2) - float((g[0] - g[1]) ** 2) / 4)


def test_the_report_prints_saves_and_feeds_the_bounds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(3, 6, 4), torch.randint(2, (3, 6))
    learner = hs.anil(hs.models.mlp(features=4, ways=2), steps=2, lr=0.5, l2=0.1)
    found = measure(learner, hs.TaskBatch(x, y, x, y))
    text = str(found)
    for word in ("sampled lower estimate", "proven upper bound", "measured eigenvalue", "for all w, with φ as it is", "sigma_phi"):
        assert word in text
    found.save(tmp_path / "constants.json")
    back = json.loads((tmp_path / "constants.json").read_text(encoding="utf-8"))
    assert back["geometry"] == "strongly convex"
    assert back["estimates"]["mu"]["value"] == found.to_bounds()["mu"] == 0.1
    assert set(found.proven) == {"mu", "L", "L_query", "rho", "M"}
    assert float(found.proven["L"].value or 0) >= found.spectrum.L
    assert found.to_bounds()["L"] >= found.spectrum.L
    single = measure(learner, hs.TaskBatch(x, y, x, y)[:1])
    assert single.estimates["sigma_w"].value is None
    assert "give two or more" in single.estimates["sigma_w"].note
    assert str(Estimate(None, "sampled lower estimate", "x")).startswith("none")


# -- the surface of one task -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "conv", "two inputs", "tied", "attention", "encoder", "frozen", "unused"])
@pytest.mark.usefixtures("double")
def test_the_losses_of_all_parameters_are_those_of_the_model(name: str) -> None:
    learner = hs.MetaLearner(hs.Partition(make(name), "last:2"), hs.GradientDescent(2, 0.3, 0.1, prox=0.2))
    tasks = tasks_for(name, weighted=True)
    truth = Truth(learner.model, learner.partition.adapted, tasks, "cross_entropy", 0.1, 0.2)
    order = [*learner.partition.adapted, *learner.partition.shared]
    for t, (problem, path) in enumerate(inner_paths(learner, tasks)):
        surface = Surface(learner, problem)
        x, v = surface.point(path[-1]), torch.randn(surface.n_w + surface.n_phi)
        parts = dict(zip(order, x.split(surface.sizes), strict=True))
        w, phi = (torch.cat([parts[n] for n in names] or [x[:0]]) for names in truth.names)
        for side in (SUPPORT, QUERY):
            assert float(surface.loss(x, side)) == pytest.approx(float(truth.side(t, side)(w, phi)))
            h = 1e-5
            slope = (surface.gradient(x + h * v, side) - surface.gradient(x - h * v, side)) / (2 * h)
            torch.testing.assert_close(surface.product(x, side)(v), slope, rtol=1e-5, atol=1e-5)


def test_tasks_over_their_own_pool_have_the_gradient_they_had() -> None:
    tasks = tasks_for("two inputs", weighted=True, tasks=4)
    learner = zoo_learner("two inputs", "head")
    for part, size in ((tasks[1], 7), (tasks[1:3], 14)):
        expected, _ = learner.meta_gradient(part)
        found, _ = learner.meta_gradient(part.own_pool())
        assert part.own_pool().pool_size == size
        for k, g in expected.items():
            torch.testing.assert_close(found[k], g)
    shared = hs.TaskBatch.from_pool(
        torch.randn(9, 4), hs.Side(torch.tensor([[0, 8]]), torch.tensor([[0, 1]])), hs.Side(torch.tensor([[8, 3]]), torch.tensor([[1, 0]]))
    )
    assert shared.own_pool().support.index.tolist() == [[0, 2]]
    assert shared.own_pool().query.index.tolist() == [[2, 1]]


# -- the meta-objective ----------------------------------------------------------------------------------------------------


def meta_hessian(learner: hs.MetaLearner, tasks: hs.TaskBatch, l2: float) -> tuple[Tensor, int]:
    """∇²F in (w, φ), by autograd through the inner loop written out, and n_w."""
    truth = Truth(learner.model, learner.partition.adapted, tasks, "cross_entropy", l2)
    n = len(truth.w)

    def F(x: Tensor) -> Tensor:
        total = torch.zeros(())
        for t in range(len(tasks)):
            w, phi, L_S = x[:n], x[n:], truth.side(t, "support")
            for _ in range(learner.inner.steps):
                w = w - learner.inner.lr * torch.autograd.grad(L_S(w, phi), w, create_graph=True)[0]
            total = total + truth.side(t, "query")(w, phi)
        return total / len(tasks)

    return torch.autograd.functional.hessian(F, torch.cat([truth.w, truth.phi])), n


@pytest.mark.parametrize(("name", "adapt"), [("mlp", "head"), ("mlp", "last:2"), ("conv", "head"), ("unused", "head"), ("mlp", "all")])
@pytest.mark.usefixtures("double")
def test_smoothness_of_the_meta_objective_against_its_dense_hessian(name: str, adapt: str) -> None:
    learner, tasks = zoo_learner(name, adapt, l2=0.1), tasks_for(name)
    H, n = meta_hessian(learner, tasks, 0.1)
    for block, dense in (("w", H[:n, :n]), ("phi", H[n:, n:])):
        found = meta_smoothness(learner, tasks, block, iterations=14)
        if not len(dense):
            assert found is None
            continue
        assert found is not None
        norm = float(torch.linalg.matrix_norm(dense, 2))
        assert 0.99 * norm < found.value < norm * (1 + 1e-6)
        assert found.gradients <= 29
        assert found.without_influence == (("spare.weight", "spare.bias") if (name, block) == ("unused", "phi") else ())


@pytest.mark.usefixtures("double")
def test_a_block_without_influence_is_smooth_and_silent() -> None:
    """ProtoNet's start is made of features, and its own head has no influence."""
    learner, tasks = hs.presets.protonet(make("mlp")), tasks_for("mlp")
    found = meta_smoothness(learner, tasks, "w")
    assert found is not None
    assert found.value == 0
    assert found.without_influence == learner.partition.adapted
    noise = task_noise(learner, [tasks])["w"]
    assert noise is not None
    assert (noise.square, noise.variance, noise.scale) == (0, 0, 0)


def test_noise_is_unbiased_over_batches_of_any_size() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(6, 5, 4), torch.randint(2, (6, 5))
    tasks = hs.TaskBatch(x, y, x, y)
    learner = hs.anil(hs.models.mlp(features=4, ways=2), steps=2, lr=0.5)
    one, many = task_noise(learner, [tasks]), task_noise(learner, [tasks[:1], tasks[1:4], tasks[4:]])
    gradients = [learner.meta_gradient(tasks[t])[0] for t in range(6)]
    for block, names in (("w", learner.partition.adapted), ("phi", learner.partition.shared)):
        G = torch.stack([torch.cat([g[n].reshape(-1) for n in names]) for g in gradients]).double()
        variance = float(G.var(0).sum())
        own, other = one[block], many[block]  # type: ignore[index]
        assert own is not None
        assert other is not None
        assert own.tasks == 6
        assert own.variance == pytest.approx(variance, rel=1e-5)
        assert own.square == pytest.approx(float(G.mean(0).square().sum()) - variance / 6, rel=1e-4)
        assert other.variance == pytest.approx(own.variance, rel=1e-5)
    assert TaskNoise(-1.0, 2.0, 5).scale == math.inf
    with pytest.raises(TaskError, match="two tasks or more; got 1"):
        task_noise(learner, [tasks[:1]])


# -- what is left behind ---------------------------------------------------------------------------------------------------


MEASUREMENTS: dict[str, Callable[[hs.MetaLearner, hs.TaskBatch], Any]] = {
    "inner_spectrum": inner_spectrum,
    "measure": measure,
    "smoothness in w": lambda learner, tasks: meta_smoothness(learner, tasks, "w", iterations=2),
    "smoothness in phi": lambda learner, tasks: meta_smoothness(learner, tasks, "phi", iterations=2),
    "noise": lambda learner, tasks: task_noise(learner, [tasks]),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
@pytest.mark.parametrize("adapt", ["head", "last:2"])
def test_the_model_the_mode_and_the_randomness_are_left_as_they_were(name: str, adapt: str) -> None:
    body = [nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5)]
    model = nn.Sequential(*body, nn.Linear(32, 6), nn.Tanh(), nn.Linear(6, 3)).train()
    model[1].eval()
    with torch.no_grad():
        model[0].bias[0] = -0.0
    x, y = torch.randn(2, 4, 1, 4, 4), torch.randint(3, (2, 4))
    learner, tasks = hs.anil(model, steps=1, lr=0.1, adapt=adapt), hs.TaskBatch(x, y, x, y)
    bits = lambda: {k: v.clone().view(torch.uint8) if v.dim() else v.clone() for k, v in model.state_dict().items()}  # noqa: E731
    before, modes, state = bits(), [m.training for m in model.modules()], torch.get_rng_state()
    first = MEASUREMENTS[name](learner, tasks)
    assert all(torch.equal(v, before[k]) for k, v in bits().items())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert repr(MEASUREMENTS[name](learner, tasks)) == repr(first) or name in ("inner_spectrum", "measure")


def test_parameters_come_back_when_a_measurement_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, tasks = zoo_learner("mlp", "head"), tasks_for("mlp")
    before = {k: v.clone() for k, v in learner.model.state_dict().items()}
    calls = []

    def failing(own: hs.TaskBatch) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return hs.MetaLearner.meta_gradient(learner, own)

    monkeypatch.setattr(learner, "meta_gradient", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        meta_smoothness(learner, tasks, "w")
    assert all(torch.equal(v, before[k]) for k, v in learner.model.state_dict().items())


def test_what_cannot_be_measured_is_refused() -> None:
    tasks = tasks_for("mlp")
    learner = zoo_learner("mlp", "head")
    with pytest.raises(MethodError, match="closed form"):
        inner_spectrum(hs.presets.r2d2(make("mlp")), tasks)
    for adapt in ("head", "all"):
        with pytest.raises(MethodError, match="diverges"):
            inner_spectrum(hs.anil(make("mlp"), steps=40, lr=1e10, l2=5.0, adapt=adapt), tasks)
    with pytest.raises(ConfigError, match="tolerance"):
        inner_spectrum(learner, tasks, tolerance=0)
    with pytest.raises(ConfigError, match="points=0"):
        measure(learner, tasks, points=0)
    with pytest.raises(ConfigError, match="block='body'"):
        meta_smoothness(learner, tasks, "body")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="iterations=0"):
        meta_smoothness(learner, tasks, "w", iterations=0)


def test_scipy_is_asked_for_by_the_name_of_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(lanczos.importlib, "import_module", missing)
    with pytest.raises(MethodError, match=r"headstart\[theory\]"):
        ends_of(lambda v: 2 * v, torch.zeros(100), 1e-3, 10, None)
