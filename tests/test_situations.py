"""Shapes, losses and objectives that users have, each with its right value: the plain loop's, or an error that names the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import headstart as hs
from headstart.errors import ConfigError, TaskError
from plain import off_by, plain_gradient

X = (3, 6, 4), (3, 5, 4)


def tasks(y: Callable[[int, int], Tensor]) -> hs.TaskBatch:
    torch.manual_seed(1)
    return hs.TaskBatch(torch.randn(X[0]).double(), y(3, 6), torch.randn(X[1]).double(), y(3, 5))


def net(outputs: int, squeeze: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs), *([nn.Flatten(0)] if squeeze else []))
    return model.double()


labels = lambda ways: lambda t, n: torch.randint(ways, (t, n))  # noqa: E731
numbers = lambda *k: lambda t, n: torch.randn(t, n, *k).double()  # noqa: E731
answers = lambda *k: lambda t, n: torch.randint(2, (t, n, *k)).double()  # noqa: E731
shares = lambda k: lambda t, n: torch.randn(t, n, k).double().softmax(-1)  # noqa: E731
column = lambda f: lambda o, y: f(o.reshape(len(o), -1), y.reshape(len(y), -1).to(o))  # noqa: E731

LOSSES: dict[str, tuple[nn.Module, Callable[[int, int], Tensor], Any, Callable[[Tensor, Tensor], Tensor]]] = {
    "criterion": (net(3), labels(3), nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1), nn.CrossEntropyLoss(label_smoothing=0.1)),
    "function": (net(3), labels(3), F.cross_entropy, F.cross_entropy),
    "class of criteria": (net(2), numbers(2), nn.HuberLoss, nn.HuberLoss()),
    "soft labels": (net(3), shares(3), "cross_entropy", F.cross_entropy),
    "mse, column": (net(1), numbers(), nn.MSELoss(reduction="none"), column(F.mse_loss)),
    "mse, (n,) outputs": (net(1, True), numbers(), F.mse_loss, F.mse_loss),
    "several targets": (net(2), numbers(2), nn.SmoothL1Loss(reduction="none"), nn.SmoothL1Loss()),
    "half the squared error": (net(2), numbers(2), "squared_error", lambda o, y: 0.5 * (o - y).square().sum(-1).mean()),
    "one answer": (net(1), labels(2), "binary_cross_entropy", column(F.binary_cross_entropy_with_logits)),
    "one answer, (n,) outputs": (net(1, True), labels(2), "binary_cross_entropy", column(F.binary_cross_entropy_with_logits)),
    "several answers": (net(3), answers(3), nn.BCEWithLogitsLoss(reduction="none"), F.binary_cross_entropy_with_logits),
    "lambda": (net(2), numbers(2), lambda o, y: (o - y).abs().sum(-1), lambda o, y: (o - y).abs().sum(-1).mean()),
}


@pytest.mark.parametrize("adapt", ["head", "all"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_torchs_kind_give_the_plain_loop(name: str, adapt: str) -> None:
    model, y, loss, whole = LOSSES[name]
    batch = tasks(y)
    learner = hs.anil(model, 3, 0.3, adapt=adapt, loss=loss)
    grads, stats = learner.meta_gradient(batch)
    assert off_by(grads, plain_gradient(model, learner.partition.adapted, batch, whole, 3, 0.3)) < 1e-10
    adapted = learner.adapt(batch.support_x[0], batch.support_y[0])
    predicted = adapted.predict(batch.query_x[0])
    if stats.accuracy is None:
        assert predicted.shape == adapted.logits(batch.query_x[0]).shape
        with pytest.raises(TaskError, match="real numbers"):
            adapted.predict_proba(batch.query_x[0])
        return
    proba = adapted.predict_proba(batch.query_x[0])
    assert bool(((proba >= 0) & (proba <= 1)).all())
    expected = []
    for t in range(3):
        own = learner.adapt(batch.support_x[t], batch.support_y[t]).predict(batch.query_x[t])
        truth = batch.query_y[t].argmax(-1) if name == "soft labels" else batch.query_y[t]
        expected.append((own == truth).double().mean())
    assert stats.accuracy == pytest.approx(float(torch.stack(expected).mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("model", "y", "loss", "words"),
    [
        (net(3), labels(3), nn.CrossEntropyLoss(), r"CrossEntropyLoss\(reduction='mean'\)"),
        (net(3), labels(3), lambda o, y: F.cross_entropy(o, y), r"returned shape \(\)"),
        (net(1), numbers(), lambda o, y: (o - y) ** 2, r"\(18, 18\) for 18 examples with targets \(18,\) and outputs \(18, 1\)"),
        (net(1), labels(2), "cross_entropy", "binary_cross_entropy"),
        (net(1, True), labels(2), "cross_entropy", "binary_cross_entropy"),
        (net(3), numbers(), "cross_entropy", "squared_error"),
        (net(3), numbers(2), "squared_error", "one target per output"),
        (net(3), labels(4), "cross_entropy", "the model has 3 outputs"),
        (net(1), labels(3), "binary_cross_entropy", "tells 0 from 1"),
        (net(3), lambda t, n: torch.full((t, n), -100), "cross_entropy", "no label"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_way(model: nn.Module, y: Any, loss: Any, words: str) -> None:
    with pytest.raises((TaskError, ConfigError), match=words):
        hs.anil(model, 2, 0.1, loss=loss).meta_gradient(tasks(y))


class Tokens(nn.Module):
    """(n, L) tokens to (n, L, C) scores."""

    def __init__(self, first: bool = False) -> None:
        super().__init__()
        self.e, self.mix, self.head, self.first = nn.Embedding(9, 4), nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3), first

    def forward(self, x: Tensor) -> Tensor:
        z = self.head(self.mix(self.e(x))[0])
        return z.movedim(-1, 1) if self.first else z


@pytest.mark.parametrize("length", [5, 3])
def test_labels_of_positions_with_some_ignored(length: int) -> None:
    """torch's own mean, over all positions of a task that have a label; ambiguous only where the length is the number of classes."""
    torch.manual_seed(0)
    x, y = torch.randint(9, (2, 2, 4, length)), torch.randint(3, (2, 2, 4, length))
    y[..., -1] = -100
    y[0, 0, :2] = -100
    batch = hs.TaskBatch(x[:, 0], y[:, 0], x[:, 1], y[:, 1])
    model = Tokens().double()
    loss: Any = "cross_entropy"
    if length == 3:
        with pytest.raises(TaskError, match="class_dim"):
            hs.anil(model, 2, 0.3).meta_gradient(batch)
        loss = replace(hs.losses.cross_entropy, class_dim=-1)
    for adapt in ("head", "all"):
        for given in (loss, nn.CrossEntropyLoss(reduction="none")) if length == 5 else (loss,):
            learner = hs.anil(model, 2, 0.3, adapt=adapt, loss=given)
            grads, stats = learner.meta_gradient(batch)
            whole = lambda o, y: F.cross_entropy(o.movedim(-1, 1), y)  # noqa: E731
            assert off_by(grads, plain_gradient(model, learner.partition.adapted, batch, whole, 2, 0.3)) < 1e-10
    adapted = learner.adapt(x[0, 0], y[0, 0])
    assert adapted.predict(x[0, 1]).shape == (4, length)
    assert torch.allclose(adapted.predict_proba(x[0, 1]).sum(-1), torch.ones(4, length).double())
    assert stats.accuracy is not None


