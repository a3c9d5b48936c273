"""Batches are prepared while the last one trains: the same numbers, errors in their turn, and nothing left running."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

import headstart as hs
from fakes import source
from headstart.data import Sinusoid
from headstart.training.batches import Batches


class Noted:
    """A sampler of a user's own that notes who asks it for what."""

    tasks = 2

    def __init__(self, fails_at: int = 99) -> None:
        self.asked: list[tuple[int, str]] = []
        self.fails_at = fails_at

    def batch(self, index: int, device: Any = "cpu") -> hs.TaskBatch:
        self.asked.append((index, threading.current_thread().name.partition("_")[0]))
        if index == self.fails_at:
            raise hs.errors.DataError("the file is gone")
        x = torch.randn(2, 4, 1)  # from the global generator, which the loop has seeded for this step
        return hs.TaskBatch(x, x[..., 0], x, x[..., 0])


class Ahead(Noted):
    prefetch = True


def test_batches_are_those_of_the_sampler_one_ahead() -> None:
    sampler = Sinusoid(tasks=3)
    threads = torch.get_num_threads()
    with Batches(sampler.batch, last=6, ahead=sampler.prefetch) as batches:
        for i in (2, 3, 4, 5):
            assert torch.equal(batches[i].support_y, sampler.batch(i).support_y)
        assert torch.equal(batches[1].support_y, sampler.batch(1).support_y)
    assert torch.get_num_threads() == threads
    assert not [t for t in threading.enumerate() if t.name.startswith("headstart")]
    own = Ahead()
    with Batches(own.batch, last=3, ahead=own.prefetch) as batches:
        for i in range(3):
            batches[i]
    assert own.asked == [(i, "headstart-batches") for i in range(3)]


def test_denormal_numbers_are_flushed_there_too() -> None:
    class Tiny(Ahead):
        def batch(self, index: int, device: Any = "cpu") -> Any:
            return float(torch.tensor(1e-40) * 1.0)

    with Batches(Tiny().batch, last=1, ahead=True) as batches:
        assert batches[0] == 0.0  # type: ignore[comparison-overlap]


def test_an_error_is_raised_in_its_turn() -> None:
    own = Ahead(fails_at=2)
    with Batches(own.batch, last=9, ahead=own.prefetch) as batches:
        batches[0]
        batches[1]
        with pytest.raises(hs.errors.DataError, match="the file is gone"):
            batches[2]
    assert not [t for t in threading.enumerate() if t.name.startswith("headstart")]


def test_a_sampler_of_ones_own_may_use_global_random_numbers() -> None:
    """It is asked in the thread that trains, after the seed of the step is set."""
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        own, sampler = hs.maml(hs.models.mlp(1, 1, (4,)), 1, 0.01, loss="squared_error"), Noted()
        data = type("Own", (), {"train": sampler, "validation": Sinusoid(5, 5, 2), "test": Sinusoid(5, 5, 2)})
        config = hs.TrainConfig(tasks=2, iterations=4, validate_every=4, validation_episodes=4)
        run = hs.train(own, data, config, quiet=True)
        assert [who for who in sampler.asked if who[0] < 4 and who[1] != "MainThread"] == []
        found.append([{k: v for k, v in e.items() if k != "seconds"} for e in run.history])
    assert found[0] == found[1]


def test_training_draws_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    histories = []
    for ahead in (True, False):
        monkeypatch.setattr(hs.data.Episodes, "prefetch", ahead, raising=False)
        torch.manual_seed(0)
        own = hs.anil(hs.models.conv4(1, 5, 16, filters=4), steps=2, lr=0.4)
        config = hs.TrainConfig(queries=3, tasks=4, iterations=5, validate_every=2, validation_episodes=6, augment="affine")
        run = hs.train(own, source(), config, quiet=True)
        histories.append([{k: v for k, v in e.items() if k != "seconds"} for e in run.history])
    assert histories[0] == histories[1]
