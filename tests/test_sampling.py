"""Tasks from tables, sine waves, lists and objects of one's own: drawn, trained on and evaluated; variable ways and shots."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import headstart as hs
from fakes import source, split
from headstart.data import EpisodeList, Episodes, Sinusoid, Split, TableEpisodes, TableTasks
from headstart.data.drawing import Signature, sampler_of, signature
from headstart.errors import ConfigError, DataError, TaskError
from headstart.evaluation.metrics import average_precision, balanced_accuracy


def rows_of(own: Split) -> Split:
    return Split(torch.arange(len(own)).float()[:, None], own.classes, own.counts, own.name)


def table(kind: str = "classification", tasks: int = 12, rows: int = 30) -> TableTasks:
    """Each task is a random direction in four features; its target is on which side, or how far, an example lies."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(tasks * rows, 4)).astype(np.float32)
    z = np.einsum("nd,nd->n", x, generator.normal(size=(tasks, 4)).repeat(rows, 0))
    y, classes = ((z > 0).astype(np.int64), (0, 1)) if kind == "classification" else (z.astype(np.float32), ())
    splits = ["train"] * (tasks - 6) + ["validation"] * 3 + ["test"] * 3
    return TableTasks(x, y, [rows] * tasks, [f"t{i}" for i in range(tasks)], splits, kind, classes)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["independent", "dense"])
def test_variable_ways_and_shots(kind: Any) -> None:
    own = rows_of(split(9, "train"))
    sampler = Episodes(own, ways=(2, 5), shots=(1, 3), queries=2, tasks=400, kind=kind)
    tasks = sampler.batch(3)
    assert tasks.support.weight is not None
    assert tasks.query.weight is not None
    sizes = np.zeros((6, 4))
    for t in range(400):
        there, queried = tasks.support.weight[t] > 0, tasks.query.weight[t] > 0
        support = torch.bincount(tasks.support_y[t][there])
        ways, shots = len(support), int(support[0])
        assert support.tolist() == [shots] * ways, "every class has as many shots as the others"
        assert torch.bincount(tasks.query_y[t][queried]).tolist() == [2] * ways
        sizes[ways, shots] += 1
        classes = own.labels[tasks.support_x[t, there, 0].long()]
        assert len(set(zip(classes.tolist(), tasks.support_y[t][there].tolist(), strict=True))) == ways
    cells = sizes[2:, 1:].reshape(-1)
    assert cells.sum() == 400
    assert ((cells - 400 / 12) ** 2 / (400 / 12)).sum() < 12 + 4 * 24**0.5, "all sizes are equally likely"
    if kind == "independent":
        assert tasks.pool_size == int((tasks.support.weight > 0).sum() + (tasks.query.weight > 0).sum()), "what is not there does not run"
        over = sampler.rows(3).over(own.examples)
        assert torch.equal(over.support_y, tasks.support_y)
        there = tasks.support.weight > 0
        assert torch.equal(over.support_x[there], tasks.support_x[there])


@pytest.mark.parametrize("wrong", [(3, 2), (0, 2), (1, 2, 3), 0, 1.5, True])
def test_ranges_that_cannot_be(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="ways="):
        Episodes(split(6, "train"), ways=wrong)


def test_training_and_evaluation_with_variable_tasks() -> None:
    torch.manual_seed(0)
    learner = hs.anil(hs.models.conv4(1, 5, 16, filters=4), steps=3, lr=0.4)
    config = hs.TrainConfig(
        fewest_ways=2, shots=3, fewest_shots=1, queries=3, tasks=4, iterations=2, validate_every=2, validation_episodes=10
    )
    assert hs.train(learner, source(), config, quiet=True).iterations == 2
    result = hs.evaluate(learner, split(6, "test"), ways=(2, 5), shots=(1, 2), queries=3, episodes=20)
    assert "2-5-way 1-2-shot" in str(result)
    tasks = Episodes(split(6, "test"), (2, 5), (1, 2), 3, tasks=20, stream="test").batch(0)
    learner.model.eval()
    logits = learner.trajectory(tasks)[-1]
    for t in range(20):
        assert tasks.query.weight is not None
        there = tasks.query.weight[t] > 0
        assert result.scores[t] == pytest.approx(float((logits[t].argmax(-1) == tasks.query_y[t])[there].double().mean()))
    with pytest.raises(ConfigError, match="fewest_ways=6"):
        hs.TrainConfig(fewest_ways=6)


