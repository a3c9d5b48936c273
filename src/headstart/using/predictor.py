"""A learned task: predicts labels of new examples, takes more examples and classes later, and can be kept in a file."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart import container
from headstart.adapted import Adapted
from headstart.errors import DataError, DivergenceError, TaskError
from headstart.evaluation.calibration import as_logits, class_means
from headstart.keeping import tensors_of
from headstart.learner import MetaLearner
from headstart.using.trained import TrainedStart

PREDICTOR = "predictor"
BATCH = 256


@dataclass(frozen=True)
class Prediction:
    """What a predictor says of one example.

    Args:
        label: its class; None where it belongs to none of them; the predicted number for real targets.
        probabilities: of each class, in order of size; {} for real targets.
        score: how much it looks like one of the classes, which the calibration's threshold is compared with; None without a calibration.

    Example:
        >>> Prediction("bolt", {"bolt": 0.9, "nut": 0.1}).confidence
        0.9
    """

    label: Any
    probabilities: dict[Any, float]
    score: float | None = None

    @property
    def confidence(self) -> float:
        """The largest probability; 0 for real targets."""
        return max(self.probabilities.values(), default=0.0)


@dataclass(frozen=True, eq=False)
class Looks:
    """What a linear head sees, and the mean of it for each class of a task.

    Args:
        body: gives the features of examples.
        means: (C, D) of the support examples of each class.
    """

    body: nn.Module
    means: Tensor

    @classmethod
    def of(cls, learner: MetaLearner, adapted: Adapted, ready: Tensor, y: Tensor, ways: int) -> Looks:
        """Those of an adapted model: a copy of it that ends before its head."""
        body = copy.deepcopy(adapted.module)
        path = learner.partition.head[0].rpartition(".")[0]
        parent, _, leaf = path.rpartition(".")
        setattr(body.get_submodule(parent), leaf, nn.Identity())
        found = cls(body, torch.zeros(0))
        return replace(found, means=class_means(found.features(ready)[None], y[None], ways)[0])

    def features(self, ready: Tensor) -> Tensor:
        """(n, D) of (n, …) examples."""
        with torch.no_grad():
            return torch.cat([self.body(part).flatten(1).float() for part in ready.split(BATCH)])

    def nearness(self, ready: Tensor) -> Tensor:
        """(n,) minus the distance to the nearest class mean."""
        return -torch.cdist(self.features(ready), self.means).amin(-1)


@dataclass(frozen=True, eq=False)
class Predictor:
    """A start adapted to one task; a value: adding examples gives another.

    Args:
        start: what was adapted.
        x: (n, …) the support examples, as they are kept.
        y: (n,) their classes as places in ``classes``, or real targets.
        classes: labels, in order.
        steps: inner steps, where other than in training.
        adapted: the adapted model.
        looks: the features that unknown inputs are told by, where a linear head adapts.

    Example:
        >>> import headstart as hs
        >>> start = TrainedStart.load("characters")
        >>> glyphs = hs.data.load("glyphs").test
        >>> x = glyphs.stored(glyphs.starts[:3])  # one drawing each of three characters that it never saw
        >>> own = Predictor.of(start, x, ["first", "second", "third"])
        >>> [p.label for p in own.predict(glyphs.stored(glyphs.starts[:3] + 1))]
        ['first', 'second', 'third']
        >>> more = own.with_examples(x[:1], ["first"]).with_steps(0)
        >>> more.support_accuracy, more.probabilities(x).shape, more.without("second").classes
        (1.0, torch.Size([3, 3]), ('first', 'third'))
        >>> import tempfile
        >>> more.save(path := tempfile.mkdtemp() + "/own.safetensors")
        >>> Predictor.load(path).classes
        ('first', 'second', 'third')
    """

    start: TrainedStart
    x: Tensor
    y: Tensor
    classes: tuple[Any, ...]
    steps: int | None
    adapted: Adapted
    looks: Looks | None = None

    @classmethod
    def of(cls, start: TrainedStart, x: Tensor, labels: Sequence[Any], steps: int | None = None) -> Predictor:
        """Learns one task.

        Args:
            start: what is adapted.
            x: (n, …) examples as they are kept: bytes of pictures, vectors, rows.
            labels: the class of each, or its real target.
            steps: inner steps, if other than in training.

        Raises:
            TaskError: labels do not fit the examples, or there is one class only.
            DataError: examples are not such as the start takes.
            DivergenceError: adaptation ends in weights that are not finite.
        """
        if len(labels) != len(x) or not len(x):
            raise TaskError(f"{len(x)} examples with {len(labels)} labels; give each example one, and at least one example")
        y, classes = _targets(start, labels)
        return cls._adapted(start, x.clone(), y, classes, steps)

    @classmethod
    def _adapted(cls, start: TrainedStart, x: Tensor, y: Tensor, classes: tuple[Any, ...], steps: int | None) -> Predictor:
        ready = start.preprocessing.ready(x)
        adapted = start.learner.adapt(ready, y, steps)
        if not all(bool(torch.isfinite(v).all()) for v in adapted.w.values()):
            raise DivergenceError("adaptation diverged on these examples: take fewer steps, or train with a smaller lr")
        by_nearness = start.calibration is not None and start.calibration.by == "nearness"
        return cls(start, x, y, classes, steps, adapted, Looks.of(start.learner, adapted, ready, y, len(classes)) if by_nearness else None)

    def with_examples(self, x: Tensor, labels: Sequence[Any]) -> Predictor:
        """The predictor of all examples, the new ones too; labels that are not known yet are further classes."""
        old = self.y.tolist() if self.start.regression else [self.classes[i] for i in self.y.tolist()]
        return Predictor.of(self.start, torch.cat([self.x, x.to(self.x.dtype)]), [*old, *labels], self.steps)

    def without(self, label: Any) -> Predictor:
        """The predictor without a class.

        Raises:
            TaskError: there is no such class, or only one would be left.
        """
        if label not in self.classes or self.start.classes:
            raise TaskError(f"there is no class {label!r} to leave out; there are {', '.join(map(str, self.classes))}")
        kept = self.y != self.classes.index(label)
        return Predictor.of(self.start, self.x[kept], [self.classes[i] for i in self.y[kept].tolist()], self.steps)

    def probabilities(self, x: Tensor) -> Tensor:
        """(n, classes) calibrated probabilities of (n, …) examples as they are kept.

        Raises:
            TaskError: targets are real numbers.
        """
        if self.start.regression:
            raise TaskError("real targets have no probabilities; use predict()")
        return self._probabilities(self.start.preprocessing.ready(x))

    def _probabilities(self, ready: Tensor) -> Tensor:
        outputs = torch.cat([self.adapted.logits(part) for part in ready.split(BATCH)])
        reading, calibration = self.adapted.reading, self.start.calibration
        if calibration is None:
            found = reading.loss.probabilities(reading.possible(outputs), reading.kind, reading.class_dim)
        else:
            found = (as_logits(reading.possible(outputs), reading.loss) / calibration.temperature).softmax(reading.class_dim)
        return found[:, : len(self.classes)]

    def predict(self, x: Tensor, unknown: bool = True) -> list[Prediction]:
        """What each example is.

        Args:
            x: (n, …) examples as they are kept.
            unknown: whether an example that scores below the calibration's threshold gets the label None.
        """
        if not len(x):
            return []
        if self.start.regression:
            values = torch.cat([self.adapted.predict(part) for part in self.start.preprocessing.ready(x).split(BATCH)])
            return [Prediction(value, {}) for value in values.reshape(len(x), -1).squeeze(-1).tolist()]
        ready, calibration = self.start.preprocessing.ready(x), self.start.calibration
        found = self._probabilities(ready)
        scores = found.amax(-1) if self.looks is None else torch.cat([self.looks.nearness(part) for part in ready.split(BATCH)])
        least = -torch.inf if calibration is None or calibration.threshold is None or not unknown else calibration.threshold
        rows = []
        for row, score in zip(found.tolist(), scores.tolist(), strict=True):
            order = sorted(range(len(row)), key=row.__getitem__, reverse=True)
            label = self.classes[order[0]] if score >= least else None
            rows.append(Prediction(label, {self.classes[i]: row[i] for i in order}, None if calibration is None else score))
        return rows

    @property
    def support_accuracy(self) -> float | None:
        """The share of its own support examples that it gets right; None for real targets."""
        if self.start.regression:
            return None
        right = self.probabilities(self.x).argmax(-1) == self.y
        return float(right.double().mean())

    def save(self, path: str | Path) -> None:
        """Writes the start, the support examples and the classes into one file of tensors and JSON.

        Raises:
            CheckpointError: the file cannot be written.
        """
        header = {**self.start.header(), "labels": list(self.classes), "steps": self.steps}
        container.write(path, PREDICTOR, header, {**tensors_of(self.start.learner), "support/x": self.x, "support/y": self.y})

    @classmethod
    def load(cls, path: str | Path, trust: Collection[str] = ()) -> Predictor:
        """Reads what :meth:`save` wrote.

        Raises:
            CheckpointError: the file is missing, damaged, of a later version, or names something that is not trusted.
        """
        header, tensors = container.read(path, PREDICTOR)
        with container.understood(path):
            x, y = tensors.pop("support/x"), tensors.pop("support/y")
            start = TrainedStart.read(str(path), header, tensors, trust)
            return cls._adapted(start, x, y, tuple(header["labels"]), header["steps"])

    def with_steps(self, steps: int | None) -> Predictor:
        """The same task, learned in another number of inner steps."""
        return Predictor._adapted(self.start, self.x, self.y, self.classes, steps)


def _targets(start: TrainedStart, labels: Sequence[Any]) -> tuple[Tensor, tuple[Any, ...]]:
    if start.regression:
        try:
            return torch.tensor([float(v) for v in labels]), ()
        except (TypeError, ValueError) as error:
            raise DataError(f"a target is no number ({error}); this start predicts numbers") from error
    if start.classes:  # outputs mean the same in every task
        by_text = {str(c): i for i, c in enumerate(start.classes)}
        wrong = [v for v in labels if _text(v) not in by_text]
        if wrong:
            raise DataError(f"{wrong[0]!r} is none of the labels that this start tells apart: {', '.join(by_text)}")
        return torch.tensor([by_text[_text(v)] for v in labels]), tuple(start.classes)
    classes = tuple(dict.fromkeys(labels))
    if len(classes) < 2:
        raise TaskError(f"there is one class only, {classes[0]!r}; give examples of two or more")
    place = {c: i for i, c in enumerate(classes)}
    return torch.tensor([place[v] for v in labels]), classes


def _text(value: Any) -> str:
    """A label as text; 1.0 is the label 1."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