def test_pictures_of_labels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 1)).double()
    x, y = torch.randn(2, 2, 3, 1, 4, 5).double(), torch.randint(2, (2, 2, 3, 4, 5))
    learner, batch = hs.anil(model, 2, 0.5), hs.TaskBatch(x[:, 0], y[:, 0], x[:, 1], y[:, 1])
    grads, stats = learner.meta_gradient(batch)
    assert off_by(grads, plain_gradient(model, learner.partition.adapted, batch, F.cross_entropy, 2, 0.5)) < 1e-10
    hits = [(learner.adapt(x[t, 0], y[t, 0]).predict(x[t, 1]) == y[t, 1]).double().mean() for t in range(2)]
    assert stats.accuracy == pytest.approx(float(torch.stack(hits).mean()), abs=1e-6)


@pytest.mark.parametrize("steps", [5, 6, 3])
def test_time_first_is_refused_even_with_as_many_steps_as_examples(steps: int) -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.r, self.head = nn.LSTM(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.r(x)[0][-1])

    x, y = torch.randn(2, 6, steps, 4), torch.randint(3, (2, 6))
    with pytest.raises(TaskError, match="one row per example"):
        hs.anil(TimeFirst(), lr=0.1).meta_gradient(hs.TaskBatch(x, y, x, y))


