"""A task of someone's own as the page shows it: what it says of a drawing, and what happens inside as it is learned."""

from __future__ import annotations

import base64
import copy
import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from headstart.evaluation.calibration import as_logits
from headstart.learner import MetaLearner
from headstart.tasks import Side, TaskBatch
from headstart.using import Predictor, TrainedStart

FEW = 8
"""Drawings that are left out at most, where more than a head adapts."""


def own_rate(learner: MetaLearner) -> float | None:
    """α, where the inner solver has a single one that is not learned; else None."""
    lr = getattr(learner.inner, "lr", None)
    return float(lr) if isinstance(lr, int | float) and not learner.theta else None


def with_rate(start: TrainedStart, lr: float | None) -> TrainedStart:
    """The same start with another α; the weights are shared, and stay as they are."""
    if lr is None or lr == own_rate(start.learner):
        return start
    learner = copy.copy(start.learner)
    learner.use_lr(lr)
    return replace(start, learner=learner)


@dataclass(frozen=True, eq=False)
class Learned:
    """A task that was learned.

    Args:
        predictor: of the task.
        ms: that its adaptation took.
    """

    predictor: Predictor
    ms: float

    @classmethod
    def of(cls, start: TrainedStart, classes: Sequence[tuple[str, Sequence[bytes]]], steps: int | None, lr: float | None) -> Learned:
        """Learns classes from the contents of picture files.

        Raises:
            DataError: one is no picture.
            TaskError: the start cannot tell so many classes apart.
        """
        x = start.preprocessing.pictures([one for _, contents in classes for one in contents])
        labels = [name for name, contents in classes for _ in contents]
        begun = time.perf_counter()
        found = Predictor.of(with_rate(start, lr), x, labels, steps)
        return cls(found, 1000 * (time.perf_counter() - begun))

    def says(self, picture: bytes) -> dict[str, Any]:
        """What it says of a drawing: its class, or None where it looks like none of them, by the calibration.

        Raises:
            DataError: it is no picture.
        """
        own = self.predictor
        x = own.start.preprocessing.pictures([picture])
        begun = time.perf_counter()
        [found] = own.predict(x)
        ms = 1000 * (time.perf_counter() - begun)
        probabilities = [_number(found.probabilities[c]) for c in own.classes]
        diverged = any(p is None for p in probabilities)
        return {
            "label": None if diverged else found.label,
            "best": None if diverged else next(iter(found.probabilities)),
            "probabilities": probabilities,
            "score": None if found.score is None else _number(found.score),
            "ms": ms,
            "seen": seen(x)[0],
        }

    def curves(self, steps: int) -> dict[str, Any]:
        """After 0 … ``steps`` inner steps: the mean support loss, and the accuracy on drawings that were left out, one at a time.

        A drawing is left out where its class has others: the rest teaches the task anew, and is asked about it.
        """
        own, learner = self.predictor, self.predictor.start.learner
        x, y, ways = own.start.preprocessing.ready(own.x), own.y, len(own.classes)
        embedded = learner.embed([x])
        taken = learner.inner.steps if own.steps is None else own.steps
        steps = longest(learner, steps if embedded is not None else taken)  # further steps are cheap for a head alone
        everything = torch.arange(len(y))[None]
        both = Side(everything, y[None])
        with learner.in_use(x):
            outputs = learner.trajectory(TaskBatch.from_pool(x, both, both), steps, embedded)
        loss = [_number(learner.loss.means(at, y[None]).item()) for at in outputs]
        counts = y.bincount(minlength=ways)
        left_out = (counts[y] > 1).nonzero()[:, 0]
        if embedded is None:  # every one that is left out is a whole adaptation then
            left_out = left_out[:: math.ceil(len(left_out) / FEW) or 1]
        if not len(left_out):
            return {"loss": loss, "accuracy": None, "left_out": 0, "of_classes": 0}
        rest = torch.stack([torch.cat([everything[0, :i], everything[0, i + 1 :]]) for i in left_out.tolist()])
        tasks = TaskBatch.from_pool(x, Side(rest, y[rest]), Side(left_out[:, None], y[left_out][:, None]))
        with learner.in_use(x):
            by_step = learner.trajectory(tasks, steps, embedded)
        right = [float(_answers(learner, at, ways).eq(y[left_out]).double().mean()) for at in by_step]
        return {"loss": loss, "accuracy": right, "left_out": len(left_out), "of_classes": len(y[left_out].unique())}


def longest(learner: MetaLearner, steps: int) -> int:
    """How many inner steps to show: a closed form takes one."""
    return 1 if learner.inner.closed_form else steps


def _answers(learner: MetaLearner, outputs: Tensor, ways: int) -> Tensor:
    """(T,) the classes that (T, 1, C) outputs stand for; outputs that are not finite are no answer."""
    logits = as_logits(outputs[:, 0, :ways], learner.loss)
    return torch.where(logits.isnan().any(-1), -1, logits.argmax(-1))


def _number(value: float) -> float | None:
    """A number that JSON can hold; None where steps were too long and nothing finite is left."""
    return value if math.isfinite(value) else None


def seen(x: Tensor) -> list[str]:
    """(n, C, H, W) bytes of pictures as the model sees them, for the page."""
    from PIL import Image

    found = []
    for one in x:
        pixels = one[0].numpy() if len(one) == 1 else one.permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
        found.append("data:image/png;base64," + base64.b64encode(file.getvalue()).decode())
    return found
