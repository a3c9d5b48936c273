"""The surface of one task, the smoothness and the noise of the meta-objective, and that measuring leaves nothing behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import headstart as hs
from headstart.errors import ConfigError, MethodError, TaskError
from headstart.inner.problem import QUERY, SUPPORT
from headstart.measuring import lanczos
from headstart.measuring.constants import measure
from headstart.measuring.lanczos import ends_of
from headstart.measuring.noise import TaskNoise, task_noise
from headstart.measuring.smoothness import meta_smoothness
from headstart.measuring.spectrum import inner_spectrum
from headstart.measuring.surface import Surface, inner_paths
from measured import zoo_learner
from truth import Truth
from zoo import make, tasks_for

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
