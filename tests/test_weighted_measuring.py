"""Weights of examples and of tasks in what is measured and planned, on problems with known answers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import headstart as hs
from headstart.inner.problem import QUERY
from headstart.measuring.access import inner_problems, query_losses
from headstart.measuring.constants import measure
from headstart.measuring.noise import task_noise
from headstart.measuring.objective import measure_objective
from headstart.measuring.proven import head_bounds
from headstart.measuring.smoothness import meta_smoothness
from headstart.measuring.spectrum import inner_spectrum
from headstart.measuring.step_size import best_rates
from headstart.measuring.surface import Surface, task_gradients
from zoo import make, tasks_for

pytestmark = pytest.mark.usefixtures("double")
N, LR = 3, 0.2
Q = (1 - LR) ** N


def line(w: float) -> nn.Module:
    """x ↦ w x."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, w)
    return model


def learner(w: float = 0.0, steps: int = N, lr: float = LR) -> hs.MetaLearner:
    return hs.MetaLearner(hs.Partition(line(w), "head"), hs.GradientDescent(steps, lr), loss="squared_error")


def ragged(*queries: list[float], task_weight: list[float] | None = None) -> hs.TaskBatch:
    """Tasks with x = 1 throughout, support target 1, and these query targets."""
    column = lambda values: torch.tensor(values)[:, None]  # noqa: E731
    tasks = [(torch.ones(1, 1), column([1.0]), torch.ones(len(q), 1), column(q)) for q in queries]
    return hs.TaskBatch.ragged(tasks, task_weight=None if task_weight is None else torch.tensor(task_weight))


@pytest.mark.parametrize(("task_weight", "best"), [(None, 1.0), ([1.0, 0.0], 2.0), ([0.0, 1.0], 0.25), ([1.0, 8.0], 0.5)])
def test_the_step_size_is_that_of_the_weighted_loss(task_weight: list[float] | None, best: float) -> None:
    """From w = 0 one step ends at w = α: the loss is Σ_t p_t ½ (α − c_t)² with c = (2, ¼), whatever fills up the shorter task.

    Counting the four fillers of the first task would choose ¼ instead of 1.
    """
    tasks = ragged([2.0], [0.25] * 5, task_weight=task_weight)
    assert best_rates(lambda lr: learner(0.0, 1, lr), tasks, steps=(1,), L=1.0) == {1: best}


def test_query_losses_are_means_over_the_examples_that_are_there() -> None:
    tasks, own = ragged([2.0], [0.25] * 5), learner(0.0)
    logits = own.trajectory(tasks, 0)[0]
    assert query_losses(own, logits, tasks).tolist() == pytest.approx([0.5 * 2.0**2, 0.5 * 0.25**2])


def two(task_weight: list[float]) -> tuple[hs.TaskBatch, Tensor, Tensor]:
    """Two tasks with query inputs 1 and 2; their weights, and for w = 1.5 the derivatives of each alone."""
    x_D, y_S, y_D = torch.tensor([1.0, 2.0]), torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    tasks = hs.TaskBatch(torch.ones(2, 1, 1), y_S[:, None], x_D[:, None, None], y_D[:, None], task_weight=torch.tensor(task_weight))
    errors = x_D * (Q * 1.5 + (1 - Q) * y_S) - y_D
    p = torch.tensor(task_weight) / torch.tensor(task_weight).mean()
    return tasks, p, errors


class Same:
    """The same meta-batch again and again."""

    tasks = 2

    def __init__(self, batch: hs.TaskBatch) -> None:
        self.own = batch

    def batch(self, index: int, device: Any = "cpu") -> hs.TaskBatch:
        return self.own


def test_the_meta_objective_of_weighted_tasks_in_closed_form() -> None:
    """F(w) = ½ Σ_t p_t (x_t (q w + (1 − q) y_S,t) − y_t)² / 2."""
    tasks, p, e = two([3.0, 1.0])
    x = torch.tensor([1.0, 2.0])
    found = measure_objective(learner(1.5), Same(tasks), torch.device("cpu"), batches=2, iterations=2)
    assert found.loss == pytest.approx(float((p * 0.5 * e * e).mean()))
    assert found.square["w"] == pytest.approx(float((p * Q * x * e).mean()) ** 2)
    assert found.variance["w"] == pytest.approx(0, abs=1e-12)
    curvature = float((p * (Q * x) ** 2).mean())
    assert found.smoothness["w"] == pytest.approx(curvature, rel=1e-6)
    smooth = meta_smoothness(learner(1.5), tasks, "w", iterations=2)
    assert smooth is not None
    assert smooth.value == pytest.approx(curvature, rel=1e-6)