@pytest.mark.parametrize("adapt", ["head", "all"])
@pytest.mark.parametrize("vectorise", [None, False, True])
def test_losses_that_take_inputs_and_weights(adapt: str, vectorise: bool | None) -> None:
    model, batch = net(3), tasks(labels(3))

    def own(outputs: Tensor, y: Tensor, inputs: Tensor, weights: dict[str, Tensor]) -> Tensor:
        pull = sum(w.square().sum() for w in weights.values())
        return F.cross_entropy(outputs, y, reduction="none") * (1 + inputs.square().mean(-1)) + 0.1 * pull

    learner = hs.anil(model, 2, 0.3, adapt=adapt, loss=own, vectorise=vectorise)
    partition = learner.partition
    losses = []
    for t in range(3):
        p = dict(model.named_parameters())
        side = lambda p, x, y: own(torch.func.functional_call(model, p, (x,)), y, x, {n: p[n] for n in partition.adapted}).mean()  # noqa: E731
        for _ in range(2):
            w = [p[n] for n in partition.adapted]
            g = torch.autograd.grad(side(p, batch.support_x[t], batch.support_y[t]), w, create_graph=True)
            p |= {n: v - 0.3 * u for n, v, u in zip(partition.adapted, w, g, strict=True)}
        losses.append(side(p, batch.query_x[t], batch.query_y[t]))
    wanted = torch.autograd.grad(torch.stack(losses).mean(), list(model.parameters()))
    expected = dict(zip(dict(model.named_parameters()), wanted, strict=True))
    assert off_by(learner.meta_gradient(batch)[0], expected) < 1e-10


def test_unlabelled_support_examples() -> None:
    """cross_entropy passes over them; a loss of the whole task sees them."""
    model, batch = net(3), tasks(labels(3))
    y = batch.support_y.clone()
    y[:, 4:] = -100
    some = hs.TaskBatch(batch.support_x, y, batch.query_x, batch.query_y)
    for adapt in ("head", "last:2"):
        learner = hs.anil(model, 3, 0.3, adapt=adapt)
        fewer = hs.TaskBatch(batch.support_x[:, :4], y[:, :4], batch.query_x, batch.query_y)
        assert off_by(learner.meta_gradient(some)[0], learner.meta_gradient(fewer)[0]) < 1e-12

    def entropy(outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y) - 0.3 * (outputs.softmax(-1) * outputs.log_softmax(-1)).sum(-1).mean()

    learner = hs.anil(model, 3, 0.3, loss=hs.losses.Loss("entropy", entropy, per_task=True))
    expected = plain_gradient(model, learner.partition.adapted, some, entropy, 3, 0.3)
    assert off_by(learner.meta_gradient(some)[0], expected) < 1e-10


@pytest.mark.parametrize("mode", [hs.Unrolled(), hs.Recursive(), hs.FirstOrder()])
@pytest.mark.parametrize("vectorise", [False, True])
def test_support_sets_in_pieces_give_the_same_numbers(mode: Any, vectorise: bool) -> None:
    model, batch = net(3), tasks(labels(3))
    weighted = hs.TaskBatch(batch.support_x, batch.support_y, batch.query_x, batch.query_y, support_weight=torch.rand(3, 6) + 0.1)
    for own in (batch, weighted):
        whole, pieces = (
            hs.maml(model, 3, 0.3, 0.1, hypergradient=mode, vectorise=vectorise, support_chunk=size).meta_gradient(own)[0]
            for size in (None, 4)
        )
        assert off_by(pieces, whole) < 1e-12


def test_adapt_takes_weights() -> None:
    learner, batch = hs.anil(net(3), 3, 0.3), tasks(labels(3))
    x, y = batch.support_x[0], batch.support_y[0]
    weighted = learner.adapt(x, y, support_weight=torch.tensor([1.0, 1, 0, 1, 0, 1]))
    kept = torch.tensor([0, 1, 3, 5])
    torch.testing.assert_close(weighted.logits(x), learner.adapt(x[kept], y[kept]).logits(x))


