"""Measured constants against dense matrices, closed forms and proven inequalities."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import headstart as hs
from headstart.inner.problem import QUERY, SUPPORT
from headstart.measuring.constants import Estimate, measure
from headstart.measuring.noise import task_noise
from headstart.measuring.proven import SOFTMAX_THIRD, head_bounds
from headstart.measuring.surface import Surface, inner_paths
from measured import zoo_learner
from truth import Truth
from zoo import tasks_for

LOG_COSH_THIRD = 4 / (3 * math.sqrt(3))


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
