"""What a plan is to weigh, and for how much training."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from headstart.errors import ConfigError, refuses
from headstart.ranks import ALONE, Ranks


@dataclass(frozen=True)
class PlanConfig:
    """What a plan is to weigh.

    Args:
        adapt: choices of what adapts.
        steps: numbers of inner steps N.
        l2: values of λ for a linear head; None for 0 and a hundredth of its largest eigenvalue. Other partitions take 0.
        seconds: the training time that the plan is for. Planning takes about as long again with pilots, and at most 1.25 times that.
        pilot: train the finalists by successive halving, and rank them by what they reach; without, rank by local measurements, which can
            mislead.

    Raises:
        ConfigError: a value cannot work.

    Example:
        >>> PlanConfig(adapt=["head", "*.bias"], steps=[1, 5], seconds=60).pilot
        True
    """

    adapt: Sequence[str] = ("head", "last:2", "all")
    steps: Sequence[int] = (1, 3, 5, 10)
    l2: Sequence[float] | None = None
    seconds: float = 600.0
    pilot: bool = True

    @refuses
    def __post_init__(self) -> None:
        if not self.adapt or not self.steps or min(self.steps) < 1:
            raise ConfigError(f"adapt={self.adapt!r}, steps={self.steps!r}: give at least one of each, and inner steps of 1 or more")
        if not (math.isfinite(self.seconds) and self.seconds >= 1):
            raise ConfigError(f"budget={self.seconds!r}: it must be at least one second; write 90s, 10m or 1h")


def seconds_of(text: str) -> float:
    """A duration in seconds.

    Raises:
        ConfigError: it is not one.

    Example:
        >>> seconds_of("10m"), seconds_of("90s"), seconds_of("1.5h"), seconds_of("30")
        (600.0, 90.0, 5400.0, 30.0)
    """
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    try:
        return float(text[:-1]) * unit if unit else float(text)
    except ValueError as error:
        raise ConfigError(f"budget={text!r}: write a duration such as 90s, 10m or 1h") from error


@dataclass(frozen=True)
class Clock:
    """The time that planning may take.

    Args:
        limit: seconds.
        begin: when it began, by :func:`time.monotonic`.
        ranks: who plans together.
    """

    limit: float
    begin: float = field(default_factory=time.monotonic)
    ranks: Ranks = ALONE

    @property
    def spent(self) -> float:
        """Seconds so far, by the first rank's clock, so that all decide the same."""
        return self.ranks.first(lambda: time.monotonic() - self.begin)

    @property
    def left(self) -> float:
        """Seconds that remain, 0 at least."""
        return max(0.0, self.limit - self.spent)
