"""Models that break naive replay, naive checkpointing or naive layer names: right, or refused with the remedy; never a wrong number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import headstart as hs
from headstart.errors import ConfigError, HeadstartError, MethodError, PartitionError, TaskError
from truth import Truth, distance


def tasks(count: int = 3, features: int = 4) -> hs.TaskBatch:
    torch.manual_seed(3)
    y = lambda n: torch.randint(3, (count, n))  # noqa: E731
    x = lambda n: torch.randn(count, n, features, dtype=torch.double)  # noqa: E731
    return hs.TaskBatch(x(5), y(5), x(4), y(4))


def agrees_with_truth(model: nn.Module, adapt: str, own: hs.TaskBatch, **options: Any) -> None:
    partition = hs.Partition(model, adapt)
    grads, _ = hs.MetaLearner(partition, hs.GradientDescent(3, 0.3, 0.1), **options).meta_gradient(own)
    assert distance(grads, Truth(model, partition.adapted, own, "cross_entropy", 0.1).proposition_1(3, 0.3)) < 1e-9


class Center(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0)


class MinusMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.head = nn.Linear(4, 5), Mean(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.body(x))
        return self.head(z - self.mean(z))


class WithCount(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return torch.tanh(self.body(x)), x.shape[0]


class UsesCount(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.head = WithCount(), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z, count = self.first(x)
        return self.head(torch.tanh(self.middle(z.view(count, 2, 3).flatten(1))))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("adapt", ["head", "last:2"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(4, 6), Center(), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)),
        MinusMean,
        UsesCount,
    ],
)
def test_what_mixes_or_counts_examples_is_not_replayed(make: Any, adapt: str) -> None:
    torch.manual_seed(0)
    model = make().double().eval()
    agrees_with_truth(model, adapt, tasks())
    if adapt == "head" or make is not MinusMean:  # whose last two layers are all it has
        if (adapt, make) == ("head", UsesCount):
            return  # this head sees nothing but features
        assert "changed the model's output" in hs.anil(model, adapt=adapt, lr=0.1).explain(tasks()).reason


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.checkpointed = True

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.a(x))
        z = torch.utils.checkpoint.checkpoint(self.b, z, use_reentrant=False) if self.checkpointed else self.b(z)
        return self.c(torch.tanh(z))


@pytest.mark.usefixtures("double")
def test_checkpointing_is_refused_where_it_would_be_wrong() -> None:
    model = Checkpointed().double().eval()
    for adapt in ("all", "b.*", "last:2"):
        with pytest.raises(MethodError, match="gradient checkpointing cannot be used"):
            hs.anil(model, adapt=adapt, vectorise=False, lr=0.1).meta_gradient(tasks())
    plain = Checkpointed().double().eval()
    plain.load_state_dict(model.state_dict())
    plain.checkpointed = False
    a, b = (hs.anil(m, lr=0.1).meta_gradient(tasks())[0] for m in (model, plain))
    assert distance(a, b) < 1e-12


class StopsGradient(nn.Module):
    """Normalises by a statistic without a gradient, in a way that cannot run under vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.a(x))
        with torch.no_grad():
            scale = z.square().mean(-1, keepdim=True).sqrt()
            if float(z.max()) > 1e6:
                scale = scale * 2
        return self.c(z / scale)


@pytest.mark.usefixtures("double")
def test_forward_mode_products_are_used_only_where_they_agree() -> None:
    torch.manual_seed(0)
    model = StopsGradient().double().eval()
    exact, _ = hs.maml(model, 3, 0.3, hypergradient=hs.Unrolled()).meta_gradient(tasks())
    assert distance(hs.maml(model, 3, 0.3).meta_gradient(tasks())[0], exact) < 1e-10


class ScaledInTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        z = self.b(torch.tanh(self.a(x)))
        return self.c(torch.tanh(z * self.scale.exp() if self.training else z))


@pytest.mark.usefixtures("double")
def test_parameters_that_only_training_uses_get_their_gradient() -> None:
    torch.manual_seed(0)
    agrees_with_truth(ScaledInTraining().double().train(), "b.*", tasks())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("adapt", ["head", "last:2", "all"])
def test_parametrized_layers_are_layers(adapt: str, bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), parametrizations.weight_norm(nn.Linear(6, 3, bias=bias))).double().eval()
    names = set(hs.Partition(model, "head").adapted)
    assert names == {"2.parametrizations.weight.original0", "2.parametrizations.weight.original1"} | ({"2.bias"} if bias else set())
    own, partition = tasks(), hs.Partition(model, adapt)
    reference = Truth(model, partition.adapted, own, "cross_entropy", 0.1)
    generator = torch.Generator().manual_seed(0)
    dw, dphi = (torch.randn(v.shape, generator=generator) for v in (reference.w, reference.phi))
    measured = reference.directional(3, 0.3, dw, dphi)  # the kernel's first derivative is right
    for mode in (None, hs.Unrolled(), hs.Recursive("double-backward"), hs.Recursive("forward-over-reverse")):
        gw, gphi = reference.flat(hs.MetaLearner(partition, hs.GradientDescent(3, 0.3, 0.1), mode).meta_gradient(own)[0])
        assert float(gw @ dw + gphi @ dphi) == pytest.approx(measured, rel=1e-7)


