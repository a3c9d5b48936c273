"""The errors that headstart raises: each says what was wrong, the value it saw, and what to do."""

from __future__ import annotations


class HeadstartError(Exception):
    """Base class of every error that headstart raises on purpose."""


class ConfigError(HeadstartError):
    """A setting has a value that cannot work."""


class TaskError(HeadstartError):
    """Tasks have the wrong shapes, labels or values."""


class InputError(TaskError, ValueError):
    """Examples, labels or weights that an estimator cannot use; scikit-learn expects a ValueError of these."""


class PartitionError(HeadstartError):
    """The choice of adapted parameters does not fit the model."""


class MethodError(HeadstartError):
    """A hypergradient or inner solver does not apply to this problem."""


class DataError(HeadstartError):
    """A data source is missing, damaged, or too small for what was asked."""


class CheckpointError(HeadstartError):
    """A run folder or checkpoint cannot be read or written."""


class ExportError(HeadstartError):
    """A model cannot be written as an ONNX graph, or the graph gives other numbers."""


class DivergenceError(HeadstartError):
    """Training produced a loss or gradient that is not finite."""


class RankError(HeadstartError):
    """Another of the processes that train together ended, cannot be reached, or differs from this one."""
