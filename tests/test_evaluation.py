from __future__ import annotations

import pytest
import torch
from torch import nn

import headstart as hs
from fakes import source, split
from headstart.errors import ConfigError, DataError
from headstart.evaluation import Evaluation, estimate_batch_norm, evaluate


def learner(adapt: str = "head", **options: object) -> hs.MetaLearner:
    torch.manual_seed(0)
    return hs.anil(hs.models.conv4(1, 5, 16, filters=4), steps=3, lr=0.4, adapt=adapt, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("adapt", ["head", "last:2", "all"])
def test_an_evaluation_is_adapting_to_every_episode(adapt: str) -> None:
    """The fast path — the split embedded once — gives what adapting to one episode after the other gives."""
    own, data = learner(adapt), split(6, "test")
    result = evaluate(own, data, ways=5, shots=2, queries=3, episodes=20, seed=3)
    sampler = hs.data.Episodes(data, 5, 2, 3, tasks=20, seed=3, stream="test")
    tasks = sampler.batch(0)
    own.model.eval()
    for t in range(20):
        adapted = own.adapt(tasks.support_x[t], tasks.support_y[t])
        assert result.accuracies[t] == pytest.approx(float((adapted.predict(tasks.query_x[t]) == tasks.query_y[t]).float().mean()))
    exact = torch.tensor(result.accuracies).double()
    assert result.mean == pytest.approx(float(exact.mean()))
    assert result.ci95 == pytest.approx(1.96 * float(exact.std()) / 20**0.5)
    assert len(result.per_step) == 4
    assert result.per_step[-1] == (result.mean, result.ci95)


@pytest.mark.parametrize("name", hs.data.SOURCES)
def test_before_adaptation_it_is_chance_on_every_source(name: str) -> None:
    """A model with a random head: whichever label it prefers, labels carry no information."""
    data = hs.data.load(name)
    torch.manual_seed(0)
    own = hs.anil(hs.models.conv4(data.test.examples.shape[1], 5, data.test.examples.shape[2], filters=8), steps=0)
    estimate_batch_norm(own, data.train)
    with torch.no_grad():
        own.model.head.weight.mul_(5)
    result = evaluate(own, data.test, episodes=2000)
    assert 0 < result.ci95 < 0.01
    assert abs(result.mean - 0.2) < 2 * result.ci95


@pytest.mark.parametrize("adapt", ["head", "all"])
def test_before_adaptation_it_is_chance(adapt: str) -> None:
    own, data = learner(adapt), split(20, "test")
    estimate_batch_norm(own, data)
    with torch.no_grad():
        own.model.head.weight.mul_(5)  # predictions that vary from example to example
    result = evaluate(own, data, episodes=300, queries=4)
    mean, half = result.per_step[0]
    assert half > 0.002
    assert abs(mean - 0.2) < 2 * half


def test_predictions_do_not_depend_on_other_queries() -> None:
    """Inductive: the accuracy of an episode's query is the same whichever queries stand beside it."""
    own = learner()
    tasks = hs.data.Episodes(split(6, "test"), queries=4, tasks=3).batch(0)
    own.model.eval()
    whole = own.trajectory(tasks)[-1]
    index, y = tasks.query_index[:, :1], tasks.query_y[:, :1]
    alone = hs.TaskBatch.from_pool(tasks.examples, tasks.support_index, tasks.support_y, index, y)
    torch.testing.assert_close(own.trajectory(alone)[-1], whole[:, :1])


def test_batch_statistics_are_averages_over_training_images() -> None:
    own, data = learner(), source()
    estimate_batch_norm(own, data.train, examples=96, chunk=96)
    first = own.model.body[0]
    with torch.no_grad():
        activations = first[0](data.train.batch(torch.arange(96)))
    torch.testing.assert_close(first[1].running_mean, activations.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first[1].running_var, activations.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert first[1].momentum == 0.1
    before = first[1].running_mean.clone()
    estimate_batch_norm(own, data.train, examples=96, chunk=96)
    assert torch.equal(before, first[1].running_mean)
    estimate_batch_norm(hs.anil(nn.Sequential(nn.Flatten(), nn.Linear(256, 5))), data.train)


def test_result_prints_and_saves(tmp_path) -> None:  # type: ignore[no-untyped-def]
    result = evaluate(learner(), split(6, "test"), episodes=10)
    text = str(result)
    for words in ("after 3 inner steps", "chance 20.0 %", "5-way 1-shot, 7 queries per class, 10 episodes of 6 test classes", "running"):
        assert words in text
    result.save(tmp_path / "e.json")
    assert Evaluation.load(tmp_path / "e.json") == result


def test_more_steps_at_test() -> None:
    result = evaluate(learner(), split(6, "test"), episodes=10, steps=8)
    assert len(result.per_step) == 9
    assert "steps=8" in result.protocol["inner"]


def test_what_cannot_be_evaluated_is_refused() -> None:
    with pytest.raises(ConfigError, match="episodes=1"):
        evaluate(learner(), split(6, "test"), episodes=1)
    with pytest.raises(DataError, match="ways=7, but test has 6 classes"):
        evaluate(learner(), split(6, "test"), ways=7)
    with pytest.raises(DataError, match="need 16 examples per class"):
        evaluate(learner(), split(6, "test"), queries=15)
    with pytest.raises(hs.HeadstartError, match="5 outputs"):
        evaluate(learner(), split(6, "test"), ways=6)