def test_a_list_of_episodes_survives_a_file_and_evaluates_alike(tmp_path: Path) -> None:
    torch.manual_seed(0)
    learner, data = hs.anil(hs.models.conv4(1, 5, 16, filters=4), steps=3, lr=0.4), split(6, "test")
    drawn = hs.evaluate(learner, data, queries=3, episodes=50, seed=2)
    listed = EpisodeList.of(Episodes(data, queries=3, tasks=20, seed=2, stream="test"), 50)
    listed.save(tmp_path / "list.json")
    again = EpisodeList.load(tmp_path / "list.json", data)
    assert again.digest() == listed.digest()
    same = EpisodeList.of(Episodes(data, queries=3, tasks=50, seed=2, stream="test"), 50)
    result = hs.evaluate(learner, same)
    assert result.scores == drawn.scores
    assert f"50 episodes of the list {same.digest()}" in str(result)
    found = hs.evaluate(learner, again)
    assert found.scores == hs.evaluate(learner, listed).scores
    tasks, over = again.batch(0), again.rows(0).over(data.batch(torch.arange(len(data))))
    torch.testing.assert_close(tasks.support_x, over.support_x)
    with pytest.raises(ConfigError, match="differ in"):
        hs.compare(found, result)
    with pytest.raises(ConfigError, match="the list has 50"):
        hs.evaluate(learner, again, episodes=60)
    with pytest.raises(DataError, match="which train lacks"):
        EpisodeList.load(tmp_path / "list.json", split(6, "train"))
    with pytest.raises(DataError, match="is no list of episodes"):
        EpisodeList.load(tmp_path / "none.json", data)
    with pytest.raises(DataError, match="there is no batch 9"):
        again.batch(9)


def test_lists_may_hold_episodes_of_different_sizes() -> None:
    data = split(6, "test")
    variable = EpisodeList.of(Episodes(data, (2, 5), (1, 2), 3, tasks=10, stream="test"), 30)
    assert len({len(e.classes) for e in variable.episodes}) > 1
    torch.manual_seed(0)
    learner = hs.anil(hs.models.conv4(1, 5, 16, filters=4), steps=3, lr=0.4)
    direct = hs.evaluate(learner, data, ways=(2, 5), shots=(1, 2), queries=3, episodes=10)
    assert hs.evaluate(learner, variable, episodes=10).scores == direct.scores
    transductive = hs.evaluate(learner, variable, episodes=10, batch_norm="episode")
    learner.model.train()
    one = variable.episodes[0]
    rows = [int(data.starts[data.classes.index(one.classes[c])]) + k for c, k in one.support + one.query]
    features = learner.model.body(data.batch(torch.tensor(sorted(rows))))
    place = torch.tensor([sorted(rows).index(r) for r in rows])
    z_S, z_Q = features[place[: len(one.support)]], features[place[len(one.support) :]]
    y_S, y_Q = (torch.tensor([c for c, _ in side]) for side in (one.support, one.query))
    head = hs.anil(torch.nn.Linear(features.shape[1], 5), steps=3, lr=0.4)
    head.model.load_state_dict(learner.model.head.state_dict())
    predicted = head.adapt(z_S.detach(), y_S).predict(z_Q.detach())
    assert transductive.scores[0] == pytest.approx(float((predicted == y_Q).double().mean())), "only its own examples enter its statistics"


