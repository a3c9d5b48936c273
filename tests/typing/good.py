"""A user's code that must type-check, with the types that a reader would expect."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_type

import torch
from torch import Tensor, nn

import headstart as hs
from headstart.errors import ConfigError, HeadstartError


@dataclass(frozen=True)
class Halving(hs.Solver):
    """A solver of one's own."""

    lr: float = 0.1

    def update(
        self, m: int, w: dict[str, Tensor], state: dict[str, Tensor], gradient: dict[str, Tensor], theta: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {name: w[name] - self.lr / 2**m * gradient[name] for name in w}, state


class Patience(hs.Callback):
    """A callback of one's own."""

    def step(self, training: hs.Training) -> dict[str, float] | None:
        return {"seconds": training.run.training_seconds} if training.step % 10 == 0 else None

    def reason_to_stop(self, training: hs.Training) -> str:
        return "long enough" if training.run.seconds > 60 else ""


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of one's own."""
    return nn.functional.huber_loss(outputs, targets, reduction="none").mean(1)


def learners(model: nn.Module) -> list[hs.MetaLearner]:
    """Every way to make one."""
    return [
        hs.anil(model, steps=5, lr=0.4),
        hs.maml(model, lr=[0.4, 0.2], steps=2),
        hs.anil(model, lr={"head.*": 0.1, "*": 0.01}, adapt=["head", "*.bias"]),
        hs.anil(model, hypergradient=hs.Recursive()),
        hs.MetaLearner(hs.Partition(model, adapt="last:2"), Halving(steps=3), hs.Unrolled(), loss=huber, step_weights=[0, 0, 0.5, 0.5]),
        hs.MetaLearner(hs.Partition(model, adapt="head"), hs.GradientDescent(3, 0.5, momentum=0.9), start=hs.Prototypes()),
    ]


def training(learner: hs.MetaLearner, out: Path) -> hs.Run:
    """Training, and what comes of it."""
    data = hs.data.load("glyphs")
    config = hs.TrainConfig(ways=5, shots=1, sampling="dense", iterations=10, outer_lr_phi=1e-4)
    observer = hs.Observer(at=(0, 10), look=lambda learner, step: {"steps": learner.inner.steps, "at": step})
    order = hs.Schedule(hypergradient=lambda step: hs.FirstOrder() if step < 5 else None, step_weights=lambda step: None)
    run = hs.train(learner, data, config, out=out, callbacks=[Patience(), observer, order, *hs.callbacks_of("")])
    assert_type(run, hs.Run)
    assert_type(run.best, tuple[float, int] | None)
    assert_type(run.history, list[dict[str, Any]])
    result = hs.evaluate(learner, data.test, ways=5, shots=1, episodes=100)
    assert_type(result, hs.Evaluation)
    assert_type(result.mean, float)
    assert_type(result.ci95, float)
    return run


def by_hand(learner: hs.MetaLearner, x: Tensor, y: Tensor) -> Tensor:
    """A loop of one's own, and an adapted model."""
    tasks = hs.TaskBatch(x, y, x, y)
    assert_type(tasks[0:1], hs.TaskBatch)
    gradients, stats = learner.meta_gradient(tasks)
    assert_type(gradients, dict[str, Tensor])
    assert_type(stats, hs.MetaStats)
    optimizer = torch.optim.SGD(learner.parameters().values(), lr=0.1)
    for name, parameter in learner.parameters().items():
        parameter.grad = gradients[name]
    optimizer.step()
    adapted = learner.adapt(x[0], y[0], steps=3)
    assert_type(adapted, hs.Adapted)
    assert_type(adapted.to_module(), nn.Module)
    with hs.ledger() as counted:
        learner.adapt(x[0], y[0])
    assert_type(counted, hs.Ledger)
    return adapted.predict(x[0])


def errors(path: str) -> hs.MetaLearner | None:
    """What can go wrong has a type."""
    try:
        return hs.load(path)
    except ConfigError as error:
        print(error)
    except HeadstartError:
        return None
    return None


def trackers() -> str:
    """The version is text."""
    assert_type(hs.__version__, str)
    return hs.__version__
