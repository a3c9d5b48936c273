"""Eigenvalues of inner Hessians against dense matrices, and the geometry they show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import headstart as hs
from headstart.measuring import lanczos
from headstart.measuring.lanczos import ends_of, operator_norm
from headstart.measuring.spectrum import Spectrum, head_ends, inner_spectrum
from headstart.measuring.surface import hessian_product, inner_paths
from measured import dense_hessians, ends, zoo_learner
from zoo import MODELS, tasks_for

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
        exact = head_ends(problem, problem.head, path[-1], 0.02)
        product = ends_of(*hessian_product(problem, path[-1]), 1e-9, 200, None)
        assert product.converged
        assert exact.smallest == pytest.approx(0.02, abs=0)  # λ itself: 41 features, 25 examples
        assert product.smallest == pytest.approx(0.02, abs=1e-6)
        assert product.largest == pytest.approx(exact.largest, rel=1e-8)
        with monkeypatch.context() as patch:
            patch.setattr("headstart.measuring.spectrum.WHOLE", 10)
            iterative = head_ends(problem, problem.head, path[-1], 0.02)
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
