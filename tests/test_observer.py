"""Looking at a learner while it trains: off the clock, without influence, once after a resumption; and training on some classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import headstart as hs
from fakes import source, split
from headstart.errors import ConfigError, DataError
from headstart.keeping import tensors_of
from headstart.training.config import RunConfig
from headstart.training.loop import train
from headstart.training.observer import Observer
from headstart.training.run import some_classes

CONFIG = hs.TrainConfig(tasks=4, queries=3, iterations=9, validate_every=3, validation_episodes=6)


def learner() -> hs.MetaLearner:
    torch.manual_seed(0)
    return hs.anil(hs.models.conv4(1, 5, 16, filters=4), steps=2, lr=0.4)


def look(own: hs.MetaLearner, step: int) -> dict[str, Any]:
    """A costly look that draws random numbers and leaves other running statistics behind."""
    torch.rand(7)
    for _ in range(20_000):
        pass
    hs.estimate_batch_norm(own, source().train, examples=20, chunk=10)
    return {"step seen": step}


def without_clocks(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in e.items() if k != "seconds"} for e in history if "observed" not in e]


def test_looking_changes_nothing_and_counts_as_no_training() -> None:
    one, two = learner(), learner()
    plain = train(one, source(), CONFIG, quiet=True)
    looked = train(two, source(), CONFIG, quiet=True, callbacks=[Observer((0, 4, 9), look)])
    assert without_clocks(looked.history) == without_clocks(plain.history)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters().values(), two.parameters().values(), strict=True))
    seen = [e for e in looked.history if "observed" in e]
    assert [e["observed"]["step seen"] for e in seen] == [0, 4, 9] == [e["step"] for e in seen]
    clock = [e["seconds"] for e in looked.history if "seconds" in e]
    assert clock == sorted(clock)
    assert 0 < looked.training_seconds < looked.seconds
    assert clock[-1] == pytest.approx(looked.training_seconds, abs=1e-3)


def test_a_resumed_run_looks_once_and_its_clock_goes_on(tmp_path: Path) -> None:
    from dataclasses import replace

    observer = Observer((0, 3, 6, 9), look)
    first = train(learner(), source(), replace(CONFIG, iterations=6, schedule="constant"), out=tmp_path, quiet=True, callbacks=[observer])
    rest = train(learner(), source(), replace(CONFIG, schedule="constant"), out=tmp_path, quiet=True, callbacks=[observer], resume=True)
    assert [e["step"] for e in rest.history if "observed" in e] == [0, 3, 6, 9]
    assert rest.training_seconds > first.training_seconds
    clock = [e["seconds"] for e in rest.history if "seconds" in e]
    assert clock == sorted(clock)


def test_a_choice_of_classes_is_part_of_a_larger_one() -> None:
    whole = split(12, "train")
    few, more = whole.some(5, seed=3), whole.some(8, seed=3)
    assert set(few.classes) < set(more.classes) < set(whole.classes)
    assert whole.some(5, seed=4).classes != few.classes
    for name, label in zip(few.classes, range(5), strict=True):
        own = few.examples[few.labels == label]
        assert torch.equal(own, whole.examples[whole.labels == list(whole.classes).index(name)])
    twice = more.some(5, seed=0)
    assert set(twice.classes) < set(more.classes)
    with pytest.raises(DataError, match="has 12 classes, and not 13"):
        whole.some(13)


def test_the_training_classes_of_a_run() -> None:
    config = RunConfig(train_classes=6)
    own = some_classes(config, source())
    assert len(own.train.classes) == 6
    assert own.test.classes == source().test.classes
    with pytest.raises(ConfigError, match="has no classes"):
        some_classes(RunConfig(data="sinusoid", train_classes=6), hs.data.load("sinusoid"))
    with pytest.raises(ConfigError, match="train_classes=-1"):
        RunConfig(train_classes=-1)


def test_a_hidden_layer_before_the_head() -> None:
    model = hs.models.conv4(1, 5, 16, filters=4, hidden_head=7)
    partition = hs.Partition(model, "last:2")
    assert partition.adapted == ("hidden.0.weight", "hidden.0.bias", "head.weight", "head.bias")
    assert model.hidden[0].out_features == 7 == model.head.in_features  # type: ignore[union-attr,index]
    torch.manual_seed(0)
    plain = hs.models.conv4(1, 5, 16, filters=4)
    torch.manual_seed(0)
    same = hs.models.conv4(1, 5, 16, filters=4, hidden_head=0)
    assert tensors_of(hs.anil(plain)).keys() == tensors_of(hs.anil(same)).keys()
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), same.state_dict().values(), strict=True))
