"""What docs/architecture.md promises: a source and a head of one's own, each in one file — this one — in Python and on the command line.

Solvers, hypergradients, losses, models, optimizers and schedules of one's own are in tests/test_choices.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import headstart as hs
from headstart.cli import main
from headstart.errors import ConfigError
from headstart.program.description import FEATURES


class Lines:
    """Regression to straight lines: a sampler of one's own."""

    def __init__(self, slope: float, first: int) -> None:
        self.tasks, self.slope, self.first = 4, slope, first

    def batch(self, index: int, device: torch.device | str = "cpu") -> hs.TaskBatch:
        generator = torch.Generator().manual_seed(self.first + index)
        x = torch.rand(4, 2, 6, 1, generator=generator)
        y = self.slope * x[..., 0] + torch.rand(4, 1, 1, generator=generator)
        return hs.TaskBatch(x[:, 0], y[:, 0], x[:, 1], y[:, 1]).to(device)


def lines(slope: float = 1.0) -> Any:
    """A source of one's own: training, validation and test tasks."""
    return SimpleNamespace(train=Lines(slope, 0), validation=Lines(slope, 1000), test=Lines(slope, 2000))


@dataclass(frozen=True)
class CosineHead(hs.Start):
    """A head of one's own: the class means, all of one length."""

    scale: float = 5.0

    def __call__(self, w: Any, partition: hs.Partition, program: Any, tasks: Any, support: Any) -> Any:
        weight, bias = program.head_names
        member = F.one_hot(tasks.support.y, tasks.ways).to(support[FEATURES].dtype)
        means = member.mT @ support[FEATURES] / member.sum(1).unsqueeze(-1)
        return {weight: self.scale * F.normalize(means, dim=-1), bias: means.new_zeros(means.shape[:2])}

    def shape(self, program: Any, tasks: Any) -> torch.Size:
        return torch.Size((program.shape[0], tasks.ways))


COMMON = ["--iterations", "3", "--validate-every", "3", "--validation-episodes", "8", "--test-episodes", "8"]


def test_a_source_of_ones_own(tmp_path: Path) -> None:
    source = hs.data.load("test_parts:lines", slope=2.0)
    learner = hs.anil(hs.models.mlp(1, 1, (8,)), 3, 0.1, loss="squared_error")
    hs.train(learner, source, hs.TrainConfig(iterations=3, validate_every=3, validation_episodes=8), quiet=True)
    assert hs.evaluate(learner, source.test, episodes=8).protocol["tasks"] == "Lines"
    args = ["train", "--data", "test_parts:lines", "--data-options", "slope=2.0", "--adapt", "head", "--lr", "0.1", *COMMON]
    assert main([*args, "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["metric"] == "squared error"
    with pytest.raises(hs.HeadstartError, match="has no option 'slop'"):
        hs.data.load("test_parts:lines", slop=2.0)


def test_a_head_of_ones_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = hs.models.mlp(4, 5, (8,)).double()
    x, y = torch.randn(3, 2, 6, 4).double(), torch.arange(3).repeat(3, 2, 2)
    tasks = hs.TaskBatch(x[:, 0], y[:, 0], x[:, 1], y[:, 1])
    grads = [
        hs.anil(model, 2, 0.1, start=CosineHead(), hypergradient=h).meta_gradient(tasks)[0] for h in (None, hs.Unrolled(), hs.Recursive())
    ]
    for other in grads[1:]:
        for k, g in grads[0].items():
            torch.testing.assert_close(other[k], g)
    args = ["train", "--data", "glyphs", "--ways", "3", "--filters", "4", "--tasks", "2", "--start", "test_parts:CosineHead", *COMMON]
    assert main([*args, "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["protocol"]["start"] == "CosineHead"


def test_evaluation_embeds_the_examples_that_its_episodes_use() -> None:
    split = hs.data.Split(torch.rand(400, 4), [f"c{i}" for i in range(20)], [20] * 20, "test")
    model = hs.models.mlp(4, 5, (8,))
    learner, seen = hs.anil(model, 2, 0.1), list[int]()
    whole = hs.evaluate(learner, split, ways=5, shots=1, queries=2, episodes=400)
    few = hs.evaluate(learner, split, ways=5, shots=1, queries=2, episodes=4)
    model[0].register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    hs.evaluate(learner, split, ways=5, shots=1, queries=2, episodes=4)
    seen.clear()
    again = hs.evaluate(learner, split, ways=5, shots=1, queries=2, episodes=4)
    assert again.scores == few.scores == hs.evaluate(learner, split, ways=5, shots=1, queries=2, episodes=4).scores
    assert sum(seen) < 200
    assert len(whole.scores) == 400


def test_splits_of_one_array_share_it() -> None:
    array = torch.randn(12, 3)
    one = hs.data.Split(array, ["a"], [4], "one", rows=torch.tensor([8, 9, 10, 11]))
    assert one.array.data_ptr() == array.data_ptr()
    assert torch.equal(one.examples, array[8:])
    assert torch.equal(one.batch(torch.tensor([[0, 3]])), array[[8, 11]][None])
    source = hs.data.load("glyphs")
    assert source.train.array.data_ptr() == source.test.array.data_ptr()


def test_a_sampler_that_says_something_of_itself_still_goes_through_the_adapter() -> None:
    class Described(Lines):
        def description(self) -> dict[str, str]:
            return {"tasks": "lines that were described"}

    learner = hs.anil(hs.models.mlp(1, 1, (8,)), 3, 0.1, loss="squared_error")
    assert hs.evaluate(learner, Described(1.0, 0), episodes=8).protocol["tasks"] == "lines that were described"


def test_a_misspelt_source_is_told_from_a_function() -> None:
    with pytest.raises(hs.HeadstartError, match=r"'foldr' is not known; use one of .*folder"):
        hs.data.load("foldr:my/pictures")


@dataclass(frozen=True)
class Signs(hs.Solver):
    """A solver of one's own: only the sign of the gradient counts."""

    steps: int = 3
    lr: float | str = 0.1

    def update(self, m: int, w: Any, state: Any, gradient: Any, theta: Any) -> Any:
        return {k: w[k] - self.lr * gradient[k].sign() for k in w}, state


def test_the_step_size_of_a_solver_of_ones_own_is_measured_too() -> None:
    learner = hs.MetaLearner(hs.Partition(hs.models.mlp(1, 1, (8,))), Signs(lr="auto"), loss="squared_error")
    with pytest.raises(ConfigError, match="is to be measured"):
        learner.trajectory(lines().train.batch(0))
    run = hs.train(learner, lines(), hs.TrainConfig(iterations=2, validate_every=2, validation_episodes=8), quiet=True)
    assert isinstance(learner.inner.lr, float)  # type: ignore[attr-defined]
    assert any(note.startswith("lr=") for note in run.notes)
