"""What comes before meta-training, and what changes while it goes on: whole classification, and the schedules of MAML++."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import headstart as hs
from fakes import source
from headstart.cli import main
from headstart.errors import ConfigError
from headstart.training import loop
from headstart.training.annealing import AnnealingConfig
from headstart.training.loop import LAST
from headstart.training.observer import Observer
from headstart.training.pretraining import BATCH, WholeData, classifier
from headstart.training.run_folder import PRETRAINED
from headstart.training.schedules import annealing
from truth import distance
from zoo import make, tasks_for

SHORT = hs.TrainConfig(queries=3, tasks=4, iterations=4, validate_every=2, validation_episodes=20, schedule="constant")


def network() -> Any:
    torch.manual_seed(0)
    return hs.models.conv4(1, 5, 16, filters=8, head="cosine")


def flat() -> Any:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 8), torch.nn.ReLU())
    model.add_module("head", hs.models.Cosine(8, 5))
    return model


# -- whole classification --------------------------------------------------------------------------------------------------


def test_whole_classification_learns_and_its_body_enters(tmp_path: Path) -> None:
    """The classes are told apart better and better; meta-training begins with that body, and the head of its own."""
    data, config = source(), replace(SHORT, pretrain=30, iterations=1)
    learner, head, began = hs.metabaseline(network()), dict[str, Any](), dict[str, Any]()
    head.update({k: v.detach().clone() for k, v in learner.model.head.named_parameters()})

    def look(own: hs.MetaLearner, step: int) -> dict[str, Any]:
        began.update({k: v.detach().clone() for k, v in own.model.named_parameters()})
        return {}

    hs.train(learner, data, config, out=tmp_path / "run", quiet=True, callbacks=[Observer(at=(0,), look=look)])
    lines = [json.loads(line) for line in (tmp_path / "run" / PRETRAINED / "metrics.jsonl").read_text().splitlines()]
    accuracy = [e["validation"] for e in lines if "validation" in e]
    assert accuracy[0] < 0.3  # of twelve classes
    assert accuracy[-1] > accuracy[0] + 0.4
    losses = [e["loss"] for e in lines if "loss" in e]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    # The same stage by itself gives the same body.
    alone, path = classifier(hs.metabaseline(network()), 12, config.seed)
    assert path == "head"
    settings = replace(config, pretrain=0, iterations=30, validate_every=7, validation_episodes=16)
    hs.train(alone, WholeData.of(data, config), settings, quiet=True)
    assert all(torch.equal(began[f"body.{name}"], value) for name, value in alone.model.body.named_parameters())
    assert all(torch.equal(began[f"head.{name}"], value) for name, value in head.items())


def test_batches_of_the_whole_hold_every_class_and_never_what_validates() -> None:
    data = source()
    whole = WholeData.of(data, hs.TrainConfig(pretrain=1))
    assert not set(whole.train.among.tolist()) & set(whole.validation.among.tolist())
    assert len(whole.train.among) + len(whole.validation.among) == len(data.train)
    assert {int(c) for c in data.train.labels[whole.validation.among]} == set(range(12))
    batch = whole.train.batch(3)
    assert batch.query.count == min(BATCH, len(whole.train.among))
    assert torch.equal(batch.query_x, whole.train.batch(3).query_x)
    for x, label in zip(batch.query_x[0, :5], batch.query_y[0, :5], strict=True):
        own = data.train.batch(torch.arange(len(data.train)))
        (row,) = (own - x).flatten(1).abs().sum(1).eq(0).nonzero()[0]
        assert data.train.labels[row] == label


def killed_after(steps: int, patch: pytest.MonkeyPatch) -> None:
    """Lets so many outer steps pass before everything ends, as by a signal that cannot be caught."""
    take, left = loop._Steps.take, [steps]

    def killed(self: Any) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        take(self)

    patch.setattr(loop._Steps, "take", killed)


@pytest.mark.parametrize("kill_at", ["pretraining", "meta-training"])
def test_a_run_with_both_stages_resumes_to_the_same_weights(kill_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SHORT, pretrain=4, iterations=2, validate_every=1, validation_episodes=4)
    whole = hs.metabaseline(flat())
    hs.train(whole, source(), config, out=tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch:
        killed_after(3 if kill_at == "pretraining" else 5, patch)
        with pytest.raises(KeyboardInterrupt):
            hs.train(hs.metabaseline(flat()), source(), config, out=tmp_path / "parts", quiet=True)
    assert (tmp_path / "parts" / LAST).exists() == (kill_at == "meta-training")
    again = hs.metabaseline(flat())
    run = hs.train(again, source(), config, out=tmp_path / "parts", resume=True, quiet=True)
    assert run.iterations == 2
    assert all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True))


def test_whole_classification_refuses_what_it_is_not_for() -> None:
    config = replace(SHORT, pretrain=3)
    with pytest.raises(ConfigError, match="not made of classes"):
        hs.train(hs.anil(hs.models.mlp(1, 1), 1, 0.1, loss="squared_error"), hs.data.load("sinusoid"), config, quiet=True)
    with pytest.raises(ConfigError, match="is one layer"):
        hs.train(hs.anil(torch.nn.Linear(4, 5), 1, 0.1), source(), config, quiet=True)
    with pytest.raises(ConfigError, match="pretrain=-1"):
        hs.TrainConfig(pretrain=-1)


def test_meta_baseline_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [
        "train",
        "--data",
        "fakes:source",
        "--algorithm",
        "metabaseline",
        "--model",
        "mlp",
        "--hidden",
        "8",
        "--iterations",
        "2",
        "--pretrain",
        "2",
    ]
    args += ["--validate-every", "2", "--validation-episodes", "4", "--test-episodes", "0"]
    assert main([*args, "--out", str(tmp_path / "run")]) == 0
    assert "pretrained: finished after 2 steps" in capsys.readouterr().err
    assert main([*args, "--out", str(tmp_path / "run"), "--overwrite"]) == 0


# -- the schedules of MAML++ -----------------------------------------------------------------------------------------------


@contextmanager
def scheduled(learner: hs.MetaLearner, config: AnnealingConfig, share: float) -> Iterator[None]:
    """The learner as it takes a meta-gradient when a share of training is over."""
    (schedule,) = annealing(config, 100, learner.inner.steps)
    training = SimpleNamespace(learner=learner, step=round(100 * share))
    schedule.begin(training)
    schedule.before(training)
    yield
    schedule.end(training)


@pytest.mark.usefixtures("double")
def test_first_order_comes_before_second() -> None:
    tasks, config = tasks_for("mlp"), AnnealingConfig(first_order=0.5)
    learner = hs.maml(make("mlp"), 3, 0.2)
    exact, first = learner.meta_gradient(tasks)[0], hs.fomaml(make("mlp"), 3, 0.2).meta_gradient(tasks)[0]
    for share, expected in ((0.0, first), (0.49, first), (0.5, exact), (0.99, exact)):
        with scheduled(learner, config, share):
            assert distance(learner.meta_gradient(tasks)[0], expected) < 1e-12
    assert learner.hypergradient is None
    assert distance(first, exact) > 1e-3


@pytest.mark.usefixtures("double")
def test_the_loss_after_every_step_counts_less_and_less() -> None:
    tasks, config = tasks_for("mlp"), AnnealingConfig(multi_step=0.4)
    learner = hs.maml(make("mlp"), 4, 0.2)
    for share, weights in (
        (0.0, [0.0, 0.25, 0.25, 0.25, 0.25]),
        (0.2, [0.0, 0.125, 0.125, 0.125, 0.625]),
        (0.4, [0.0, 0.0, 0.0, 0.0, 1.0]),
    ):
        expected = hs.maml(make("mlp"), 4, 0.2, step_weights=weights).meta_gradient(tasks)[0]
        with scheduled(learner, config, share):
            assert distance(learner.meta_gradient(tasks)[0], expected) < 1e-12
    assert learner.step_weights is None


def test_training_goes_by_the_schedule_and_resumes_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In half of the steps no product is made; a run that was killed has the bits of one that was not."""
    config = replace(SHORT, iterations=6, validate_every=1, validation_episodes=4, first_order=0.5, multi_step=0.9)

    def learner() -> hs.MetaLearner:
        torch.manual_seed(0)
        return hs.mamlpp(torch.nn.Sequential(torch.nn.Flatten(), *hs.models.mlp(256, 5, (8,))), 2, 0.05)

    whole = learner()
    with hs.ledger() as book:
        hs.train(whole, source(), config, out=tmp_path / "whole", quiet=True)
    assert book["hvp"].calls == 2 * 4 * 3  # N · B of the three steps of second order
    with monkeypatch.context() as patch:
        killed_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            hs.train(learner(), source(), config, out=tmp_path / "parts", quiet=True)
    parts = learner()
    hs.train(parts, source(), config, out=tmp_path / "parts", quiet=True, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters().values(), parts.parameters().values(), strict=True))


def test_schedules_that_cannot_be_are_refused() -> None:
    for wrong in ({"first_order": 1.5}, {"multi_step": -0.1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            AnnealingConfig(**wrong)
    with pytest.raises(ConfigError, match=r"first_order=0.5: .* closed form"):
        hs.train(hs.r2d2(hs.models.conv4(1, 5, 16, filters=4)), source(), replace(SHORT, first_order=0.5), quiet=True)
    for learner in (hs.r2d2(hs.models.conv4(1, 5, 16, filters=4)), hs.protonet(hs.models.conv4(1, 5, 16, filters=4))):
        with pytest.raises(ConfigError, match=r"multi_step=0.5: .* takes no steps"):
            hs.train(learner, source(), replace(SHORT, multi_step=0.5), quiet=True)
