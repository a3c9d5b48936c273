"""How the meta-gradient is taken, as a function of the outer step: its order, and the weights of the query losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from headstart.hypergradient import FirstOrder, Hypergradient
from headstart.step_weights import as_step_weights
from headstart.training.annealing import AnnealingConfig
from headstart.training.callback import Callback, Training


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
        >>> early = hs.Schedule(step_weights=lambda step: [0, 0.2, 0.2, 0.2, 0.2, 0.2] if step < 1000 else None)
    """

    def __init__(
        self,
        *,
        hypergradient: Callable[[int], Hypergradient | None] | None = None,
        step_weights: Callable[[int], Sequence[float] | Tensor | None] | None = None,
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


def annealing(config: AnnealingConfig, iterations: int, steps: int) -> list[Schedule]:
    """The schedule that a config stands for, of so many outer steps with N inner ones; none where it changes nothing.

    Example:
        >>> annealing(AnnealingConfig(), 100, 5)
        []
    """
    if not (config.first_order or config.multi_step):
        return []
    first_order = lambda step: FirstOrder() if step < config.first_order * iterations else None  # noqa: E731
    return [Schedule(hypergradient=first_order, step_weights=lambda step: config.weights(steps, step / iterations))]
