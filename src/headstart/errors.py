"""The errors that headstart raises: each says what was wrong, the value it saw, and what to do."""

from __future__ import annotations


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