def test_tables_train_and_evaluate() -> None:
    torch.manual_seed(0)
    data = table()
    learner = hs.anil(hs.models.mlp(4, 2, [16]), steps=5, lr=0.5)
    config = hs.TrainConfig(shots=12, queries=12, tasks=6, iterations=60, outer_lr=1e-2, validate_every=30, validation_episodes=30)
    run = hs.train(learner, data, config, quiet=True)
    assert run.best is not None
    result = hs.evaluate(learner, data.test, shots=12, episodes=30)
    assert result.mean > 0.7
    assert set(result.per_class) == set(data.test.names)
    assert result.further["ΔAUPRC"][0] > 0.1
    tasks = TableEpisodes(data.test, 12, 15, 3, 0, "test").batch(1)
    scores = [float((learner.adapt(tasks.support_x[t], tasks.support_y[t]).predict(tasks.query_x[t]) == tasks.query_y[t]).double().mean())
              for t in range(3)]  # fmt: skip
    assert result.scores[3:6] == pytest.approx(scores)
    names = [data.test.names[i] for i in TableEpisodes(data.test, 12, 15, 3, 0, "test").chosen(1)]
    assert sorted(names) == sorted(data.test.names)


def test_regression_by_hand() -> None:
    torch.manual_seed(0)
    data = table("regression")
    learner = hs.anil(hs.models.mlp(4, 1, [16]), steps=5, lr=0.1, loss="squared_error")
    run = hs.train(learner, data, hs.TrainConfig(shots=12, tasks=6, iterations=6, validate_every=2, validation_episodes=20), quiet=True)
    validated = [e["validation"] for e in run.history if "validation" in e]
    assert run.metric == "squared error"
    assert run.best == (min(validated), 2 * validated.index(min(validated))), "less is better"
    result = hs.evaluate(learner, data.test, shots=12, episodes=9)
    tasks = [TableEpisodes(data.test, 12, 15, 3, 0, "test").batch(i) for i in range(3)]
    errors, spreads = [], []
    for batch in tasks:
        for t in range(3):
            guess = learner.adapt(batch.support_x[t], batch.support_y[t]).predict(batch.query_x[t])[:, 0]
            y = batch.query_y[t]
            errors.append(float((guess - y).square().mean()))
            spreads.append(float((y - y.mean()).square().mean()))
    assert result.scores == pytest.approx(errors, rel=1e-5)
    ratio = np.mean(errors) / np.mean(spreads)
    assert result.further["R²"][0] == pytest.approx(1 - ratio, rel=1e-5)
    left = (np.array(errors) - ratio * np.array(spreads)) / np.mean(spreads)
    assert result.further["R²"][1] == pytest.approx(1.96 * np.std(left, ddof=1) / 3, rel=1e-4)
    assert result.calibration is None
    assert "squared error after 5 inner steps" in str(result)
    worse = hs.evaluate(learner, data.test, shots=12, episodes=9, steps=0)
    assert "better" in str(hs.compare(result, worse)) or result.mean > worse.mean


def test_row_weighting_weighs_tasks_by_their_size() -> None:
    counts = [20, 10, 30]
    data = TableTasks(np.zeros((60, 1), np.float32), np.arange(60.0), counts, ["a", "b", "c"], ["train"] * 3, "regression")
    sampler = TableEpisodes(data.train, 4, 4, 3, weighting="row")
    tasks = sampler.batch(0)
    expected = torch.tensor([counts[i] for i in sampler.chosen(0)]) / 20
    torch.testing.assert_close(tasks.weight, expected)
    with pytest.raises(ConfigError, match="weighting='rows'"):
        TableEpisodes(data.train, 4, 4, 3, weighting="rows")  # type: ignore[arg-type]


def test_samplers_of_ones_own() -> None:
    """Any object with tasks and batch(index, device) will do, in training and in evaluation."""

    class Lines:
        tasks = 5

        def batch(self, index: int, device: Any = "cpu") -> hs.TaskBatch:
            x = torch.randn(5, 8, 1, generator=torch.Generator().manual_seed(index))
            y = x[..., 0] * (1 + index)
            return hs.TaskBatch(x, y, x, y).to(device)

    assert signature(Lines(), 5) == Signature((1,), 1, True)
    learner = hs.anil(hs.models.mlp(1, 1, [8]), steps=2, lr=0.1, loss="squared_error")
    data = SimpleNamespace(train=Lines(), validation=Lines())
    run = hs.train(learner, data, hs.TrainConfig(iterations=2, validate_every=2, validation_episodes=10), quiet=True)
    assert run.best is not None
    result = hs.evaluate(learner, Lines(), episodes=12)
    assert len(result.scores) == 12
    assert "12 episodes of Lines" in str(result)
    with pytest.raises(DataError, match="tasks cannot be drawn from list"):
        hs.evaluate(learner, [])  # type: ignore[arg-type]


