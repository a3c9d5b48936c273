"""The errors that headstart raises: each says what was wrong, the value it saw, and what to do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any


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


class DamagedError(CheckpointError):
    """A file is there, and does not hold what was written."""


class ExportError(HeadstartError):
    """A model cannot be written as an ONNX graph, or the graph gives other numbers."""


class DivergenceError(HeadstartError):
    """Training produced a loss or gradient that is not finite."""


class CallbackError(HeadstartError):
    """A callback of a run failed; the run can be resumed from its last checkpoint."""


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