@pytest.mark.parametrize("ways", [2, 3, 8])
def test_prototypes_take_the_ways_of_the_task(ways: int) -> None:
    """Nearest class mean, whatever the model's last layer has."""
    model = net(5)
    x, y = torch.randn(2, 3 * ways, 4).double(), torch.arange(ways).repeat(2, 3)
    learner = hs.protonet(model)
    adapted = learner.adapt(x[0], y[0])
    z = model[:2](x)
    centres = torch.stack([z[0][y[0] == c].mean(0) for c in range(ways)])
    torch.testing.assert_close(adapted.predict_proba(x[1]), (-torch.cdist(z[1], centres).square()).softmax(-1))
    assert adapted.to_module()(x[1]).shape == (3 * ways, ways)
    grads, stats = learner.meta_gradient(hs.TaskBatch(x, y, x, y))
    assert stats.accuracy is not None
    assert all(torch.isfinite(g).all() for g in grads.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_prototypes_in_half_precision(dtype: torch.dtype) -> None:
    model = net(5).float()
    x, y = 3 * torch.randn(2, 9, 4), torch.arange(3).repeat(2, 3)
    expected = hs.protomaml(model, 3, 0.01).adapt(x[0], y[0]).predict_proba(x[1])
    learner = hs.protomaml(model.to(dtype), 3, 0.01)
    found = learner.adapt(x[0].to(dtype), y[0]).predict_proba(x[1].to(dtype)).float()
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)
    assert torch.isfinite(torch.tensor(learner.meta_gradient(hs.TaskBatch(x.to(dtype), y, x.to(dtype), y))[1].loss))


@pytest.mark.parametrize(
    ("make", "y", "loss"),
    [
        (
            lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1)),
            lambda n: torch.randint(3, (4, n, 2, 3)),
            None,
        ),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 1)), lambda n: torch.randint(2, (4, n)), "binary_cross_entropy"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), lambda n: torch.randint(2, (4, n, 3)).float(), "binary_cross_entropy"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), lambda n: torch.randn(4, n, 3).softmax(-1), "cross_entropy"),
    ],
)
def test_evaluation_follows_the_loss(make: Any, y: Any, loss: Any) -> None:
    """One score per episode: the mean, over its query examples, of the share of right answers."""
    torch.manual_seed(0)
    batch = hs.TaskBatch(torch.randn(4, 6, 1, 2, 3), y(6), torch.randn(4, 5, 1, 2, 3), y(5))
    learner = hs.anil(make(), 3, 0.5, **({"loss": loss} if loss else {}))

    class Same:
        tasks = 4

        def batch(self, index: int, device: Any = "cpu") -> hs.TaskBatch:
            return batch

    found = hs.evaluate(learner, Same(), episodes=4)
    own = [learner.adapt(batch.support_x[t], batch.support_y[t]).predict(batch.query_x[t]) for t in range(4)]
    truth = batch.query_y.argmax(-1) if loss == "cross_entropy" else batch.query_y
    expected = [float((p == truth[t]).double().mean()) for t, p in enumerate(own)]
    assert found.scores == pytest.approx(expected)
    assert found.metric == "accuracy"
    assert 0 <= float(found.calibration or 0) <= 1


class Derivative(nn.Module):
    """The second derivative of a net by its input, as physics-informed losses take it."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.net, self.apart = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)), apart

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_() if self.apart else x.requires_grad_()
        u = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)[0]
        return torch.autograd.grad(u.sum(), x, create_graph=True)[0]


@pytest.mark.parametrize("adapt", ["all", "net.2.*"])
def test_a_derivative_inside_forward(adapt: str) -> None:
    """With ``x.detach()`` every method gives the plain loop's number; marked in place, the default does, and Recursive says why not."""
    torch.manual_seed(0)
    x, y = torch.randn(3, 2, 5, 1).double(), torch.randn(3, 2, 5, 1).double()
    batch = hs.TaskBatch(x[:, 0], y[:, 0], x[:, 1], y[:, 1])
    whole = lambda o, t: 0.5 * (o - t).square().sum(-1).mean()  # noqa: E731
    model = Derivative(apart=True).double()
    partition = hs.Partition(model, adapt)
    expected = plain_gradient(model, partition.adapted, batch, whole, 2, 0.05)
    for mode in (None, hs.Unrolled(), hs.Recursive()):
        learner = hs.MetaLearner(partition, hs.GradientDescent(2, 0.05), mode, loss="squared_error")
        assert off_by(learner.meta_gradient(batch)[0], expected) < 1e-10
    with torch.no_grad():
        adapted = learner.adapt(x[0, 0], y[0, 0])
        assert adapted.predict(x[0, 1]).shape == (5, 1)
        assert len(learner.trajectory(batch)) == 3
    marking = Derivative(apart=False).double()
    with pytest.raises(hs.errors.MethodError, match="requires_grad_"):
        hs.anil(marking, 2, 0.05, adapt=adapt, hypergradient=hs.Recursive(), loss="squared_error").meta_gradient(batch)
    assert isinstance(hs.anil(marking, 2, 0.05, adapt=adapt, loss="squared_error").chosen_hypergradient(batch), hs.Unrolled)
    assert not x.requires_grad
