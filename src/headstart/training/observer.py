"""Looks at a learner while it trains, outside the clock."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from headstart.learner import MetaLearner
from headstart.training.callback import Callback, Training


@dataclass(frozen=True)
class Observer(Callback):
    """What to look at, and when; what it finds goes into the run's history, and the time it takes counts as no training time.

    Looking must leave the learner's weights as they are. Running statistics of batch normalisation may change: training does not
    read them.

    Args:
        at: numbers of outer steps after which to look; 0 is before the first.
        look: gets the learner and the number of steps, and gives numbers that JSON can hold.

    Example:
        >>> Observer(at=(0, 10), look=lambda learner, step: {"inner steps": learner.inner.steps}).at
        (0, 10)
    """

    at: Collection[int]
    look: Callable[[MetaLearner, int], Mapping[str, Any]]

    def step(self, training: Training) -> Mapping[str, Any] | None:
        """What there is to see after so many steps."""
        return self.look(training.learner, training.step) if training.step in self.at else None
