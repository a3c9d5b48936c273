"""Batch normalisation in what adapts goes by the support examples of a task, in evaluation and in adapted models alike."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import headstart as hs
from fakes import source
from headstart.errors import MethodError
from headstart.evaluation.batch_norm import estimate_batch_norm
from headstart.measuring.step_size import around
from headstart.program.support_norm import SupportNorm
from headstart.training import checkpoint

WAYS = 3


class Activated(nn.BatchNorm2d):
    """A layer of normalisation with an activation in it, as in some libraries."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


def model(norm: Any = nn.BatchNorm2d) -> nn.Sequential:
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 3, 3), norm(3), nn.ReLU(), nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(16, WAYS)).double()


def tasks(count: int = 2, support: int = 6) -> hs.TaskBatch:
    torch.manual_seed(1)
    y = torch.arange(support).remainder(WAYS).repeat(count, 1)
    x = torch.randn(count, support, 1, 8, 8, dtype=torch.float64) + y[..., None, None, None] / 3
    return hs.TaskBatch(x, y, torch.randn(count, 5, 1, 8, 8, dtype=torch.float64), torch.randint(WAYS, (count, 5)))


def learner(adapt: str = "last:2", norm: Any = nn.BatchNorm2d, **options: Any) -> hs.MetaLearner:
    own = hs.anil(model(norm), 3, 0.2, **options) if adapt == "head" else hs.maml(model(norm), 3, 0.2, **options)
    own = hs.MetaLearner(hs.Partition(own.model, adapt), own.inner, **options)
    with torch.no_grad():
        for m in own.model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(), m.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return own


def used(own: hs.MetaLearner, batch: hs.TaskBatch) -> Tensor:
    with own.in_use(batch.examples):
        return own.trajectory(batch)[-1]


def by_hand(own: hs.MetaLearner, batch: hs.TaskBatch, t: int, frozen: tuple[str, ...] = ()) -> Tensor:
    """Plain torch: the adapted layers' normalisation in training mode, then their statistics of the support set as running averages."""
    net = copy.deepcopy(own.model).eval()
    adapted = set(own.partition.adapted)
    norms = [m for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) and f"{n}.weight" in adapted and n not in frozen]
    for m in norms:
        m.train()
    w = [p for n, p in net.named_parameters() if n in adapted]
    for _ in range(3):
        for p, g in zip(w, torch.autograd.grad(F.cross_entropy(net(batch.support_x[t]), batch.support_y[t]), w), strict=True):
            p.data -= 0.2 * g
    seen: dict[nn.Module, Tensor] = {}
    hooks = [m.register_forward_pre_hook(lambda m, args: seen.update({m: args[0].detach()})) for m in norms]
    net(batch.support_x[t])
    for m, hook in zip(norms, hooks, strict=True):
        hook.remove()
        m.eval()
        m.running_mean.copy_(seen[m].mean((0, 2, 3)))  # type: ignore[union-attr]
        m.running_var.copy_(seen[m].var((0, 2, 3), correction=0))  # type: ignore[union-attr]
    return net(batch.query_x[t]).detach()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, Activated])
@pytest.mark.parametrize("adapt", ["last:2", "all"])
@pytest.mark.parametrize("options", [{"vectorise": True}, {"vectorise": False}, {"replay": False}])
def test_queries_are_normalised_as_the_adapted_support_set(adapt: str, options: dict[str, Any], norm: Any) -> None:
    own, batch = learner(adapt, norm, **options), tasks()
    found = used(own, batch)
    for t in range(2):
        torch.testing.assert_close(found[t], by_hand(own, batch, t))
        torch.testing.assert_close(own.adapt(batch.support_x[t], batch.support_y[t]).logits(batch.query_x[t]), found[t])


def test_a_prediction_does_not_depend_on_the_other_queries() -> None:
    own, batch = learner("all"), tasks()
    fewer = hs.TaskBatch(batch.support_x, batch.support_y, batch.query_x[:, :2], batch.query_y[:, :2])
    torch.testing.assert_close(used(own, fewer), used(own, batch)[:, :2])


def test_a_frozen_layer_goes_by_its_averages() -> None:
    own, batch = learner("all"), tasks()
    own.model[4].eval()
    torch.testing.assert_close(used(own, batch)[0], by_hand(own, batch, 0, frozen=("4",)))
    for m in own.model.modules():
        m.training = m is own.model
    with own.in_use(batch.examples) as norms:
        assert norms is None


def test_a_layer_frozen_in_training_stays_so_in_evaluation_mode_and_in_a_file(tmp_path: Any) -> None:
    net = hs.models.conv4(channels=1, ways=5, size=16, filters=2)
    next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    own = hs.maml(net, 1, 0.1)
    hs.train(own, source(), hs.TrainConfig(queries=3, tasks=2, iterations=1, validate_every=1, validation_episodes=2), quiet=True)
    own.save(tmp_path / "start.safetensors")
    batch = hs.data.Episodes(source().test, ways=5, shots=1, queries=3, tasks=2).batch(0).own_pool()
    expected = used(own, batch)
    own.model.eval()
    torch.testing.assert_close(used(own, batch), expected)
    again = hs.load(tmp_path / "start.safetensors")
    torch.testing.assert_close(used(again, batch), expected)
    own.partition.seen_training()
    assert not torch.allclose(used(own, batch), expected)


