"""The outer optimizer: groups for w, φ and the solver, schedules, and runs that go on for longer than planned."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import headstart as hs
from headstart.errors import ConfigError
from headstart.training.loop import LAST
from headstart.training.outer import Outer, OuterConfig
from headstart.training.run_folder import Keeper

WAVES = {"shots": 5, "queries": 5, "tasks": 2, "validate_every": 100, "validation_episodes": 4}


def learner(adapt: str = "head", solver: Any = None) -> hs.MetaLearner:
    torch.manual_seed(0)
    model = hs.models.mlp(1, 1, (4,))
    return hs.MetaLearner(hs.Partition(model, adapt), solver or hs.GradientDescent(1, 0.01), loss="squared_error")


def ones(own: hs.MetaLearner) -> dict[str, torch.Tensor]:
    return {k: torch.ones_like(v) for k, v in own.parameters().items()}


def rates(outer: Outer, own: hs.MetaLearner, first: int, last: int) -> list[float]:
    """The step size of the first group in each of some steps."""
    found = []
    for i in range(first, last):
        outer.step(ones(own), i)
        found.append(outer.last[0])
    return found


def test_plain_descent_with_the_step_sizes_of_the_theory() -> None:
    """β_w for what adapts and β_φ for what is shared: x ← x − β g, to the last bit."""
    own = learner()
    before = {k: v.detach().clone() for k, v in own.parameters().items()}
    config = OuterConfig(optimizer="sgd", schedule="constant", outer_lr_w=0.5, outer_lr_phi=0.125)
    Outer(own, config).step(ones(own), 0)
    w, phi = own.partition.split()
    assert w
    assert phi
    for name, value in own.parameters().items():
        assert torch.equal(value, before[name] - (0.5 if name in w else 0.125)), name


def test_a_share_that_is_not_given_is_the_common_step_size() -> None:
    config = OuterConfig(outer_lr=0.25, outer_lr_phi=0.5)
    assert (config.rate_of("w"), config.rate_of("phi"), config.rate_of("solver")) == (0.25, 0.5, 0.25)


@pytest.mark.parametrize("lr", [1e-3, 0.4])
def test_adam_moves_a_learned_step_size_in_proportion(lr: float) -> None:
    """Adam's first step is the group's step size whatever the gradient: a hundredth of each step size, and no weight decay."""
    own = learner("all", hs.MetaSGD(1, lr))
    config = OuterConfig(outer_lr=0.01, weight_decay=0.5, schedule="constant")
    before = {k: v.detach().clone() for k, v in own.parameters().items()}
    Outer(own, config).step(ones(own), 0)
    for name, value in own.parameters().items():
        wanted = before[name] * 0.99 if name.startswith("inner.") else before[name] * (1 - 0.005) - 0.01
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-7)


def test_the_solver_may_say_its_scales() -> None:
    class Said(hs.MetaSGD):
        def scales(self) -> dict[str, float]:
            return {"lr.": 0.5, "lr.0.weight": 3.0}

    own = learner("all", Said(1, 0.01))
    outer = Outer(own, OuterConfig(outer_lr=0.1))
    assert outer.scales["inner.lr.0.weight"] == 3.0
    assert outer.scales["inner.lr.0.bias"] == 0.5
    by_name = {g["name"]: (g["lr"], len(g["params"])) for g in outer.optimizer.param_groups}
    assert by_name["solver × 3"] == (pytest.approx(0.3), 1)
    assert len(by_name) == 3


def test_log_lambda_does_not_decay() -> None:
    own = learner(solver=hs.Ridge(l2=2.0))
    outer = Outer(own, OuterConfig(weight_decay=0.5, outer_lr=0.1))
    outer.step({k: torch.zeros_like(v) for k, v in own.parameters().items()}, 0)
    assert own.theta["log_l2"].item() == pytest.approx(math.log(2.0))


def test_the_schedules_are_what_they_were() -> None:
    own = learner()
    outer = Outer(own, OuterConfig(iterations=10, outer_lr=0.3))
    assert rates(outer, own, 0, 10) == [0.3 * 0.5 * (1 + math.cos(math.pi * i / 10)) for i in range(10)]
    assert rates(Outer(own, OuterConfig(iterations=10, outer_lr=0.3, schedule="constant")), own, 0, 3) == [0.3] * 3


def halving(optimizer: torch.optim.Optimizer, every: int, iterations: int) -> torch.optim.lr_scheduler.LRScheduler:
    assert iterations == 8
    return torch.optim.lr_scheduler.StepLR(optimizer, every, 0.5)


class Signs(torch.optim.Optimizer):
    """A toy: steps by the sign of the gradient; it keeps a number and nothing else."""

    def __init__(self, params: Any, lr: float, by: float = 1.0) -> None:
        super().__init__(params, {"lr": lr, "by": by})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["taken"] = self.state[p].get("taken", 0) + 1
                with torch.no_grad():
                    p.add_(p.grad.sign(), alpha=-group["lr"] * group["by"])


OWN = {"optimizer": "test_outer:Signs", "optimizer_options": "by=0.5", "schedule": "test_outer:halving", "schedule_options": "every=3"}


def test_an_optimizer_and_a_schedule_of_ones_own() -> None:
    own = learner()
    before = own.parameters()["0.weight"].detach().clone()
    outer = Outer(own, OuterConfig(iterations=8, outer_lr=0.25, **OWN))
    assert rates(outer, own, 0, 7) == [0.25, 0.25, 0.25, 0.125, 0.125, 0.125, 0.0625]
    torch.testing.assert_close(own.parameters()["0.weight"], before - 0.5 * (0.75 + 0.375 + 0.0625))


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "optimizer_options": "momentum=0.9"},
        {"optimizer": "nadam", "outer_lr_w": 0.01},
        {"optimizer": "torch.optim:Adafactor"},
        {"schedule": "torch.optim.lr_scheduler:ExponentialLR", "schedule_options": "gamma=0.9"},
        {"schedule": "torch.optim.lr_scheduler:OneCycleLR", "schedule_options": "max_lr=0.01,total_steps=8"},
        OWN,
    ],
)
@pytest.mark.parametrize("solver", [hs.GradientDescent(1, 0.01), hs.Ridge(l2=1.0)])
def test_any_optimizer_resumes_bit_for_bit(options: dict[str, Any], solver: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {**WAVES, "iterations": 8, "validate_every": 3, **options}
    weights = []
    for folder in ("whole", "cut"):
        own = learner(solver=solver)
        real, calls = own.meta_gradient, [0]

        def dies(tasks: hs.TaskBatch, real: Any = real, calls: list[int] = calls) -> Any:
            calls[0] += 1
            if calls[0] == 6:
                raise RuntimeError("as if killed")
            return real(tasks)

        if folder == "cut":
            own.meta_gradient = dies  # type: ignore[method-assign]
            with pytest.raises(RuntimeError, match="as if killed"):
                hs.train(own, hs.data.load("sinusoid"), hs.TrainConfig(**settings), out=tmp_path / folder, quiet=True)
            own = learner(solver=solver)
        resume = folder == "cut"
        hs.train(own, hs.data.load("sinusoid"), hs.TrainConfig(**settings), out=tmp_path / folder, resume=resume, quiet=True)
        weights.append({k: v.detach().clone() for k, v in own.parameters().items()})
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


# -- going on for longer -----------------------------------------------------------------------------------------------


def test_a_longer_run_comes_onto_its_schedule_without_a_jump() -> None:
    own = learner()
    first = Outer(own, OuterConfig(iterations=100, outer_lr=1.0))
    before = rates(first, own, 0, 100)
    saved = json.loads(json.dumps(first.state()))
    longer = OuterConfig(iterations=300, outer_lr=1.0)
    second = Outer(own, longer, 100, saved)
    assert second.note == (
        "the run was planned for 100 steps and goes on from step 100 to 300: from 0.000247 the outer step size goes over 50 steps to"
        " the cosine schedule of 300 steps"
    )
    after = rates(second, own, 100, 300)
    scheduled = [0.5 * (1 + math.cos(math.pi * i / 300)) for i in range(100, 300)]
    assert after[49:] == scheduled[49:]
    # A straight line from where it stood: the k-th of 50 steps is k/50 of the way.
    assert after[:49] == pytest.approx([before[-1] + (k + 1) / 50 * (scheduled[k] - before[-1]) for k in range(49)], abs=1e-12)
    both = [before[-1], *after]
    assert max(abs(a - b) for a, b in itertools.pairwise(both)) < 0.02


def test_a_longer_run_that_is_cut_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """In the middle of the way back onto the schedule too."""
    data = hs.data.load("sinusoid")
    ended = {}
    for name, stops in (("whole", [8, 24]), ("cut", [8, 10, 13, 24])):
        for stop in stops:
            own = learner()
            real, calls = own.meta_gradient, [0]
            config = hs.TrainConfig(**{**WAVES, "iterations": 8 if stop == 8 else 24, "validate_every": 2})
            run_before = 0 if stop == 8 else json.loads((tmp_path / name / LAST).with_suffix(".json").read_text())["iteration"]

            def counted(tasks: hs.TaskBatch, real: Any = real, calls: list[int] = calls, most: int = stop - run_before) -> Any:
                calls[0] += 1
                if calls[0] > most:
                    raise RuntimeError("as if killed")
                return real(tasks)

            own.meta_gradient = counted  # type: ignore[method-assign]
            try:
                run = hs.train(own, data, config, out=tmp_path / name, resume=stop != 8, quiet=True)
                notes = run.notes
            except RuntimeError:
                notes = []
            if name == "whole" and stop == 24:
                assert "planned for 8 steps and goes on from step 8 to 24" in notes[0]
        keeper = Keeper.open(own, hs.TrainConfig(**{**WAVES, "iterations": 24}), tmp_path / name, True)
        assert keeper.run.iterations == 24
        state = keeper.outer.state()
        ended[name] = ({k: v.detach().clone() for k, v in own.parameters().items()}, state["back"], state["last"])
    assert ended["whole"][1:] == ended["cut"][1:]
    assert all(torch.equal(v, ended["cut"][0][k]) for k, v in ended["whole"][0].items())


def test_a_constant_schedule_goes_on_as_it_was() -> None:
    own = learner()
    first = Outer(own, OuterConfig(iterations=4, schedule="constant"))
    rates(first, own, 0, 4)
    second = Outer(own, OuterConfig(iterations=8, schedule="constant"), 4, first.state())
    assert rates(second, own, 4, 8) == [1e-3] * 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "adamm"}, "optimizer 'adamm' is not known; did you mean 'adam"),
        ({"optimizer": "no_such:Thing"}, "optimizer 'no_such:Thing' cannot be loaded"),
        ({"optimizer_options": "beta=1"}, "optimizer 'adamw' has no option 'beta'"),
        ({"optimizer_options": "eps=-1"}, "optimizer 'adamw' cannot be made of .*Invalid epsilon"),
        ({"optimizer_options": "0.9"}, "optimizer_options='0.9': '0.9' is not NAME=VALUE"),
        ({"optimizer": "test_outer:Signs", "weight_decay": 0.1}, "has no option 'weight_decay'"),
        ({"schedule": "linear"}, "schedule 'linear' is not known"),
        ({"schedule_options": "floor=1"}, "schedule 'cosine' has no option 'floor'"),
        ({"schedule": "torch.optim.lr_scheduler:StepLR"}, "cannot be made of no options"),
        ({"schedule": "torch.optim.lr_scheduler:ReduceLROnPlateau"}, "goes by metrics"),
        ({"outer_lr_w": -1.0}, "outer_lr_w=-1.0"),
        ({"deterministic": 1}, "deterministic=1"),
    ],
)
def test_what_cannot_work_is_refused_when_the_config_is_made(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        hs.TrainConfig(**options)


def test_another_optimizer_cannot_go_on() -> None:
    own = learner()
    with pytest.raises(ConfigError, match="made with optimizer='adamw', and not 'sgd'"):
        Outer(own, OuterConfig(optimizer="sgd"), 3, Outer(own, OuterConfig()).state())