def test_the_older_weight_norm_is_refused_where_it_would_be_wrong() -> None:
    own = tasks()
    head = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.utils.weight_norm(nn.Linear(6, 3))).double()
    with pytest.raises(MethodError, match=r"parametrizations\.weight_norm"):
        hs.anil(head, lr=0.1).meta_gradient(own)
    body = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3)).double()
    hs.anil(body, lr=0.1).meta_gradient(own)


@pytest.mark.usefixtures("double")
def test_images_that_are_viewed() -> None:
    """``view`` of a batch does not take every memory order."""
    torch.manual_seed(0)

    class LeNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mid, self.head = nn.Conv2d(2, 2, 3), nn.Linear(8, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = torch.tanh(self.conv(x))
            return self.head(torch.tanh(self.mid(z.view(z.size(0), -1))))

    x = lambda n: torch.randn(2, n, 2, 4, 4)  # noqa: E731
    own = hs.TaskBatch(x(4), torch.randint(3, (2, 4)), x(3), torch.randint(3, (2, 3)))
    for adapt in ("head", "last:2", "all"):
        agrees_with_truth(LeNet().double().eval(), adapt, own, vectorise=False)


@pytest.mark.parametrize("adapt", ["head", "all"])
def test_dropout_masks_are_new_in_every_call(adapt: str) -> None:
    model = nn.Sequential(nn.Linear(4, 20), nn.Dropout(0.5), nn.Linear(20, 3)).double().train()
    learner = hs.anil(model, adapt=adapt, lr=0.1)
    losses, own = [], tasks()
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        losses.append(learner.meta_gradient(own)[1].loss)
    assert losses[0] == losses[2]
    assert losses[0] != losses[1]


@pytest.mark.usefixtures("double")
def test_padding_stays_out_of_batch_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double().train()
    learner = hs.anil(model, 3, 0.3, adapt="all")
    alone = [(torch.randn(s, 3), torch.randint(2, (s,)), torch.randn(q, 3), torch.randint(2, (q,))) for s, q in [(2, 5), (4, 2), (3, 3)]]
    together, _ = learner.meta_gradient(hs.TaskBatch.ragged(alone))
    singles = [learner.meta_gradient(hs.TaskBatch(*(part[None] for part in task)))[0] for task in alone]
    assert distance(together, {k: torch.stack([g[k] for g in singles]).mean(0) for k in together}) < 1e-10


def test_neither_explain_nor_trajectory_moves_running_statistics() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double().train()
    learner = hs.anil(model, lr=0.1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    learner.explain(tasks())
    learner.trajectory(tasks())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class MakesBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.register_buffer("position", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.position is None:
            self.position = torch.ones(4, dtype=x.dtype)
        return self.head(torch.tanh(self.body(x) + self.position))


@pytest.mark.usefixtures("double")
def test_a_buffer_made_in_the_first_run() -> None:
    torch.manual_seed(0)
    agrees_with_truth(MakesBuffer().double().eval(), "head", tasks())


def test_regression_with_a_loss_of_ones_own() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(3, 6, 4), torch.randn(3, 6, 1)
    huber = lambda out, target: nn.functional.huber_loss(out, target, reduction="none").sum(-1)  # noqa: E731
    learner = hs.anil(hs.models.mlp(4, ways=1), loss=huber, lr=0.1)
    _, stats = learner.meta_gradient(hs.TaskBatch(x, y, x, y))
    assert stats.accuracy is None
    assert learner.adapt(x[0], y[0]).predict(x[0]).dtype == torch.float32
    for own, target, words in (
        ("squared_error", torch.randn(3, 6), "one target per output"),
        (lambda out, target: (out - target).square().mean(), y.expand(3, 6, 3), "one value per example"),
    ):
        with pytest.raises(TaskError, match=words):
            hs.anil(hs.models.mlp(4, ways=3), loss=own, lr=0.1).meta_gradient(hs.TaskBatch(x, target, x, target))  # type: ignore[arg-type]


def test_mistakes_are_named() -> None:
    model = hs.models.mlp(4, ways=3)
    x, y = torch.randn(3, 6, 4), torch.randint(3, (3, 6))
    own = hs.TaskBatch(x, y, x, y)
    learner = hs.anil(model, lr=0.1)
    next(iter(model.parameters())).requires_grad_(False)
    with pytest.raises(PartitionError, match=r"0\.weight was frozen after"):
        learner.meta_gradient(own)
    for mode in (hs.Unrolled(), hs.Recursive(), hs.Implicit()):
        with pytest.raises(ConfigError, match="closed form"):
            hs.MetaLearner(hs.Partition(model), hs.Ridge(), mode)
    ridge = hs.MetaLearner(hs.Partition(model, "all"), hs.Ridge())
    for call in (lambda: ridge.meta_gradient(own), lambda: ridge.trajectory(own), lambda: ridge.adapt(x[0], y[0])):
        with pytest.raises(MethodError, match="needs one linear layer"):
            call()
    assert len(own[1]) == len(own[-1]) == 1
    with pytest.raises(HeadstartError, match="tasks cannot be drawn from TaskBatch"):
        hs.evaluate(learner, own)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tasks='2'"):
        hs.TrainConfig(tasks="2")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="below 2"):
        hs.TrainConfig(seed=10**20)

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("no such entry")

    with pytest.raises(TaskError, match="Broken cannot run on these examples"):
        hs.anil(Broken(), lr=0.1).meta_gradient(own)