def test_noise_and_deviation_are_of_what_a_task_adds_to_the_gradient() -> None:
    tasks, p, e = two([3.0, 1.0])
    g = p * Q * torch.tensor([1.0, 2.0]) * e
    own = learner(1.5)
    whole, _ = own.meta_gradient(tasks)
    single = torch.stack([grads["weight"].reshape(()) for grads in task_gradients(own, tasks)])
    assert torch.allclose(single, g)
    assert torch.allclose(single.mean(), whole["weight"].reshape(()))
    noise = task_noise(own, [tasks])["w"]
    assert noise is not None
    assert noise.variance == pytest.approx(float((g[0] - g[1]) ** 2) / 2)
    assert noise.square == pytest.approx(float(g.mean() ** 2) - noise.variance / 2)
    assert measure(own, tasks).estimates["sigma_w"].value == pytest.approx(float((g[0] - g[1]).abs()) / math.sqrt(2))


def test_constants_of_the_query_loss_count_by_the_tasks_weight() -> None:
    """‖∂(p L_D)/∂w‖ = p |x (x w_m − y)| at the iterates, and its curvature is p x²."""
    tasks, p, _ = two([3.0, 1.0])
    x, y_S, y_D = torch.tensor([1.0, 2.0]), torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    found = measure(learner(1.5), tasks)
    path = torch.stack([(1 - LR) ** m * 1.5 + (1 - (1 - LR) ** m) * y_S for m in range(N + 1)])
    assert found.estimates["M"].value == pytest.approx(float((p * x * (x * path - y_D)).abs().max()))
    assert found.estimates["L"].value == pytest.approx(max(1.0, float((p * x * x).max())))
    assert found.proven["L_query"].value == pytest.approx(float((p * x * x).max()))


@pytest.mark.parametrize("adapt", ["head", "last:2"])
def test_what_fills_up_a_task_leaves_no_trace(adapt: str) -> None:
    """A batch of tasks of unequal sizes measures as the tasks do alone."""
    whole = tasks_for("mlp", tasks=3)
    sides = [(t.support_x[0], t.support_y[0], t.query_x[0], t.query_y[0]) for t in whole]
    parts = [(x[: 2 + i], y[: 2 + i], x_q[: 1 + i], y_q[: 1 + i]) for i, (x, y, x_q, y_q) in enumerate(sides)]
    own = hs.MetaLearner(hs.Partition(make("mlp"), adapt), hs.GradientDescent(2, 0.3, 0.1))
    together, alone = hs.TaskBatch.ragged(parts), [hs.TaskBatch.ragged([part]) for part in parts]
    spectrum, singles = inner_spectrum(own, together), [inner_spectrum(own, one) for one in alone]
    assert torch.allclose(spectrum.smallest, torch.cat([s.smallest for s in singles]), atol=1e-9)
    assert torch.allclose(spectrum.largest, torch.cat([s.largest for s in singles]), atol=1e-9)
    found, each = measure(own, together), [measure(own, one) for one in alone]
    assert found.estimates["M"].value == pytest.approx(max(m.estimates["M"].value or 0.0 for m in each))
    for problem, one in zip(inner_problems(own, together), alone, strict=True):
        (single,) = inner_problems(own, one)
        in_batch, by_itself = head_bounds(problem, 0.1), head_bounds(single, 0.1)
        assert (in_batch is None) == (by_itself is None) == (adapt != "head")
        if in_batch is not None:
            assert vars(in_batch) == pytest.approx(vars(by_itself))


def test_proven_bounds_hold_for_weighted_tasks() -> None:
    whole = tasks_for("mlp", tasks=3, weighted=True)
    tasks = hs.TaskBatch(
        whole.support_x,
        whole.support_y,
        whole.query_x,
        whole.query_y,
        support_weight=whole.support.weight,
        query_weight=whole.query.weight,
        task_weight=torch.tensor([5.0, 1.0, 0.0]),
    )
    own = hs.MetaLearner(hs.Partition(make("mlp"), "head"), hs.GradientDescent(2, 0.3))
    for problem in inner_problems(own, tasks):
        bounds = head_bounds(problem, 0.0)
        assert bounds is not None
        assert bounds.M is not None
        surface = Surface(own, problem)
        gradient = surface.gradient(surface.point(problem.start), QUERY)[: surface.n_w]
        assert float(gradient.norm()) <= bounds.M + 1e-12
