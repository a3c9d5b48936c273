"""Normalisation that a user froze stays frozen; running statistics of every kind are averages over training examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import headstart as hs
from fakes import source
from headstart.evaluation.batch_norm import estimate_batch_norm, normalising, training_mode

CONFIG = hs.TrainConfig(queries=3, tasks=4, iterations=3, validate_every=2, validation_episodes=4)


def model(norm: Any = nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        norm(3),
        nn.ReLU(),
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


def buffers(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in layer.named_buffers()}


def test_a_frozen_layer_keeps_its_statistics_in_training() -> None:
    net = model()
    net[1].eval()
    net[1].running_mean.fill_(0.25)
    before = buffers(net[1]), buffers(net[4])
    run = hs.train(hs.anil(net, 1, 0.1), source(), CONFIG, quiet=True)
    assert run.iterations == 3
    assert all(torch.equal(v, before[0][k]) for k, v in buffers(net[1]).items())
    assert not torch.equal(net[4].running_mean, before[1]["running_mean"])
    assert not net[1].training
    assert net[4].training


def test_a_model_in_evaluation_mode_is_put_into_training_mode() -> None:
    net = model().eval()
    hs.train(hs.anil(net, 1, 0.1), source(), CONFIG, quiet=True)
    assert all(m.training for m in net.modules())
    assert float(net[1].running_mean.abs().sum()) > 0


def test_a_module_that_freezes_itself_stays_frozen() -> None:
    """As in detection models, whose train() leaves normalisation in evaluation mode."""

    class Own(nn.Sequential):
        def train(self, mode: bool = True) -> Own:
            super().train(mode)
            self[1].eval()
            return self

    net = Own(*model())
    training_mode(hs.anil(net))
    assert net.training
    assert not net[1].training


def test_batch_policies_leave_frozen_layers_alone() -> None:
    net = model()
    net[1].eval()
    own, few = hs.anil(net), source().train.batch(torch.arange(3))
    with normalising(own, "batch", few):
        assert (net[1].training, net[4].training) == (False, True)
    net.eval()
    with normalising(own, "batch", few):
        assert (net[1].training, net[4].training) == (False, True), "what was frozen is remembered"
    with normalising(hs.anil(net), "batch", few):
        assert (net[1].training, net[4].training) == (True, True)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda c: nn.InstanceNorm2d(c, track_running_stats=True)])
def test_running_statistics_are_the_mean_over_equal_chunks(norm: Any) -> None:
    data, net = source().train, model(norm)
    own = hs.anil(net)
    estimate_batch_norm(own, data, examples=96, chunk=24)
    with torch.no_grad():
        pictures = data.batch(torch.arange(96))
        mean = net[0](pictures).mean((0, 2, 3))
    torch.testing.assert_close(net[1].running_mean, mean, rtol=1e-4, atol=1e-5)
    assert net[1].momentum == 0.1
    assert not net[1]._forward_pre_hooks
    again = buffers(net[1])
    estimate_batch_norm(own, data, examples=96, chunk=24)  # whatever was there before
    assert all(torch.equal(v, again[k]) for k, v in buffers(net[1]).items())


def test_a_layer_that_runs_twice_averages_over_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(256), nn.Linear(256, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            flat = x.flatten(1)
            return self.head(self.norm(flat) + self.norm(flat + 2))

    net, data = Twice(), source().train
    estimate_batch_norm(hs.anil(net), data, examples=96, chunk=96)
    torch.testing.assert_close(net.norm.running_mean, data.batch(torch.arange(96)).flatten(1).mean(0) + 1, rtol=1e-4, atol=1e-4)
