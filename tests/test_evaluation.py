from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import headstart as hs
from fakes import source, split
from headstart.errors import ConfigError, DataError
from headstart.evaluation import Evaluation, compare, estimate_batch_norm, evaluate
from headstart.evaluation.metrics import Accuracy


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
        assert result.scores[t] == pytest.approx(float((adapted.predict(tasks.query_x[t]) == tasks.query_y[t]).float().mean()))
    exact = torch.tensor(result.scores).double()
    assert result.mean == pytest.approx(float(exact.mean()))
    assert result.ci95 == pytest.approx(1.96 * float(exact.std()) / 20**0.5)
    assert len(result.per_step) == 4
    assert result.per_step[-1] == (result.mean, result.ci95)


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
    index, y = tasks.query.index[:, :1], tasks.query_y[:, :1]
    alone = hs.TaskBatch.from_pool(tasks.examples, tasks.support, hs.Side(index, y))
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
    estimate_batch_norm(hs.anil(nn.Sequential(nn.Flatten(), nn.Linear(256, 5)), lr=0.1), data.train)


def test_result_prints_and_saves(tmp_path) -> None:  # type: ignore[no-untyped-def]
    result = evaluate(learner(), split(6, "test"), episodes=10)
    text = str(result)
    for words in ("after 3 inner steps", "chance 20.0 %", "5-way 1-shot, 7 queries per class, 10 episodes of 6 test classes", "running"):
        assert words in text
    result.save(tmp_path / "e.json")
    assert Evaluation.load(tmp_path / "e.json") == result


def test_a_diverging_adaptation_counts_as_wrong_and_is_said() -> None:
    own = learner("all")
    own = hs.anil(own.model, steps=30, lr=1e4, adapt="all")
    result = evaluate(own, split(6, "test"), episodes=10, batch_norm="running")
    assert result.diverged == 1
    assert result.mean == 0
    assert "adaptation diverged in 100.0 % of the episodes" in str(result)


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


@pytest.mark.parametrize("adapt", ["head", "all"])
@pytest.mark.parametrize("batch_norm", ["episode", "batch"])
def test_batch_statistics_of_an_episode_or_a_batch(adapt: str, batch_norm: Any) -> None:
    """Against adapting by hand with the layers in training mode; the running statistics stay as they were."""
    own, data = learner(adapt), split(6, "test")
    kept = {k: v.clone() for k, v in own.model.state_dict().items()}
    result = evaluate(own, data, queries=3, episodes=6, batch_norm=batch_norm)
    assert "transductive" in str(result)
    tasks = hs.data.Episodes(data, queries=3, tasks=6, stream="test").rows(0).over(data.batch(torch.arange(len(data))))
    own.model.train()
    for t in range(6) if batch_norm == "episode" or adapt == "all" else ():
        index = torch.cat([tasks.support.index[t], tasks.query.index[t]])
        x, y = data.batch(index.sort().values), tasks.support_y[t]
        place = index.argsort().argsort()
        if adapt == "head":
            z = own.model.body(x)
            z_S, z_Q = z[place[:5]], z[place[5:]]
            W, b = (p.detach().clone().requires_grad_() for p in own.model.head.parameters())
            for _ in range(3):
                gW, gb = torch.autograd.grad(nn.functional.cross_entropy(z_S.detach() @ W.T + b, y), (W, b))
                W, b = (W - 0.4 * gW).detach().requires_grad_(), (b - 0.4 * gb).detach().requires_grad_()
            logits = z_Q @ W.T + b
        else:
            params = {k: p.detach().clone().requires_grad_() for k, p in own.model.named_parameters()}
            for _ in range(3):
                loss = nn.functional.cross_entropy(torch.func.functional_call(own.model, params, (x[place[:5]],)), y)
                grads = torch.autograd.grad(loss, list(params.values()))
                params = {k: (p - 0.4 * g).detach().requires_grad_() for (k, p), g in zip(params.items(), grads, strict=True)}
            logits = torch.func.functional_call(own.model, params, (x[place[5:]],))
        assert result.scores[t] == pytest.approx(float((logits.argmax(-1) == tasks.query_y[t]).float().mean()))
    own.model.load_state_dict(kept)
    evaluate(own, data, queries=3, episodes=6, batch_norm=batch_norm)
    assert all(torch.equal(v, kept[k]) for k, v in own.model.state_dict().items())


def test_calibration_and_classes_by_hand() -> None:
    metric = Accuracy(["a", "b", "c"], hs.losses.cross_entropy)
    logits = torch.log(torch.tensor([[[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.45, 0.55]]]))
    y, x = torch.tensor([[0, 1, 1, 0]]), torch.zeros(1, 4, 1)
    metric.add(logits, hs.TaskBatch(x, y, x, y), y)
    assert metric.per_class() == {"a": 0.5, "b": 0.5}
    expected = (abs(2 * 0.9 - 1) + abs(0.7 - 1) + abs(0.55 - 0)) / 4
    assert metric.calibration() == pytest.approx(expected, rel=1e-6)
    weighted = hs.TaskBatch(x, y, x, y, query_weight=torch.tensor([[1.0, 0, 1, 0]]))
    assert metric.scores(logits, weighted).tolist() == [1.0]


def test_two_learners_are_compared_on_the_same_episodes() -> None:
    data = split(6, "test")
    one, two = (evaluate(learner(), data, episodes=40, steps=steps) for steps in (1, 3))
    found = compare(two, one)
    difference = torch.tensor(two.scores) - torch.tensor(one.scores)
    assert found.difference == pytest.approx(float(difference.mean()), abs=1e-7)
    assert found.ci95 == pytest.approx(1.96 * float(difference.std()) / 40**0.5, rel=1e-5)
    assert compare(one, one).difference == 0
    assert "not different" in str(compare(one, one))
    with pytest.raises(ConfigError, match="differ in seed"):
        compare(one, evaluate(learner(), data, episodes=40, steps=1, seed=1))
    with pytest.raises(ConfigError, match="batch_norm='none'"):
        evaluate(learner(), data, batch_norm="none")  # type: ignore[arg-type]


def test_permuting_labels_does_not_change_accuracy_beyond_the_interval() -> None:
    own, data = learner(), split(20, "test")
    estimate_batch_norm(own, data)
    first = evaluate(own, data, episodes=400, queries=3)
    with torch.no_grad():
        for p in own.model.head.parameters():
            p.copy_(p.roll(1, 0))
    second = evaluate(own, data, episodes=400, queries=3)
    assert abs(first.mean - second.mean) < first.ci95 + second.ci95


def test_what_prototypes_give_is_not_called_before() -> None:
    torch.manual_seed(0)
    own = hs.protomaml(hs.models.conv4(1, 5, 16, filters=4), steps=2, lr=0.1)
    result = evaluate(own, split(6, "test"), episodes=20)
    assert "% with prototypes alone, chance 20.0 %" in str(result)
    assert compare(result, evaluate(learner(), split(6, "test"), episodes=20)).episodes == 20


@pytest.mark.parametrize("adapt", ["head", "all"])
def test_episodes_that_are_held_a_few_at_a_time_give_the_same(adapt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(learner(adapt), split(6, "test"), queries=3, episodes=12)
    monkeypatch.setattr("headstart.evaluation.over_episodes.HELD", 5 * 15 * 4 * 2)
    parts = evaluate(learner(adapt), split(6, "test"), queries=3, episodes=12)
    assert parts.scores == pytest.approx(whole.scores)
    assert [mean for mean, _ in parts.per_step] == pytest.approx([mean for mean, _ in whole.per_step])
    assert parts.protocol == whole.protocol