def test_tasks_of_unequal_sizes_are_each_as_alone() -> None:
    own, batch = learner("all"), tasks(support=6)
    weight = torch.tensor([[1.0] * 6, [1, 1, 1, 1, 0, 0]], dtype=torch.float64)
    padded = hs.TaskBatch(batch.support_x, batch.support_y, batch.query_x, batch.query_y, support_weight=weight)
    alone = hs.TaskBatch(batch.support_x[1:, :4], batch.support_y[1:, :4], batch.query_x[1:], batch.query_y[1:])
    torch.testing.assert_close(used(own, padded)[1:], used(own, alone))


def test_where_only_a_head_adapts_nothing_changes() -> None:
    own, data = hs.anil(hs.models.conv4(channels=1, ways=5, size=16, filters=2), lr=0.1), source()
    estimate_batch_norm(own, data.train)
    sizes: Any = {"ways": 5, "queries": 3, "episodes": 4}
    one, other = (hs.evaluate(own, data.test, **sizes, batch_norm=policy) for policy in ("support", "running"))
    assert one == other


def test_evaluation_says_what_it_goes_by() -> None:
    own, data = hs.maml(hs.models.conv4(channels=1, ways=5, size=16, filters=2), lr=0.1), source()
    assert "batch statistics: support (" in str(hs.evaluate(own, data.test, queries=3, episodes=2))
    assert "batch statistics: running (" in str(hs.evaluate(own, data.test, queries=3, episodes=2, batch_norm="running"))


def test_one_use_inside_another() -> None:
    own, batch = learner("all"), tasks()
    other = hs.MetaLearner(hs.Partition(own.model, "last:2"), own.inner)
    before = {k: v.clone() for k, v in own.model.state_dict().items()}
    expected = used(own, batch), used(other, batch)
    with own.in_use(batch.examples):
        torch.testing.assert_close(used(other, batch), expected[1])
        torch.testing.assert_close(own.adapt(batch.support_x[0], batch.support_y[0]).logits(batch.query_x[0]), expected[0][0])
        torch.testing.assert_close(own.trajectory(batch)[-1], expected[0])
    assert all(torch.equal(v, before[k]) for k, v in own.model.state_dict().items())


def test_it_leaves_no_trace() -> None:
    own, batch = learner("all"), tasks()
    before = {k: v.clone() for k, v in own.model.state_dict().items()}
    used(own, batch)
    with pytest.raises(hs.errors.HeadstartError), own.in_use(batch.examples):
        own.trajectory(hs.TaskBatch(batch.support_x, batch.support_y + 7, batch.query_x, batch.query_y))
    assert all(torch.equal(v, before[k]) for k, v in own.model.state_dict().items())
    assert SupportNorm.of(own.model) is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in own.model.modules())
    assert own.model.training


def test_a_layer_that_is_called_twice_is_evaluated_and_cannot_be_put_into_one_model() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(4, dtype=torch.float64), nn.Linear(4, 2, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x) + self.norm(x**2))

    own = hs.maml(Twice(), 2, 0.1)
    x, y = torch.randn(1, 4, 4, dtype=torch.float64), torch.tensor([[0, 1, 0, 1]])
    batch = hs.TaskBatch(x, y, x, y)
    own.model.train()
    _, stats = own.meta_gradient(batch)
    found = F.cross_entropy(used(own, batch)[0], y[0])
    torch.testing.assert_close(found, stats.losses[0])  # the queries are the support examples here, so training normalises alike
    with pytest.raises(MethodError, match="'norm' is called 2 times"):
        own.adapt(x[0], y[0])


@pytest.mark.parametrize("seen", ["evaluated", "trained"])
def test_a_model_that_was_never_in_training_mode_goes_by_its_averages(seen: str) -> None:
    own, batch = learner("all"), tasks()
    own.model.eval()
    torch.testing.assert_close(used(own, batch), own.trajectory(batch)[-1])
    own.model.train()
    if seen == "trained":
        own.meta_gradient(batch)
        own.model.eval()
    expected = used(own, batch)
    own.model.eval()
    torch.testing.assert_close(used(own, batch), expected)
    assert not torch.allclose(own.trajectory(batch)[-1], expected)


def test_a_run_that_is_opened_again_was_trained(tmp_path: Any) -> None:
    own = hs.maml(hs.models.conv4(channels=1, ways=5, size=16, filters=2), 1, 0.1)
    settings = hs.TrainConfig(queries=3, tasks=2, iterations=1, validate_every=1, validation_episodes=2)
    hs.train(own, source(), settings, out=tmp_path / "run", quiet=True)
    again = hs.maml(hs.models.conv4(channels=1, ways=5, size=16, filters=2), 1, 0.1)
    checkpoint.load(tmp_path / "run" / "best.safetensors", again)
    again.model.eval()
    batch = hs.data.Episodes(source().test, ways=5, shots=1, queries=3, tasks=2).batch(0).own_pool()
    torch.testing.assert_close(used(again, batch), used(own, batch))


def test_training_again_keeps_what_was_frozen() -> None:
    net = hs.models.conv4(channels=1, ways=5, size=16, filters=2)
    frozen = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    frozen.eval()
    own, settings = hs.maml(net, 1, 0.1), hs.TrainConfig(queries=3, tasks=2, iterations=1, validate_every=1, validation_episodes=2)
    hs.train(own, source(), settings, quiet=True)
    net.eval()
    hs.train(own, source(), settings, quiet=True)
    assert net.training
    assert not frozen.training


def test_what_is_normalised_is_tried_with_longer_steps() -> None:
    """The size of weights before a normalisation plays no part, so they may grow."""
    assert len(around(1.0, learner("all"), tasks())) == 6
    assert len(around(1.0, learner("head"), tasks())) == 5
