"""The errors that headstart raises: each says what was wrong, the value it saw, and what to do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any


class HeadstartError(Exception):
    """Base class of every error that headstart raises on purpose.

    Example:
        >>> import headstart as hs
        >>> try:
        ...     hs.GradientDescent(steps=-1)
        ... except hs.HeadstartError as error:
        ...     print(type(error).__name__, str(error).partition(":")[0])
        ConfigError steps=-1
    """


class ConfigError(HeadstartError):
    """A setting has a value that cannot work.

    Example:
        >>> import headstart as hs
        >>> try:
        ...     hs.TrainConfig(iterations=0)
        ... except hs.errors.ConfigError:
        ...     print("refused")
        refused
    """


class TaskError(HeadstartError):
    """Tasks have the wrong shapes, labels or values.

    Example:
        >>> import headstart as hs
        >>> import torch
        >>> x = torch.zeros(2, 4, 5)  # four examples in each task, and three labels
        >>> try:
        ...     hs.TaskBatch(x, torch.zeros(2, 3, dtype=torch.long), x, torch.zeros(2, 3, dtype=torch.long))
        ... except hs.errors.TaskError:
        ...     print("refused")
        refused
    """


class InputError(TaskError, ValueError):
    """Examples, labels or weights that an estimator cannot use; scikit-learn expects a ValueError of these.

    Example:
        >>> import headstart as hs
        >>> try:
        ...     hs.FewShotClassifier().fit([[0.0], [1.0]], [0, 1], sample_weight=[-1, 1])
        ... except hs.errors.InputError:
        ...     print("refused")
        refused
    """


class PartitionError(HeadstartError):
    """The choice of adapted parameters does not fit the model.

    Example:
        >>> import headstart as hs
        >>> try:
        ...     hs.Partition(hs.models.mlp(features=4, ways=2), adapt="*lora_*")
        ... except hs.errors.PartitionError:
        ...     print("refused")
        refused
    """


class MethodError(HeadstartError):
    """A hypergradient or inner solver does not apply to this problem.

    Example:
        >>> import headstart as hs
        >>> try:
        ...     hs.MetaLearner(hs.Partition(hs.models.mlp(features=4, ways=2)), hs.Ridge()).inner.iterates(None, True)
        ... except hs.errors.MethodError:
        ...     print("refused")
        refused
    """


class DataError(HeadstartError):
    """A data source is missing, damaged, or too small for what was asked.

    Example:
        >>> import headstart as hs
        >>> try:
        ...     hs.data.load("nothing-of-that-name")
        ... except hs.errors.DataError:
        ...     print("refused")
        refused
    """


class CheckpointError(HeadstartError):
    """A run folder or checkpoint cannot be read or written.

    Example:
        >>> import headstart as hs
        >>> try:
        ...     hs.load("nothing-of-that-name.safetensors")
        ... except hs.errors.CheckpointError:
        ...     print("refused")
        refused
    """


class DamagedError(CheckpointError):
    """A file is there, and does not hold what was written.

    Example:
        >>> import tempfile, pathlib
        >>> import headstart as hs
        >>> file = pathlib.Path(tempfile.mkdtemp(), "learner.safetensors")
        >>> _ = file.write_bytes(b"half of a file")
        >>> try:
        ...     hs.load(file)
        ... except hs.errors.DamagedError:
        ...     print("refused")
        refused
    """


class ExportError(HeadstartError):
    """A model cannot be written as an ONNX graph, or the graph gives other numbers.

    Example:
        >>> import headstart as hs
        >>> import torch
        >>> try:
        ...     hs.export_learner_onnx(hs.maml(hs.models.mlp(features=4, ways=2), lr=0.1), "maml.onnx", torch.zeros(4, 4))
        ... except hs.errors.ExportError:
        ...     print("refused")
        refused
    """


class DivergenceError(HeadstartError):
    """Training produced a loss or gradient that is not finite.

    Example:
        >>> import headstart as hs
        >>> learner = hs.maml(hs.models.mlp(features=1, ways=1), steps=5, lr=1e30, loss="squared_error")
        >>> try:
        ...     hs.train(learner, hs.data.load("sinusoid"), hs.TrainConfig(iterations=2), quiet=True)
        ... except hs.errors.DivergenceError:
        ...     print("refused")
        refused
    """


class CallbackError(HeadstartError):
    """A callback of a run failed; the run can be resumed from its last checkpoint.

    Example:
        >>> import headstart as hs
        >>> class Fails(hs.Callback):
        ...     def step(self, training):
        ...         return {"share": 1 / training.step}
        >>> learner = hs.maml(hs.models.mlp(features=1, ways=1), steps=1, lr=0.01, loss="squared_error")
        >>> try:
        ...     hs.train(learner, hs.data.load("sinusoid"), hs.TrainConfig(iterations=2), quiet=True, callbacks=[Fails()])
        ... except hs.errors.CallbackError as error:
        ...     print(error)
        callback 'Fails' failed in step() at step 0: ZeroDivisionError: division by zero.
    """


class RankError(HeadstartError):
    """Another of the processes that train together ended, cannot be reached, or differs from this one.

    Example:
        >>> import headstart as hs
        >>> issubclass(hs.errors.RankError, hs.HeadstartError)
        True
    """


def refuses(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """A decorator of a dataclass's ``__post_init__``: whatever it stumbles over is a setting of a type that it cannot take.

    Example:
        >>> import headstart as hs
        >>> hs.GradientDescent(l2="much")
        Traceback (most recent call last):
        headstart.errors.ConfigError: GradientDescent(l2='much') cannot be made: must be real number, not str; see its documentation
    """

    @functools.wraps(check)
    def refusing(self: Any) -> None:
        try:
            check(self)
        except HeadstartError:
            raise
        except Exception as error:
            given = ((f, getattr(self, f.name, None)) for f in fields(self))
            said = ", ".join(f"{f.name}={value!r}"[:80] for f, value in given if type(value) is not type(f.default) or value != f.default)
            raise ConfigError(f"{type(self).__name__}({said}) cannot be made: {error}; see its documentation") from error

    return refusing
