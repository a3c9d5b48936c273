"""Inner step sizes: one number, one for each step, or one for each pattern over parameter names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from headstart.errors import ConfigError

AUTO = "auto"
Rates = float | str | Sequence[float] | Mapping[str, "float | Sequence[float]"]
"""α; or α of each step; or from patterns over the names of parameters to either, of which the first that matches counts; or ``"auto"``, to
be measured before training."""


UNDECIDED = (
    "lr='auto' is to be measured: train(…) does so, or learner.use_lr(measure_lr(learner, data.train).lr); or give a number, such as lr=0.1"
)


def check_rates(lr: Rates, steps: int) -> None:
    """Refuses step sizes that cannot work.

    Raises:
        ConfigError: one is not above 0 and finite, or there are fewer than steps.
    """
    if lr == AUTO:
        return
    if isinstance(lr, Mapping):
        if not lr:
            raise ConfigError('lr={}: give a step size for some pattern, such as {"head.*": 0.1, "*": 0.01}')
        for own in lr.values():
            check_rates(own, steps)
        return
    if isinstance(lr, Sequence) and not isinstance(lr, str):
        if len(lr) < max(steps, 1):
            raise ConfigError(f"lr={lr!r}: there are {len(lr)} step sizes for steps={steps}; give one for each step, or one number")
        for own in lr:
            check_rates(own, 0)
        return
    if not isinstance(lr, int | float) or isinstance(lr, bool) or not (math.isfinite(lr) and lr > 0):
        raise ConfigError(f"lr={lr!r}: the inner step size must be above 0 and finite; 0.01 to 0.5 is usual")


def rate_of(lr: Rates, m: int, name: str) -> float:
    """α of step m for one parameter; steps beyond those given take the last.

    Example:
        >>> rate_of({"head.*": (0.4, 0.2), "*": 0.01}, 1, "head.weight"), rate_of(0.1, 3, "body.weight")
        (0.2, 0.1)
    """
    if isinstance(lr, Mapping):
        lr = lr[pattern_of(lr, name)]
    if lr == AUTO:
        raise ConfigError(UNDECIDED)
    return float(lr[min(m, len(lr) - 1)]) if isinstance(lr, Sequence) else float(lr)


def pattern_of(lr: Mapping[str, object], name: str) -> str:
    """The first pattern that a name matches.

    Raises:
        ConfigError: there is none.
    """
    for pattern in lr:
        if fnmatchcase(name, pattern):
            return pattern
    raise ConfigError(f'lr={dict(lr)!r} has no step size for the parameter {name!r}; add a pattern for it, such as "*": 0.01')


def check_names(lr: Rates, names: Iterable[str]) -> None:
    """Refuses patterns that leave a parameter without a step size, or that match none.

    Raises:
        ConfigError: it says which.
    """
    if isinstance(lr, Mapping):
        used = {pattern_of(lr, name) for name in names}
        for pattern in lr:
            if pattern not in used and pattern != "*":
                raise ConfigError(
                    f"lr={dict(lr)!r}: the pattern {pattern!r} is the first match of no adapted parameter; correct or drop it"
                )


def longer(lr: Rates, steps: int) -> Rates:
    """Step sizes for more steps: the last one goes on."""
    if isinstance(lr, Mapping):
        return {k: longer(v, steps) for k, v in lr.items()}  # type: ignore[misc]
    return tuple(lr) + (lr[-1],) * (steps - len(lr)) if isinstance(lr, Sequence) and not isinstance(lr, str) else lr