def test_waves_and_tables_have_no_classes() -> None:
    waves = hs.data.load("sinusoid")
    assert isinstance(sampler_of(waves.train), Sinusoid)
    assert "endless" in str(waves)
    for options in ({"kind": "dense"}, {"shots": (1, 2)}, {"augment": hs.data.augment.Augment(flip=True)}):
        with pytest.raises(ConfigError, match="sine waves have no classes"):
            sampler_of(waves.train, **options)  # type: ignore[arg-type]
    train, test = (sampler_of(s, stream=s.name).batch(0) for s in (waves.train, waves.test))
    assert not torch.equal(train.support_x, test.support_x)


def test_average_precision_against_its_definition() -> None:
    """Ties count as one threshold, as in the usual step-wise definition."""
    generator = torch.Generator().manual_seed(0)
    score = torch.randint(6, (50, 9), generator=generator).float()
    positive = torch.rand(50, 9, generator=generator) < 0.4
    there = torch.rand(50, 9, generator=generator) < 0.9
    expected = []
    for s, p, h in zip(score, positive, there, strict=True):
        s, p = s[h], p[h]
        if not p.any() or p.all():
            continue
        total, recall = 0.0, 0.0
        for threshold in s.unique().flip(0):
            chosen = s >= threshold
            new = float((chosen & p).sum() / p.sum())
            total += (new - recall) * float((chosen & p).sum() / chosen.sum())
            recall = new
        expected.append((total, float(p.float().mean())))
    torch.testing.assert_close(average_precision(score, positive, there), torch.tensor(expected).double(), rtol=1e-6, atol=1e-7)


def test_balanced_accuracy_is_the_mean_over_the_classes_that_are_there() -> None:
    generator = torch.Generator().manual_seed(0)
    y, hits = torch.randint(4, (20, 9), generator=generator), torch.rand(20, 9, generator=generator).round().double()
    there = torch.rand(20, 9, generator=generator) > 0.2
    expected = [float(np.mean([h[t & (c == k)].mean() for k in c[t].unique()])) for h, c, t in zip(hits, y, there, strict=True)]
    found, unequal = balanced_accuracy(hits, y, there)
    torch.testing.assert_close(found, torch.tensor(expected).double())
    assert unequal
    even = torch.arange(4).repeat(2, 2)
    hits = torch.rand(2, 8, generator=generator).round().double()
    found, unequal = balanced_accuracy(hits, even, torch.ones(2, 8, dtype=torch.bool))
    torch.testing.assert_close(found, hits.mean(1))
    assert not unequal


def test_unbalanced_tasks_are_not_judged_by_accuracy_alone() -> None:
    rare = table()
    y = np.where(np.arange(len(rare.target)) % 5 == 0, 1, 0)
    own = TableTasks(rare.features, y, rare.counts, rare.names, rare.splits, "classification", (0, 1))
    result = hs.evaluate(hs.anil(hs.models.mlp(4, 2), 2, 0.01), own.test, shots=10, queries=15, episodes=8)
    assert {"balanced accuracy", "AUPRC", "ΔAUPRC"} <= set(result.further)
    assert "balanced accuracy" in str(result)


def test_task_weights_that_cannot_be() -> None:
    x, y = torch.zeros(2, 3, 1), torch.zeros(2, 3, dtype=torch.long)
    for wrong in (torch.ones(3), torch.tensor([1.0, -1.0]), torch.zeros(2), torch.tensor([1.0, torch.nan])):
        with pytest.raises(TaskError, match="task_weight"):
            hs.TaskBatch(x, y, x, y, task_weight=wrong)
