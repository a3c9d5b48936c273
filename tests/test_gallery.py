"""The parts that the algorithms of the gallery bring, against closed forms, other solvers and finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import headstart as hs
from fakes import source
from headstart.errors import ConfigError, MethodError
from headstart.inner.linear_head import LinearHead
from headstart.inner.simplex_qp import solve
from truth import distance
from zoo import make, tasks_for


def difference(learner: hs.MetaLearner, tasks: Any, name: str, h: float = 1e-4) -> tuple[float, float]:
    """The derivative of the meta-objective along a random direction of one parameter: measured, and by the meta-gradient."""
    value, measured = learner.parameters()[name], 0.0
    direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    gradient = learner.meta_gradient(tasks)[0][name]
    for k, weight in {1: 8, -1: -8, 2: -1, -2: 1}.items():
        with torch.no_grad():
            value += k * h * direction
        measured += weight * float(learner.meta_gradient(tasks)[1].loss) / (12 * h)
        with torch.no_grad():
            value -= k * h * direction
    return measured, float((gradient * direction).sum())


def agrees(learner: hs.MetaLearner, tasks: Any, rtol: float = 1e-6) -> None:
    """The meta-gradient of every parameter is that of finite differences."""
    for name in learner.parameters():
        measured, found = difference(learner, tasks, name)
        assert found == pytest.approx(measured, rel=rtol, abs=1e-8), name


# -- Reptile ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("model", ["mlp", "conv", "linear"])
@pytest.mark.parametrize("vectorise", [False, True])
def test_reptile_moves_the_start_to_where_adaptation_ends(model: str, vectorise: bool) -> None:
    """A step of size ε by SGD is ε (1/T) Σ (w_N − w_0), with w_N from a loop that is written out."""
    made, tasks = make(model), tasks_for(model)
    learner = hs.reptile(made, 4, 0.2, vectorise=vectorise)
    before = {k: v.detach().clone() for k, v in made.named_parameters()}
    ends = []
    for t in range(len(tasks)):
        w = {k: v.clone().requires_grad_() for k, v in before.items()}
        for _ in range(4):
            loss = nn.functional.cross_entropy(torch.func.functional_call(made, w, (tasks.support_x[t],)), tasks.support_y[t])
            w = {
                k: (v - 0.2 * g).detach().requires_grad_()
                for (k, v), g in zip(w.items(), torch.autograd.grad(loss, list(w.values())), strict=True)
            }
        ends.append(w)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.5)
    grads, stats = learner.meta_gradient(tasks)
    for k, v in made.named_parameters():
        v.grad = grads[k]
    optimizer.step()
    moved = {k: before[k] + 0.5 * torch.stack([w[k].detach() - before[k] for w in ends]).mean(0) for k in before}
    assert distance({k: v.detach() for k, v in made.named_parameters()}, moved) < 1e-12
    first = hs.fomaml(make(model), 4, 0.2).meta_gradient(tasks)[1]
    assert stats.loss == pytest.approx(float(first.loss), rel=1e-12)


@pytest.mark.usefixtures("double")
def test_reptile_goes_through_a_start_and_makes_the_calls_that_are_predicted() -> None:
    """With a shared vector the rows of the head move alike; no query gradient is taken."""
    model, tasks = make("mlp"), tasks_for("mlp")
    learner = hs.reptile(model, 3, 0.1, start=hs.SharedVector())
    grads, _ = learner.meta_gradient(tasks)
    assert torch.allclose(grads["4.weight"], grads["4.weight"][:1].expand(3, -1))
    with hs.ledger() as book:
        learner.meta_gradient(tasks)
    assert book == hs.predicted_calls(learner, tasks)
    assert book["grad_w_support"].calls == 3 * len(tasks)
    assert book["grad_w_query"].calls == 0


def test_reptile_refuses_what_it_has_no_gradient_for() -> None:
    tasks = tasks_for("mlp")
    with pytest.raises(MethodError, match=r"shared '0.weight'"):
        hs.anil(make("mlp"), 3, 0.1, hypergradient=hs.Reptile()).meta_gradient(tasks)
    with pytest.raises(MethodError, match="no gradient"):
        hs.MetaLearner(hs.Partition(make("mlp"), "all"), hs.MetaSGD(2, 0.1), hs.Reptile()).meta_gradient(tasks)
    with pytest.raises(MethodError, match="leave step_weights out"):
        hs.reptile(make("mlp"), 1, 0.1, step_weights=[0.5, 0.5]).meta_gradient(tasks)
    with pytest.raises(ConfigError, match="closed form"):
        hs.metaoptnet(make("mlp"), hypergradient=hs.Reptile())


# -- meta-curvature --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("model", ["conv", "mlp", "attention"])
def test_meta_curvature_begins_as_gradient_descent_bit_for_bit(model: str) -> None:
    tasks = tasks_for(model)
    own, plain = hs.metacurvature(make(model), 3, 0.2), hs.maml(make(model), 3, 0.2)
    for a, b in zip(own.trajectory(tasks), plain.trajectory(tasks), strict=True):
        assert torch.equal(a, b)
    found, wanted = own.meta_gradient(tasks)[0], plain.meta_gradient(tasks)[0]
    assert distance({k: found[k] for k in wanted}, wanted) < 1e-12


@pytest.mark.usefixtures("double")
def test_meta_curvature_is_the_product_along_each_axis() -> None:
    """One step moves a convolution by the gradient, multiplied by a matrix for outputs, one for inputs and one for the filter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.randn(1, 5, 2, 4, 4), torch.tensor([[0, 1, 2, 0, 1]])
    learner = hs.metacurvature(model, 1, 0.3)
    theta = learner.theta
    with torch.no_grad():
        for matrix in theta.values():
            matrix += 0.3 * torch.randn(matrix.shape)
    loss = nn.functional.cross_entropy(model(x[0]), y[0])
    G, g = torch.autograd.grad(loss, [model[0].weight, model[3].bias])
    wide = torch.kron(
        theta["out.0.weight"].contiguous(), torch.kron(theta["in.0.weight"].contiguous(), theta["filter.0.weight"].contiguous())
    )
    w = learner.adapt(x[0], y[0]).w
    torch.testing.assert_close(w["0.weight"], model[0].weight - 0.3 * (wide @ G.flatten()).view_as(G))
    torch.testing.assert_close(w["3.bias"], model[3].bias - 0.3 * theta["each.3.bias"] * g)


