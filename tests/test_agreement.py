"""Every hypergradient × partition × model × loss, against Proposition 1 with dense matrices, finite differences and closed forms.

A new mode is one more line in MODES; a new model one more line in zoo.MODELS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import headstart as hs
from headstart.errors import MethodError, PartitionError
from truth import Truth, distance, mean_loss
from zoo import MODELS, make, tasks_for

MODES: dict[str, dict[str, Any]] = {
    "default": {"hypergradient": None},
    "unrolled": {"hypergradient": hs.Unrolled()},
    "unrolled, loop": {"hypergradient": hs.Unrolled(), "vectorise": False},
    "unrolled, vmap": {"hypergradient": hs.Unrolled(), "vectorise": True, "chunk_tasks": 2},
    "unrolled, without replay": {"hypergradient": hs.Unrolled(), "replay": False},
    "recursive": {"hypergradient": hs.Recursive()},
    "recursive, loop": {"hypergradient": hs.Recursive("double-backward"), "vectorise": False},
    "recursive, nothing kept": {"hypergradient": hs.Recursive(keep=0)},
    "recursive, everything kept": {"hypergradient": hs.Recursive(keep=99)},
    "recursive, vmap": {"hypergradient": hs.Recursive("double-backward"), "vectorise": True, "chunk_tasks": 2},
    "recursive, forward over reverse": {"hypergradient": hs.Recursive("forward-over-reverse")},
    "sample space": {"hypergradient": hs.SampleSpace()},
    "first order": {"hypergradient": hs.FirstOrder()},
    "first order, vmap": {"hypergradient": hs.FirstOrder(), "vectorise": True, "chunk_tasks": 2},
}
PARTITIONS = ["head", "last:2", "body", "all", "*bias*", "*weight*"]
RECURRENT = ("two inputs", "encoder")  # no batching rule, so not under vmap
_TRUTH: dict[Any, dict[str, torch.Tensor]] = {}


def truth(model: str, adapt: str, steps: int, l2: float, loss: str, first_order: bool) -> dict[str, torch.Tensor]:
    key = (model, adapt, steps, l2, loss, first_order)
    if key not in _TRUTH:
        made = make(model)
        tasks = tasks_for(model, real_targets=loss == "squared_error", weighted=l2 > 0)
        _TRUTH[key] = Truth(made, hs.Partition(made, adapt).adapted, tasks, loss, l2).proposition_1(steps, 0.3, first_order)
    return _TRUTH[key]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("steps", "l2", "loss"), [(0, 0.0, "cross_entropy"), (3, 0.2, "cross_entropy"), (2, 0.0, "squared_error")])
@pytest.mark.parametrize("adapt", PARTITIONS)
@pytest.mark.parametrize("model", MODELS)
def test_every_mode_is_proposition_1(model: str, adapt: str, steps: int, l2: float, loss: str) -> None:
    made = make(model)
    tasks = tasks_for(model, real_targets=loss == "squared_error", weighted=l2 > 0)
    try:
        partition = hs.Partition(made, adapt)
    except PartitionError:
        pytest.skip("the model has no such part")
    compared = 0
    for mode, options in MODES.items():
        learner = hs.MetaLearner(partition, hs.GradientDescent(steps, 0.3, l2), loss=loss, **options)
        try:
            grads, stats = learner.meta_gradient(tasks)
        except MethodError as error:
            assert mode == "sample space" or ("vmap" in mode and "vectorise=False" in str(error) and model in RECURRENT)
            continue
        expected = truth(model, adapt, steps, l2, loss, mode.startswith("first order"))
        assert grads.keys() == expected.keys()
        assert distance(grads, expected) < 1e-10, mode
        compared += 1
        reference = Truth(made, partition.adapted, tasks, loss, l2)
        assert stats.loss == pytest.approx(reference.objective(steps, 0.3, reference.w, reference.phi), rel=1e-10), mode
    assert compared >= len(MODES) - (4 if model in RECURRENT else 1)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize(("model", "adapt"), [("mlp", "head"), ("mlp", "last:2"), ("conv", "all"), ("conv", "last:2"), ("linear", "all")])
def test_unrolled_agrees_with_finite_differences(model: str, adapt: str, l2: float, steps: int) -> None:
    made, tasks = make(model), tasks_for(model)
    partition = hs.Partition(made, adapt)
    grads, _ = hs.MetaLearner(partition, hs.GradientDescent(steps, 0.2, l2), hs.Unrolled()).meta_gradient(tasks)
    reference = Truth(made, partition.adapted, tasks, "cross_entropy", l2)
    gw, gphi = reference.flat(grads)
    generator = torch.Generator().manual_seed(3)
    for which in ("w", "phi") if len(reference.phi) else ("w",):
        dw, dphi = (torch.randn(v.shape, generator=generator) / max(len(v), 1) ** 0.5 for v in (reference.w, reference.phi))
        dw, dphi = (dw, torch.zeros_like(dphi)) if which == "w" else (torch.zeros_like(dw), dphi)
        measured = reference.directional(steps, 0.2, dw, dphi)
        scale = float(gw.norm() * dw.norm() + gphi.norm() * dphi.norm())
        assert abs(measured - float(gw @ dw + gphi @ dphi)) < 1e-8 * scale, which


@pytest.mark.usefixtures("double")
def test_maml_is_the_partition_of_everything() -> None:
    tasks = tasks_for("conv")
    one, _ = hs.maml(make("conv"), steps=3, lr=0.2, l2=0.1).meta_gradient(tasks)
    model = make("conv")
    two, _ = hs.MetaLearner(hs.Partition(model, adapt="all"), hs.GradientDescent(3, 0.2, 0.1)).meta_gradient(tasks)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert one.keys() == dict(model.named_parameters()).keys()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("steps", [1, 50, 1000])
def test_sample_space_agrees_for_many_steps(steps: int, loss: str) -> None:
    model, tasks = make("mlp"), tasks_for("mlp", weighted=True)
    both = [
        hs.MetaLearner(hs.Partition(model), hs.GradientDescent(steps, 0.1, 0.05), mode, loss=loss).meta_gradient(tasks)[0]
        for mode in (hs.SampleSpace(), hs.Recursive())
    ]
    assert distance(*both) < 1e-10


@dataclass(frozen=True)
class Normalised(hs.Solver):
    """Steps of one length, whatever the gradient's: an update of a user's own."""

    lr: float = 0.1

    def update(self, m: int, w: Any, state: Any, gradient: Any, theta: Any) -> Any:
        size = torch.stack([g.flatten(1).square().sum(1) for g in gradient.values()]).sum(0).add(1e-3).sqrt()
        return {k: w[k] - self.lr * gradient[k] / size.reshape(-1, *[1] * (w[k].dim() - 1)) for k in w}, state


@dataclass(frozen=True)
class Squashed(hs.Solver):
    """Each number by itself, beyond any linear rule, with a state that starts from w."""

    def init(self, w: Any) -> Any:
        return {k: 0.1 * v for k, v in w.items()}

    def update(self, m: int, w: Any, state: Any, gradient: Any, theta: Any) -> Any:
        state = {k: 0.9 * state[k] + gradient[k] ** 3 for k in w}
        return {k: w[k] - 0.1 * torch.tanh(3 * gradient[k]) - 0.05 * state[k] for k in w}, state


SOLVERS = {
    "Adam": (hs.Adam(3, 0.05, 0.1, eps=1e-4), {}),
    "Adam by pattern": (hs.Adam(3, {"*weight": 0.05, "*": (0.1, 0.05, 0.02)}, eps=1e-4), {}),
    "clipped": (hs.GradientDescent(3, 0.3, 0.1, clip=0.2), {}),
    "clipped with momentum": (hs.GradientDescent(3, 0.3, momentum=0.5, clip=0.2), {}),
    "rates by step": (hs.GradientDescent(3, [0.3, 0.2, 0.1], 0.1), {}),
    "rates by pattern": (hs.GradientDescent(3, {"*weight": 0.3, "*": [0.1, 0.2, 0.3]}, 0.1), {}),
    "normalised": (Normalised(3), {}),
    "squashed": (Squashed(3), {"step_weights": [0.1, 0.2, 0.3, 0.4]}),
    "momentum": (hs.GradientDescent(4, 0.1, 0.1, momentum=0.7), {}),
    "prox": (hs.GradientDescent(4, 0.1, prox=0.5), {}),
    "momentum and prox": (hs.GradientDescent(3, 0.1, 0.1, momentum=0.5, prox=0.5), {}),
    "Meta-SGD": (hs.MetaSGD(3, 0.1, 0.1), {}),
    "LSLR": (hs.LSLR(3, 0.1), {}),
    "meta-curvature": (hs.MetaCurvature(3, 0.1, 0.1), {}),
    "meta-curvature, clipped": (hs.MetaCurvature(3, 0.1, clip=0.2, momentum=0.5), {}),
    "LSLR with momentum": (hs.LSLR(3, 0.1, momentum=0.5), {}),
    "multi-step loss": (hs.GradientDescent(3, 0.1), {"step_weights": [0.1, 0.2, 0.3, 0.4]}),
    "MAML++": (hs.LSLR(3, 0.1), {"step_weights": [0.0, 0.2, 0.3, 0.5]}),
    "shared vector": (hs.GradientDescent(3, 0.1), {"start": hs.SharedVector()}),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("adapt", ["head", "last:2", "all"])
def test_solvers_beyond_plain_descent(name: str, adapt: str) -> None:
    """Recursive, vectorised and forward-over-reverse agree with autograd through the iterates, learned step sizes included,
    and autograd with finite differences of the objective in a learned parameter and in a weight."""
    inner, options = SOLVERS[name]
    model, tasks = make("conv"), tasks_for("conv")
    learner = hs.MetaLearner(hs.Partition(model, adapt), inner, hs.Unrolled(), **options)
    expected, _ = learner.meta_gradient(tasks)
    for mode in (hs.Recursive(), hs.Recursive("forward-over-reverse")):
        for vectorise in (False, True):
            other = hs.MetaLearner(hs.Partition(model, adapt), inner, mode, vectorise=vectorise, chunk_tasks=2, **options)
            assert distance(other.meta_gradient(tasks)[0], expected) < 1e-10
    for key in [k for k in expected if k.startswith("inner.")][:2] + [k for k in expected if k.endswith("bias")][-1:]:
        value, h = learner.parameters()[key], 1e-4
        direction = torch.randn(value.shape)
        measured = 0.0
        for sign in (1, -1, 2, -2):
            with torch.no_grad():
                value += sign * h * direction
            measured += {1: 8, -1: -8, 2: -1, -2: 1}[sign] * learner.meta_gradient(tasks)[1].loss / (12 * h)
            with torch.no_grad():
                value -= sign * h * direction
        assert measured == pytest.approx(float((expected[key] * direction).sum()), rel=1e-7, abs=1e-10), key


@pytest.mark.usefixtures("double")
def test_unrolled_approaches_implicit_at_the_rate_of_the_contraction() -> None:
    """‖∂/∂w(N)‖ falls like q^N, q = max |1 − α eig(H)|, and ‖∂/∂φ(N) − ∂/∂φ(∞)‖ between q^N and N q^N."""
    model, tasks = make("mlp"), tasks_for("mlp", tasks=1)
    lr, l2 = 0.5, 0.4
    partition = hs.Partition(model)

    def gradient(steps: int, mode: Any) -> dict[str, torch.Tensor]:
        return hs.MetaLearner(partition, hs.GradientDescent(steps, lr, l2), mode).meta_gradient(tasks)[0]

    limit = gradient(400, hs.Implicit(tolerance=1e-14))
    reference = Truth(model, partition.adapted, tasks, "cross_entropy", l2)
    w_star = reference.path(0, 400, lr, reference.w, reference.phi)[-1]
    H = torch.autograd.functional.hessian(lambda w: reference.side(0, "support")(w, reference.phi), w_star)
    q = float((1 - lr * torch.linalg.eigvalsh(H)).abs().max())
    assert 0.5 < q < 1
    assert all(float(limit[k].abs().max()) == 0 for k in partition.adapted)

    def error(steps: int) -> tuple[float, float]:
        w, phi = reference.flat({k: v - limit[k] for k, v in gradient(steps, hs.Recursive()).items()})
        return float(w.norm()), float(phi.norm())

    for a, b in ((40, 50), (50, 60), (60, 70)):
        (w_a, phi_a), (w_b, phi_b) = error(a), error(b)
        assert w_b / w_a == pytest.approx(q ** (b - a), rel=0.05)
        assert 0.95 * q ** (b - a) < phi_b / phi_a < 1.05 * q ** (b - a) * b / a


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("solver", ["cg", "neumann"])
@pytest.mark.parametrize("vectorise", [False, True])
def test_implicit_is_the_dense_solution(solver: str, vectorise: bool) -> None:
    """Against H solved densely at the minimiser, with a proximal term: ∂/∂w_0 = λ H⁻¹ g, ∂/∂φ = ∇_φ L_D − C H⁻¹ g."""
    model, tasks, prox = make("conv"), tasks_for("conv"), 2.0
    partition = hs.Partition(model, "last:2")
    inner = hs.GradientDescent(600, 0.2, prox=prox)
    mode = hs.Implicit(solver, iterations=500, tolerance=1e-13)
    learner = hs.MetaLearner(partition, inner, mode, vectorise=vectorise, chunk_tasks=2)
    grads, stats = learner.meta_gradient(tasks)
    assert stats.info["residual"] < 1e-12
    assert 1 <= stats.info["iterations"] <= 500
    reference = Truth(model, partition.adapted, tasks, "cross_entropy", 0.0, prox)
    dw, dphi = torch.zeros_like(reference.w), torch.zeros_like(reference.phi)
    for t in range(len(tasks)):
        L_S, L_D = reference.side(t, "support"), reference.side(t, "query")
        w = reference.path(t, 600, 0.2, reference.w, reference.phi)[-1].detach()
        H = torch.autograd.functional.hessian(lambda w: L_S(w, reference.phi), w)  # noqa: B023
        C = torch.func.jacrev(torch.func.grad(L_S, argnums=0), argnums=1)(w, reference.phi).T
        v = torch.linalg.solve(H, torch.func.grad(L_D, argnums=0)(w, reference.phi))
        dw, dphi = dw + prox * v, dphi + torch.func.grad(L_D, argnums=1)(w, reference.phi) - C @ v
    expected = reference.unflatten(dw / len(tasks), dphi / len(tasks))
    assert distance(grads, expected) < 1e-10


@pytest.mark.usefixtures("double")
def test_implicit_reports_the_worst_of_all_tasks() -> None:
    """Tasks solved one after the other report what the worst of them does, wherever it stands in the batch."""
    tasks = tasks_for("mlp", tasks=4)
    learner = hs.anil(make("mlp"), 300, 0.5, 0.4, hypergradient=hs.Implicit(iterations=2), chunk_tasks=1)
    alone = [learner.meta_gradient(tasks[t])[1].info["residual"] for t in range(4)]
    assert len(set(alone)) == 4
    assert learner.meta_gradient(tasks)[1].info["residual"] == pytest.approx(max(alone), rel=1e-9)


@pytest.mark.usefixtures("double")
def test_implicit_refuses_with_reasons() -> None:
    model, tasks = make("mlp"), tasks_for("mlp")
    with pytest.raises(MethodError, match="not converged"):
        hs.MetaLearner(hs.Partition(model), hs.GradientDescent(1, 0.01, l2=0.1), hs.Implicit()).meta_gradient(tasks)
    with pytest.raises(MethodError, match="not positive definite"):
        hs.MetaLearner(hs.Partition(model, "all"), hs.GradientDescent(5, 0.1), hs.Implicit(stationary=None)).meta_gradient(tasks)
    with pytest.raises(MethodError, match="diverges"):
        far = hs.GradientDescent(1, 60.0, l2=0.1)
        hs.MetaLearner(hs.Partition(model), far, hs.Implicit("neumann", stationary=None)).meta_gradient(tasks)
    with pytest.raises(MethodError, match="step_weights"):
        options = {"step_weights": [0.0, 1.0]}
        hs.MetaLearner(hs.Partition(model), hs.GradientDescent(1, 0.1, 0.1), hs.Implicit(), **options).meta_gradient(tasks)
    with pytest.raises(MethodError, match="learns its step sizes"):
        hs.MetaLearner(hs.Partition(model), hs.MetaSGD(1, 0.1, 0.1), hs.Implicit()).meta_gradient(tasks)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("real_targets", [False, True])
def test_ridge_is_the_normal_equations(weighted: bool, real_targets: bool) -> None:
    """The closed form against (Σ ω z zᵀ + λ)⁻¹ Σ ω z yᵀ in feature space, and its meta-gradient against autograd through that."""
    model, tasks = make("mlp"), tasks_for("mlp", weighted=weighted, real_targets=real_targets)
    loss = "squared_error" if real_targets else "cross_entropy"
    learner = hs.r2d2(model, l2=0.7, scale=3.0, loss=loss)
    grads, stats = learner.meta_gradient(tasks)
    log_l2, log_scale = torch.tensor(0.7).log().requires_grad_(), torch.tensor(3.0).log().requires_grad_()
    losses = []
    for t in range(len(tasks)):
        one = lambda z: torch.cat([z, torch.ones(len(z), 1)], 1)  # noqa: E731
        z_S, z_Q = one(model[:4](tasks.support_x[t])), one(model[:4](tasks.query_x[t]))
        y = tasks.support_y[t] if real_targets else torch.nn.functional.one_hot(tasks.support_y[t], 3).double()
        omega = torch.ones(len(z_S)) if not weighted else tasks.support.weight[t]
        omega = omega / omega.sum() * (omega > 0).sum()
        W = torch.linalg.solve(z_S.T @ (omega[:, None] * z_S) + log_l2.exp() * torch.eye(z_S.shape[1]), z_S.T @ (omega[:, None] * y))
        logits = z_Q @ W * (1 if real_targets else log_scale.exp())
        losses.append(mean_loss(loss, logits, tasks.query_y[t], None if not weighted else tasks.query.weight[t]))
    objective = torch.stack(losses).mean()
    assert stats.loss == pytest.approx(float(objective.detach()), rel=1e-12)
    names = [n for n, _ in model.named_parameters() if not n.startswith("4.")]
    own = dict(model.named_parameters())
    expected = torch.autograd.grad(objective, [own[n] for n in names] + [log_l2, log_scale], allow_unused=True, materialize_grads=True)
    found = [grads[n] for n in names] + [grads["inner.log_l2"], grads["inner.log_scale"]]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [None, hs.Unrolled(), hs.Recursive("double-backward"), hs.FirstOrder()])
@pytest.mark.parametrize("adapt", ["head", "last:2", "all"])
def test_task_weights_weigh_the_gradients_of_single_tasks(method: Any, adapt: str) -> None:
    tasks, weight = tasks_for("mlp", tasks=3), torch.tensor([1.0, 0.0, 3.0])
    weighted = hs.TaskBatch(tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y, task_weight=weight)
    learner = hs.anil(make("mlp"), 3, 0.3, adapt=adapt, hypergradient=method)
    found, stats = learner.meta_gradient(weighted)
    single = [learner.meta_gradient(tasks[t]) for t in range(3)]
    for k, v in found.items():
        torch.testing.assert_close(v, (single[0][0][k] + 3 * single[2][0][k]) / 4)
    assert stats.loss == pytest.approx((single[0][1].loss + 3 * single[2][1].loss) / 4)
    torch.testing.assert_close(stats.losses, torch.cat([s.losses for _, s in single]))
