"""State, randomness and change: what a model keeps, draws and turns into must not show in the numbers, nor be left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import headstart as hs
from headstart.errors import PartitionError, TaskError
from plain import off_by, plain_gradient


class Net(nn.Module):
    """A small net; a subclass says what happens in the middle."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 3)

    def middle(self, z: Tensor) -> Tensor:
        return z

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(self.middle(torch.tanh(self.a(x))))))


class KeepsActivations(Net):
    kept: Any = None

    def middle(self, z: Tensor) -> Tensor:
        self.kept, self.calls = z, getattr(self, "calls", 0) + 1
        return z


class CountsInBuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def middle(self, z: Tensor) -> Tensor:
        self.count += 1
        return z


class AssignsBuffer(Net):
    """A running mean that is assigned anew, as tutorials do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def middle(self, z: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * z.detach().mean(0)
        return z


class Noisy(Net):
    def middle(self, z: Tensor) -> Tensor:
        return F.dropout(z, 0.3, training=True) + 0.1 * torch.randn_like(z)


class MixesInTraining(Net):
    def middle(self, z: Tensor) -> Tensor:
        return z - z.mean(0) if self.training else z


class MixesWhenMany(Net):
    def middle(self, z: Tensor) -> Tensor:
        return z - z.mean(0) if len(z) > 8 else z


class Branch(Net):
    on = False

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(6, 6)

    def middle(self, z: Tensor) -> Tensor:
        return self.extra(z) if self.on else z


def built(make: Callable[[], nn.Module]) -> tuple[nn.Module, hs.TaskBatch]:
    torch.manual_seed(0)
    model = make().double()
    x, y = torch.randn(3, 2, 10, 4).double(), torch.randint(3, (3, 2, 10))
    return model, hs.TaskBatch(x[:, 0], y[:, 0], x[:, 1], y[:, 1])


@pytest.mark.parametrize("make", [KeepsActivations, CountsInBuffer, AssignsBuffer, MixesInTraining, MixesWhenMany, Branch])
@pytest.mark.parametrize("adapt", ["head", "last:2", "all"])
@pytest.mark.parametrize("training", [False, True])
def test_what_a_model_keeps_or_mixes_does_not_show(make: Any, adapt: str, training: bool) -> None:
    model, tasks = built(make)
    model.train(training)
    objects = {n: t for n, t in [*model.named_parameters(), *model.named_buffers()]}  # noqa: C416
    state = {n: b.clone() for n, b in model.named_buffers()}
    partition = hs.Partition(model, adapt)
    expected = plain_gradient(model, partition.adapted, tasks, F.cross_entropy, 2, 0.3)
    model.__dict__.pop("kept", None), model.__dict__.pop("calls", None)
    attributes = dict(model.__dict__)
    for mode in (None, hs.Unrolled(), hs.Recursive()):
        for vectorise in (None, False):
            learner = hs.MetaLearner(partition, hs.GradientDescent(2, 0.3), mode, vectorise=vectorise)
            assert off_by(learner.meta_gradient(tasks)[0], expected) < 1e-10
    adapted = learner.adapt(tasks.support_x[0], tasks.support_y[0])
    assert adapted.to_module()(tasks.query_x[0]).shape == (10, 3)
    assert all(model.__dict__[k] is v for k, v in attributes.items())
    assert model.__dict__.keys() == attributes.keys()
    for n, t in [*model.named_parameters(), *model.named_buffers()]:
        assert t is objects[n]
        if not training and n in state:
            assert torch.equal(t, state[n])


def test_buffers_move_once_in_training_wherever_they_are() -> None:
    for adapt in ("head", "last:2", "all"):
        for vectorise in (None, False):
            model, tasks = built(CountsInBuffer)
            hs.anil(model.train(), 3, 0.1, adapt=adapt, vectorise=vectorise, replay=adapt != "last:2").meta_gradient(tasks)
            assert float(model.count) == 1.0
    model, tasks = built(AssignsBuffer)
    hs.maml(model.train(), 3, 0.1).meta_gradient(tasks)
    z = torch.tanh(model.a(tasks.support_x))
    torch.testing.assert_close(model.mean, 0.1 * z.mean((0, 1)).detach())
    bn = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double().train()
    hs.maml(bn, 3, 0.1).meta_gradient(tasks)
    z = bn[0](tasks.support_x).detach()
    torch.testing.assert_close(bn[1].running_mean, 0.1 * z.mean((0, 1)))
    torch.testing.assert_close(bn[1].running_var, 0.9 + 0.1 * z.var(1).mean(0))
    assert int(bn[1].num_batches_tracked) == 1


def test_spectral_norm_follows_its_weight_in_training_and_rests_in_evaluation() -> None:
    model, tasks = built(lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3)))
    for adapt in ("head", "all"):
        learner = hs.anil(model.eval(), 2, 0.1, adapt=adapt)
        u = model[0].parametrizations.weight[0]._u.clone()
        learner.meta_gradient(tasks)
        assert torch.equal(u, model[0].parametrizations.weight[0]._u)
        model.train()
        for _ in range(60):
            learner.meta_gradient(tasks)
        weight = model[0].parametrizations.weight.original
        u = model[0].parametrizations.weight[0]._u
        weight = weight.detach()
        assert float((weight.T @ u).norm()) == pytest.approx(float(torch.linalg.matrix_norm(weight, 2)), rel=1e-6)


@pytest.mark.parametrize("mode", [hs.Unrolled(), hs.Recursive()])
@pytest.mark.parametrize("adapt", ["head", "last:2", "all"])
@pytest.mark.parametrize("vectorise", [False, True])
def test_randomness_in_evaluation_mode_is_one_function(mode: Any, adapt: str, vectorise: bool) -> None:
    """Exact modes equal difference quotients of the loss, the same random numbers being drawn in every step of a call."""
    model, tasks = built(Noisy)
    learner = hs.MetaLearner(hs.Partition(model.eval(), adapt), hs.GradientDescent(3, 0.3), mode, vectorise=vectorise)

    def loss() -> float:
        torch.manual_seed(5)
        return learner.meta_gradient(tasks)[1].loss

    loss()  # analysed
    torch.manual_seed(5)
    grads, _ = learner.meta_gradient(tasks)
    for name in ("a.weight", "b.bias", "head.weight"):
        value, h = dict(model.named_parameters())[name], 1e-5
        direction, found = torch.randn_like(value), []
        for sign in (1, -2, 1):
            with torch.no_grad():
                value += sign * h * direction
            found.append(loss())
        assert (found[0] - found[1]) / (2 * h) == pytest.approx(float((grads[name] * direction).sum()), rel=1e-5, abs=1e-8)


def test_an_adapted_model_is_a_value() -> None:
    model, tasks = built(Net)
    for adapt in ("head", "all"):
        learner = hs.anil(model, 3, 0.3, adapt=adapt)
        several = [learner.adapt(tasks.support_x[t], tasks.support_y[t]) for t in range(3)]
        expected = [a.logits(tasks.query_x[0]) for a in several]
        wrong = []

        def use(i: int) -> None:
            wrong.extend(i for _ in range(100) if not torch.equal(several[i].logits(tasks.query_x[0]), expected[i]))  # noqa: B023

        threads = [threading.Thread(target=use, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        learner.meta_gradient(tasks)
        for thread in threads:
            thread.join()
        assert not wrong
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1)
        assert all(torch.equal(a.logits(tasks.query_x[0]), e) for a, e in zip(several, expected, strict=True))
        again = learner.adapt(tasks.support_x[0], tasks.support_y[0])
        assert not torch.equal(again.logits(tasks.query_x[0]), expected[0])


def test_adapt_runs_the_body_once_per_example() -> None:
    model, tasks = built(Net)
    learner = hs.anil(model, 3, 0.3)
    learner.adapt(tasks.support_x[0], tasks.support_y[0])
    seen: list[int] = []
    model.a.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    learner.adapt(tasks.support_x[0], tasks.support_y[0])  # analysed again: a hook is a change
    seen.clear()
    learner.adapt(tasks.support_x[0], tasks.support_y[0])
    assert seen == [10]


@pytest.mark.parametrize("adapt", ["head", "b.*,head.*"])
def test_a_model_that_changed_is_noticed(adapt: str) -> None:
    model, tasks = built(Branch)
    learner = hs.anil(model, 2, 0.3, adapt=adapt)
    loop = lambda: plain_gradient(model, learner.partition.adapted, tasks, F.cross_entropy, 2, 0.3)  # noqa: E731
    assert off_by(learner.meta_gradient(tasks)[0], loop()) < 1e-10
    model.on = True
    assert off_by(learner.meta_gradient(tasks)[0], loop()) < 1e-10
    assert float(learner.meta_gradient(tasks)[0]["extra.weight"].abs().max()) > 0
    model.b = nn.Sequential(nn.Linear(6, 6)).double() if adapt == "head" else nn.Linear(6, 6).double()
    if adapt == "head":
        with pytest.raises(PartitionError, match=r"b.weight"):
            learner.meta_gradient(tasks)
        learner = hs.anil(model, 2, 0.3, adapt=adapt)
    model.head = nn.Linear(6, 4).double()
    assert off_by(learner.meta_gradient(tasks)[0], loop()) < 1e-10
    model.head.weight.requires_grad_(False)
    with pytest.raises(PartitionError, match="frozen"):
        learner.meta_gradient(tasks)


def test_other_lengths_are_checked_and_not_analysed_again() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.r, self.head = nn.Embedding(9, 4), nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.r(self.e(x))[0].mean(1))

    torch.manual_seed(0)
    model = Reader().double()
    learner = hs.anil(model, 2, 0.3)
    programs = []
    for length in (3, 5, 7, 4, 5):
        x, y = torch.randint(9, (2, 2, 4, length)), torch.randint(3, (2, 2, 4))
        tasks = hs.TaskBatch(x[:, 0], y[:, 0], x[:, 1], y[:, 1])
        expected = plain_gradient(model, learner.partition.adapted, tasks, F.cross_entropy, 2, 0.3)
        assert off_by(learner.meta_gradient(tasks)[0], expected) < 1e-10
        programs.append(learner.program(tasks))
    assert len({id(p) for p in programs}) == 1


def test_what_is_kept_of_programs_is_bounded() -> None:
    model, tasks = built(Branch)
    learner = hs.anil(model, 1, 0.1)
    for i in range(40):
        model.setting = i
        learner.meta_gradient(tasks)
    assert len(learner.partition._programs) <= 16


def test_a_frozen_layer_stays_frozen() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double().train()
    tasks = built(Net)[1]
    model[1].eval()
    for adapt in ("head", "all"):
        before = model[1].running_mean.clone()
        hs.anil(model, 2, 0.1, adapt=adapt).meta_gradient(tasks)
        assert torch.equal(before, model[1].running_mean)
        assert not model[1].training


def test_the_ledger_is_free_when_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is counted, and the module tree is not walked once per step."""
    model, tasks = built(Net)
    learner = hs.maml(model, 5, 0.1)
    learner.meta_gradient(tasks)
    walks = [0]
    real = nn.Module.named_modules

    def counted(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        walks[0] += self is model
        return real(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "named_modules", counted)
    counts = []
    for steps in (5, 20):
        walks[0] = 0
        hs.MetaLearner(learner.partition, hs.GradientDescent(steps, 0.1)).meta_gradient(tasks)
        counts.append(walks[0])
    assert counts[0] == counts[1] < 60


def test_what_a_model_cannot_do_is_said() -> None:
    bn = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).train()
    x, y = torch.randn(2, 1, 4), torch.zeros(2, 1, dtype=torch.long)
    with pytest.raises(TaskError, match="cannot run on the 1 examples of a task"):
        hs.maml(bn, lr=0.01).meta_gradient(hs.TaskBatch(x, y, x, y))
    with pytest.raises(PartitionError, match="no shape yet"):
        hs.anil(nn.Sequential(nn.LazyLinear(3)), lr=0.1)