@pytest.mark.usefixtures("double")
def test_the_gradient_into_the_transforms_is_that_of_finite_differences() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3))
    x, y = torch.randn(2, 2, 4, 1, 4, 4), torch.tensor([[0, 1, 2, 0]]).repeat(2, 1)
    learner = hs.metacurvature(model, 2, 0.2)
    with torch.no_grad():
        for matrix in learner.theta.values():
            matrix += 0.1 * torch.randn(matrix.shape)
    agrees(learner, hs.TaskBatch(x[0], y, x[1], y))


# -- support vectors -------------------------------------------------------------------------------------------------------


def problem_of(seed: int, shots: int, ways: int, features: int, spread: float = 1.0) -> tuple[nn.Module, hs.TaskBatch]:
    torch.manual_seed(seed)
    y = torch.arange(ways).repeat(shots)
    x = spread * torch.randn(2, len(y), features) + torch.randn(ways, features)[y]
    body = nn.Sequential(nn.Linear(features, features), nn.Tanh())
    return nn.Sequential(body, nn.Linear(features, ways)), hs.TaskBatch(
        x, y.repeat(2, 1), torch.randn(2, 7, features), torch.arange(7).repeat(2, 1) % ways
    )


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("C", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize(("shots", "ways", "features"), [(3, 3, 4), (1, 5, 6), (4, 2, 3), (6, 3, 2)])
def test_the_support_vector_head_is_that_of_scikit_learn(C: float, shots: int, ways: int, features: int) -> None:
    """LinearSVC by the method of Crammer and Singer has the same objective, its intercept being a feature that is 1."""
    svm = pytest.importorskip("sklearn.svm")
    model, tasks = problem_of(0, shots, ways, features)
    learner = hs.metaoptnet(model, C=C, scale=1.0)
    z = model[0](tasks.support_x[0]).detach()
    adapted = learner.adapt(tasks.support_x[0], tasks.support_y[0])
    y = tasks.support_y[0]

    def objective(W: Tensor, b: Tensor) -> float:
        scores = z @ W.T + b
        margin = scores - scores.gather(1, y[:, None]) + 1 - nn.functional.one_hot(y, ways)
        return float(0.5 * (W.square().sum() + b.square().sum()) + C * margin.amax(1).sum())

    own = objective(adapted.w["1.weight"], adapted.w["1.bias"])
    other = svm.LinearSVC(C=C, multi_class="crammer_singer", tol=1e-10, max_iter=1_000_000).fit(z.numpy(), y.numpy())
    if ways == 2:  # it keeps the difference of the two rows alone
        W = torch.from_numpy(np.concatenate([-other.coef_, other.coef_]) / 2)
        b = torch.from_numpy(np.concatenate([-other.intercept_, other.intercept_]) / 2)
    else:
        W, b = torch.from_numpy(other.coef_), torch.from_numpy(other.intercept_)
    assert own <= objective(W, b) + 1e-8
    assert own == pytest.approx(objective(W, b), rel=1e-6)
    torch.testing.assert_close(adapted.w["1.weight"], W, rtol=0, atol=2e-4)
    torch.testing.assert_close(adapted.w["1.bias"], b, rtol=0, atol=2e-4)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("ways", [2, 3, 7])
@pytest.mark.parametrize("rank", [2, 40])
def test_the_dual_meets_its_optimality_conditions(ways: int, rank: int) -> None:
    """Feasible, dual feasible and complementary, which at a convex program is being optimal; also where K is singular or tiny."""
    torch.manual_seed(1)
    for size in (1e-6, 1.0, 30.0):
        z, y = size * torch.randn(3, 12, rank), torch.randint(ways, (3, 12))
        K, own = z @ z.mT, nn.functional.one_hot(y, ways).double()
        u = solve(K, own - K @ own).u
        gradient = K @ u + own - K @ own
        gap = (u * (gradient - gradient.amin(-1, keepdim=True))).sum((1, 2))  # Frank and Wolfe's: an upper bound of what is left
        assert float((u.sum(-1) - 1).abs().max()) < 1e-9
        assert float(u.min()) >= 0
        assert float((gap / gradient.abs().amax((1, 2))).max()) < 1e-7  # what rounding leaves where K is large


def test_a_task_that_is_not_finite_spoils_no_other() -> None:
    K, Q = torch.randn(3, 6, 4).double(), torch.randn(3, 6, 3).double()
    K = K @ K.mT
    whole = solve(K, Q).u
    K[1, 2, 2] = torch.nan
    assert bool(solve(K, Q).u[1].isnan().all())
    torch.testing.assert_close(solve(K, Q).u[[0, 2]], whole[[0, 2]], rtol=0, atol=1e-9)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("C", "shots", "ways"), [(0.1, 2, 3), (1.0, 1, 5), (0.5, 3, 2)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_meta_gradient_of_the_support_vector_head_is_that_of_finite_differences(
    C: float, shots: int, ways: int, weighted: bool
) -> None:
    model, tasks = problem_of(2, shots, ways, 4, 0.3)
    if weighted:
        share = torch.linspace(0.2, 1.0, shots * ways).repeat(2, 1)
        tasks = hs.TaskBatch(tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y, support_weight=share)
    agrees(hs.metaoptnet(model, C=C, scale=2.0), tasks, 1e-5)


def test_more_support_examples_than_features_in_single_precision() -> None:
    """K has no inverse then, and the dual many solutions; the head is one all the same, and so is the meta-gradient."""
    model, tasks = problem_of(4, 8, 3, 3, 0.3)
    found, _ = hs.metaoptnet(model, C=0.5).meta_gradient(tasks)
    twice = hs.TaskBatch(tasks.support_x.double(), tasks.support_y, tasks.query_x.double(), tasks.query_y)
    learner = hs.metaoptnet(model.double(), C=0.5)
    expected, _ = learner.meta_gradient(twice)
    assert distance(found, expected) < 1e-4
    agrees(learner, twice, 1e-5)


@pytest.mark.usefixtures("double")
def test_an_example_of_weight_zero_is_as_none_and_adapting_gives_the_weights_of_the_outputs() -> None:
    model, tasks = problem_of(3, 3, 3, 4)
    learner, x, y = hs.metaoptnet(model, C=0.5), tasks.support_x[0], tasks.support_y[0]
    weight = torch.tensor([1.0] * 8 + [0.0])
    a, b = learner.adapt(x, y, support_weight=weight), learner.adapt(x[:8], y[:8])
    torch.testing.assert_close(a.logits(x), b.logits(x), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(learner.trajectory(tasks)[-1][0], learner.adapt(x, y).logits(tasks.query_x[0]))


def test_the_support_vector_head_refuses_what_it_cannot_do() -> None:
    for wrong in ({"C": 0.0}, {"C": float("inf")}, {"scale": -1.0}, {"C": True}):
        with pytest.raises(ConfigError, match="above 0"):
            hs.SVM(**wrong)  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="tells classes apart"):
        hs.metaoptnet(make("mlp"), loss="squared_error").meta_gradient(tasks_for("mlp", real_targets=True))
    with pytest.raises(MethodError, match="needs one linear layer"):
        hs.MetaLearner(hs.Partition(make("mlp"), "all"), hs.SVM()).meta_gradient(tasks_for("mlp"))
    with pytest.raises(ConfigError, match="closed form"):
        hs.SVM().with_steps(3)
    assert LinearHead  # the form that it shares with Ridge()


# -- context parameters ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", ["mlp", "conv4"])
def test_only_the_context_adapts_and_it_starts_at_zero(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "mlp":
        model, x = hs.models.mlp(4, 3, (8,), context=3).double(), torch.randn(2, 2, 6, 4)
        model[2] = nn.Tanh()  # finite differences do not like corners
    else:
        model, x = hs.models.conv4(1, 3, 16, filters=4, context=3).double().eval(), torch.randn(2, 2, 6, 1, 16, 16)
    y = torch.arange(3).repeat(2, 2)
    tasks = hs.TaskBatch(x[0], y, x[1], y)
    learner = hs.cavia(model, 3, 0.5)
    (name,) = learner.partition.adapted
    with torch.no_grad():
        learner.parameters()[name] += 1.0  # whatever stands there plays no part
    before = {k: v.detach().clone() for k, v in model.state_dict().items()}
    plain = torch.func.functional_call(model, {name: torch.zeros(3)}, (x[1, 0],))
    torch.testing.assert_close(learner.trajectory(tasks)[0][0], plain)
    adapted = learner.adapt(x[0, 0], y[0])
    changed = [k for k, v in adapted.to_module().state_dict().items() if not torch.equal(v, before[k])]
    assert changed == [name]
    # One step from zero, written out.
    context = torch.zeros(3, requires_grad=True)
    loss = nn.functional.cross_entropy(torch.func.functional_call(model, {name: context}, (x[0, 0],)), y[0])
    (g,) = torch.autograd.grad(loss, context)
    torch.testing.assert_close(learner.adapt(x[0, 0], y[0], steps=1).w[name], -0.5 * g)
    grads = [hs.cavia(model, 3, 0.5, hypergradient=h).meta_gradient(tasks)[0] for h in (hs.Unrolled(), hs.Recursive(), None)]
    assert float(grads[0][name].abs().max()) == 0
    assert all(distance(other, grads[0]) < 1e-10 for other in grads[1:])
    if kind == "mlp":
        agrees(learner, tasks)


def test_context_parameters_learn_sine_waves() -> None:
    """After 150 outer steps, adapting the context alone takes away much of the error that is left without it."""
    torch.manual_seed(0)
    data = hs.data.load("sinusoid")
    learner = hs.cavia(hs.models.mlp(1, 1, (20, 20), context=5), 3, 0.3, loss="squared_error")
    config = hs.TrainConfig(shots=10, queries=10, tasks=8, iterations=150, validate_every=150, validation_episodes=10, outer_lr=5e-3)
    hs.train(learner, data, config, quiet=True)
    result = hs.evaluate(learner, data.test, shots=10, episodes=200)
    assert result.mean < 0.7 * result.before


# -- cosine heads ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
def test_a_cosine_head_does_not_see_the_size_of_features() -> None:
    """Neither before nor after adaptation, for the head's own start and for centroids of one example each."""
    y = torch.arange(3).repeat(2, 1)
    x = torch.randn(2, 2, 3, 5)
    sizes = torch.rand(2, 2, 3, 1) + 0.1
    model = nn.Sequential(nn.Identity())
    model.add_module("head", hs.models.Cosine(5, 3))
    small, large = hs.TaskBatch(x[0], y, x[1], y), hs.TaskBatch(sizes[0] * x[0], y, sizes[1] * x[1], y)
    for learner in (hs.anil_cosine(model, 3, 0.5), hs.metabaseline(model)):
        for a, b in zip(learner.trajectory(small), learner.trajectory(large), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "make_model", [lambda: hs.models.mlp(4, 3, (6, 5), head="cosine"), lambda: hs.models.projection(4, 3, head="cosine")]
)
def test_the_meta_gradient_of_a_cosine_head_agrees(make_model: Any) -> None:
    tasks, model = tasks_for("mlp"), make_model()
    for i, layer in enumerate(model):
        if isinstance(layer, nn.ReLU):
            model[i] = nn.Tanh()  # finite differences do not like corners
    learner = hs.anil_cosine(model, 2, 0.3)
    assert learner.partition.adapted == ("head.weight",)
    agrees(learner, tasks)
    expected = learner.meta_gradient(tasks)[0]
    for h in (hs.Unrolled(), hs.Recursive(), hs.Recursive("forward-over-reverse")):
        for vectorise in (False, True):
            other = hs.anil_cosine(learner.model, 2, 0.3, hypergradient=h, vectorise=vectorise, chunk_tasks=2)
            assert distance(other.meta_gradient(tasks)[0], expected) < 1e-10


@pytest.mark.usefixtures("double")
def test_meta_baseline_is_the_cosine_with_class_means() -> None:
    """Scores, loss and gradient written out, the temperature's included; tasks may have other ways than the model."""
    model = hs.models.mlp(4, 2, (6,), head="cosine")
    y = torch.tensor([0, 1, 2, 0, 1, 2, 2]).repeat(3, 1)
    x = torch.randn(3, 7, 4)
    tasks = hs.TaskBatch(x, y, torch.randn(3, 5, 4), torch.tensor([0, 1, 2, 0, 1]).repeat(3, 1))
    learner = hs.metabaseline(model)
    grads, stats = learner.meta_gradient(tasks)
    body, total = nn.Sequential(model[0], model[1]), torch.zeros(())
    for t in range(3):
        z = body(x[t])
        means = torch.stack([z[y[t] == c].mean(0) for c in range(3)])
        cosines = nn.functional.cosine_similarity(body(tasks.query_x[t])[:, None], means[None], dim=-1)
        total = total + nn.functional.cross_entropy(model.head.log_scale.exp() * cosines, tasks.query_y[t]) / 3
    assert stats.loss == pytest.approx(float(total.detach()), rel=1e-12)
    names = ["0.weight", "0.bias", "head.log_scale"]
    own = dict(model.named_parameters())
    expected = dict(zip(names, torch.autograd.grad(total, [own[n] for n in names]), strict=True))
    assert distance({n: grads[n] for n in names}, expected) < 1e-10
    assert float(grads["head.weight"].abs().max()) == 0
    torch.testing.assert_close(learner.adapt(x[0], y[0]).logits(tasks.query_x[0]), learner.trajectory(tasks)[-1][0])


def test_centroids_refuse_heads_that_they_do_not_fit() -> None:
    for adapt in ("head", "all"):
        with pytest.raises(MethodError, match="Centroids"):
            hs.metabaseline(make("mlp"), adapt=adapt).meta_gradient(tasks_for("mlp"))
    with pytest.raises(ConfigError, match="head='cosin'"):
        hs.models.mlp(4, 3, head="cosin")
    with pytest.raises(ConfigError, match="above 0"):
        hs.models.Cosine(4, 3, scale=0.0)


# -- a latent head ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("make_model", [lambda: hs.models.mlp(4, 3, (6, 5)), lambda: hs.models.projection(4, 3)])
def test_the_meta_gradient_of_a_latent_head_agrees(make_model: Any) -> None:
    """By finite differences and by every way, through the codes that begin as a function of body and decoder."""
    tasks, model = tasks_for("mlp"), make_model()
    for i, layer in enumerate(model):
        if isinstance(layer, nn.ReLU):
            model[i] = nn.Tanh()
    features = model[-1].in_features
    del model[-1]
    model.add_module("head", hs.models.Latent(features, 3, 2))
    learner = hs.anil_latent(model, 2, 0.03)
    assert learner.partition.adapted == ("head.code",)
    agrees(learner, tasks)
    expected = learner.meta_gradient(tasks)[0]
    assert float(expected["head.decode.weight"].abs().max()) > 0
    for h in (hs.Unrolled(), hs.Recursive(), hs.Recursive("forward-over-reverse")):
        for vectorise in (False, True):
            other = hs.anil_latent(learner.model, 2, 0.03, hypergradient=h, vectorise=vectorise, chunk_tasks=2)
            assert distance(other.meta_gradient(tasks)[0], expected) < 1e-10


@pytest.mark.usefixtures("double")
def test_codes_begin_at_the_least_squares_of_the_class_means() -> None:
    """The class vectors are then the means' projections into what can be decoded; with nothing left out that is ProtoNet."""
    y = torch.tensor([0, 1, 2, 0, 1, 2, 2])
    x, q = torch.randn(7, 4), torch.randn(5, 4)
    means = torch.stack([x[y == c].mean(0) for c in range(3)])
    for size in (1, 2, 4):
        model = nn.Sequential(nn.Identity())
        model.add_module("head", hs.models.Latent(4, 2, size))
        nn.init.normal_(model.head.decode.weight)
        rows = means @ torch.linalg.pinv(model.head.decode.weight).mT @ model.head.decode.weight.mT
        distances = torch.cdist(q, rows).square()
        scores = hs.anil_latent(model, 0, 1.0).adapt(x, y).logits(q)
        torch.testing.assert_close(scores.softmax(-1), (-distances).softmax(-1))
    plain = nn.Sequential(nn.Identity(), nn.Linear(4, 2))
    torch.testing.assert_close(scores.softmax(-1), hs.protonet(plain).adapt(x, y).predict_proba(q))


@pytest.mark.usefixtures("double")
def test_what_a_latent_head_needs_is_said() -> None:
    for model in (make("mlp"), hs.models.mlp(4, 3, head="cosine")):
        with pytest.raises(MethodError, match="Encoded"):
            hs.anil_latent(model, 1, 0.1, adapt="head").meta_gradient(tasks_for("mlp"))
    with pytest.raises(MethodError, match="Encoded"):
        hs.anil_latent(hs.models.mlp(4, 3, head="latent"), 1, 0.1, adapt="all").meta_gradient(tasks_for("mlp"))
    for size in (0, 5):
        with pytest.raises(ConfigError, match="1 to 4 numbers"):
            hs.models.Latent(4, 3, size)


# -- transductive prototypes -----------------------------------------------------------------------------------------------


def clusters(unbalanced: bool = False) -> tuple[hs.TaskBatch, Tensor, Tensor]:
    """Clusters far apart, as tasks on features that are the inputs, their support and query labels being right."""
    y = torch.tensor([0, 1, 2, 0, 1, 2]).repeat(2, 1)
    centres = 100 * torch.eye(3).repeat(1, 2)
    q = torch.tensor([0, 0, 0, 0, 1, 2, 0]).repeat(2, 1) if unbalanced else torch.tensor([2, 1, 0, 0, 1, 2, 0]).repeat(2, 1)
    return hs.TaskBatch(centres[y] + torch.randn(2, 6, 6), y, centres[q] + torch.randn(2, 7, 6), q), y, q


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("unbalanced", [False, True])
def test_refining_with_clusters_far_apart_gives_their_means(iterations: int, unbalanced: bool) -> None:
    tasks, y, q = clusters(unbalanced)
    model = nn.Sequential(nn.Identity(), nn.Linear(6, 3))
    learner = hs.soft_kmeans(model, iterations)
    for t in range(2):
        both, label = torch.cat([tasks.support_x[t], tasks.query_x[t]]), torch.cat([y[t], q[t]])
        means = torch.stack([both[label == c].mean(0) for c in range(3)])
        expected = 2 * tasks.query_x[t] @ means.T - means.square().sum(1)
        torch.testing.assert_close(learner.trajectory(tasks)[-1][t], expected)


@pytest.mark.usefixtures("double")
def test_refined_prototypes_are_differentiated_through_both_sides() -> None:
    tasks = tasks_for("mlp")
    y = torch.tensor([0, 1, 2, 0]).repeat(2, 1)
    tasks = hs.TaskBatch(tasks.support_x, y, tasks.query_x, tasks.query_y)
    plain, none = hs.protonet(make("mlp")), hs.soft_kmeans(make("mlp"), 0)
    assert all(torch.equal(a, b) for a, b in zip(plain.trajectory(tasks), none.trajectory(tasks), strict=True))
    agrees(hs.soft_kmeans(make("mlp"), 2), tasks)
    steps = {"steps": 2, "lr": 0.05, "start": hs.RefinedPrototypes()}
    expected = hs.anil(make("mlp"), **steps).meta_gradient(tasks)[0]
    for h in (hs.Unrolled(), hs.Recursive()):
        assert distance(hs.anil(make("mlp"), **steps, hypergradient=h).meta_gradient(tasks)[0], expected) < 1e-10
    agrees(hs.anil(make("mlp"), **steps), tasks)


@pytest.mark.usefixtures("double")
def test_query_labels_and_padding_play_no_part_in_refining() -> None:
    tasks, _, q = clusters()
    learner = hs.soft_kmeans(nn.Sequential(nn.Identity(), nn.Linear(6, 3)))
    other = hs.TaskBatch(tasks.support_x, tasks.support_y, tasks.query_x, (q + 1) % 3)
    assert torch.equal(learner.trajectory(tasks)[-1], learner.trajectory(other)[-1])
    short = hs.TaskBatch(tasks.support_x[:1], tasks.support_y[:1], tasks.query_x[:1, :4], q[:1, :4])
    ragged = hs.TaskBatch.ragged(
        [
            (tasks.support_x[0], tasks.support_y[0], tasks.query_x[0, :4], q[0, :4]),
            (tasks.support_x[1], tasks.support_y[1], tasks.query_x[1], q[1]),
        ]
    )
    torch.testing.assert_close(learner.trajectory(ragged)[-1][0, :4], learner.trajectory(short)[-1][0])


def test_a_transductive_result_says_so_and_one_example_alone_is_refused() -> None:
    learner, data = hs.soft_kmeans(hs.models.conv4(1, 5, 16, filters=4)), source()
    result = hs.evaluate(learner, data.test, ways=5, shots=1, queries=3, episodes=4)
    assert "transductive: the start sees the query examples" in str(result)
    assert "inductive)" not in str(result)
    assert hs.compare(result, hs.evaluate(hs.protonet(learner.model), data.test, ways=5, shots=1, queries=3, episodes=4)).episodes == 4
    assert "transductive" not in str(hs.evaluate(hs.protonet(learner.model), data.test, ways=5, shots=1, queries=3, episodes=4))
    with pytest.raises(MethodError, match="needs the query examples"):
        learner.adapt(torch.randn(5, 1, 16, 16), torch.arange(5))
    with pytest.raises(ConfigError, match="iterations=-1"):
        hs.RefinedPrototypes(-1)
