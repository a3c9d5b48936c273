"""A user's mistakes: each comment silences an error that a checker must find there, and one that finds none complains of the comment."""

from pathlib import Path

import torch
from torch import nn

import headstart as hs

model = nn.Linear(2, 2)
learner = hs.anil(model, steps=5, lr=0.4)
data = hs.data.load("glyphs")

hs.anil(model, steps="5")  # type: ignore[arg-type]
hs.anil("conv4")  # type: ignore[arg-type]
hs.anil(model, adapt=3)  # type: ignore[arg-type]
hs.anil(model, hypergradient=hs.GradientDescent())  # type: ignore[arg-type]
hs.MetaLearner(model, hs.GradientDescent())  # type: ignore[arg-type]
hs.MetaLearner(hs.Partition(model, adapt="head"), hs.GradientDescent(), step_weight=[1.0])  # type: ignore[call-arg]
hs.MetaLearner(hs.Partition(model, adapt="head"), hs.Unrolled())  # type: ignore[arg-type]
hs.TrainConfig(iterations="10")  # type: ignore[arg-type]
hs.TrainConfig(sampling="sparse")  # type: ignore[arg-type]
hs.TrainConfig(iteration=10)  # type: ignore[call-arg]
hs.train(learner, data, callbacks=hs.Callback())  # type: ignore[arg-type]
hs.train(learner, data, callbacks=[print])  # type: ignore[list-item]
hs.train(learner, data, observer=None)  # type: ignore[call-arg]
hs.train(learner, data, out=3)  # type: ignore[arg-type]
hs.Observer(at=3, look=lambda learner, step: {})  # type: ignore[arg-type]
hs.Schedule(hypergradient=hs.FirstOrder())  # type: ignore[arg-type]
hs.evaluate(learner, data.test, way=5)  # type: ignore[call-arg]
hs.evaluate(model, data.test)  # type: ignore[arg-type]
hs.TaskBatch(torch.ones(1), torch.ones(1), torch.ones(1))  # type: ignore[call-arg]
hs.GradientDescent(steps=2.5)  # type: ignore[arg-type]
hs.Prototypes("nearest")  # type: ignore[call-arg]
learner.adapt(torch.ones(1))  # type: ignore[call-arg]
learner.meta_gradients(None)  # type: ignore[attr-defined]
hs.load(3)  # type: ignore[arg-type]
hs.Partition(model, adapts="head")  # type: ignore[call-arg]
hs.no_such_name  # type: ignore[attr-defined]
text: int = hs.__version__  # type: ignore[assignment]
loss: str = hs.train(learner, data, out=Path("runs/one"))  # type: ignore[assignment]


class Callback(hs.Callback):
    """The moment is named step, and takes what is seen of training."""

    def step(self, training: int) -> None:  # type: ignore[override]
        print(training)
