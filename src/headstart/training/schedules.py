"""How the meta-gradient is taken, as a function of the outer step: its order, and the weights of the query losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headstart.errors import ConfigError
from headstart.hypergradient import FirstOrder, Hypergradient
from headstart.learner import MetaLearner
from headstart.step_weights import as_step_weights, multi_step
from headstart.training.callback import Callback, Training
from headstart.training.config import DerivativeConfig


class Schedule(Callback):
    """Chooses by the outer step how the meta-gradient is taken; at the end of training the learner has its own way again.

    Args:
        hypergradient: from the number of outer steps taken to a hypergradient; None for the learner's own.
        step_weights: from the number of outer steps taken to the N + 1 weights of the query loss after 0 … N inner steps; None for the
            learner's own.

    Raises:
        ConfigError: the first hypergradient or weights do not fit the learner.

    Example:
        >>> import headstart as hs
        >>> first_order = hs.Schedule(hypergradient=lambda step: hs.FirstOrder() if step < 500 else None)
        >>> averaged = hs.Schedule(step_weights=hs.multi_step(steps=5, over=1000))
    """

    def __init__(
        self,
        *,
        hypergradient: Callable[[int], Hypergradient | None] | None = None,
        step_weights: Callable[[int], Sequence[float] | None] | None = None,
    ) -> None:
        self.hypergradient, self.step_weights = hypergradient, step_weights

    def begin(self, training: Training) -> None:
        """Notes what is the learner's own."""
        learner = training.learner
        self.own = learner.hypergradient, learner.step_weights

    def before(self, training: Training) -> None:
        """Chooses for the next step."""
        learner, step = training.learner, training.step
        if self.hypergradient is not None:
            chosen = self.hypergradient(step)
            learner.use_hypergradient(self.own[0] if chosen is None else chosen)
        if self.step_weights is not None:
            weights = self.step_weights(step)
            learner.step_weights = self.own[1] if weights is None else as_step_weights(weights, learner.inner.steps)

    def end(self, training: Training) -> None:
        """Gives back what is the learner's own."""
        training.learner.hypergradient, training.learner.step_weights = self.own


def schedules_of(config: DerivativeConfig, learner: MetaLearner) -> list[Callback]:
    """The schedules that settings describe.

    Raises:
        ConfigError: the learner has no inner steps that a loss could be taken after.
    """
    found: list[Callback] = []
    if config.first_order_for:
        found.append(Schedule(hypergradient=lambda step: FirstOrder() if step < config.first_order_for else None))
    if config.multi_step_for:
        if learner.inner.closed_form or learner.inner.steps < 1:
            raise ConfigError(f"multi_step_for={config.multi_step_for}: {learner.inner!r} takes no inner steps; leave it out")
        found.append(Schedule(step_weights=multi_step(learner.inner.steps, config.multi_step_for)))
    return found
