"""The inner step size: tried around the inverse of the largest eigenvalue of the inner Hessian, and judged by the query loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from headstart.errors import ConfigError
from headstart.learner import MetaLearner
from headstart.measuring.access import query_losses
from headstart.measuring.spectrum import inner_spectrum
from headstart.tasks import TaskBatch

RATES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Inner step sizes that are tried, over 1/L̂ at the start; the curvature of cross-entropy falls along the path, so some beyond 2/L̂ work."""


def curvature(learner: MetaLearner, tasks: TaskBatch) -> float:
    """L̂, the largest eigenvalue of the inner Hessian where the tasks start.

    Args:
        learner: without inner steps (N = 0) and without regularisation.
        tasks: a few tasks.

    Raises:
        ConfigError: it is zero.
    """
    with learner.in_use(tasks.examples):
        L = inner_spectrum(learner, tasks).L
    if not L > 0:
        raise ConfigError(
            "its inner Hessian is zero at the start, so no step size follows from it: give one, or adapt what the loss depends on"
        )
    return L


def best_rates(learner_with: Callable[[float], MetaLearner], tasks: TaskBatch, steps: Sequence[int], L: float) -> dict[int, float]:
    """For each number of inner steps the step size with the lowest query loss after so many, of those tried around 1/L.

    The loss is that of the outer loop: examples count by their weights within a task, and tasks by theirs.

    Args:
        learner_with: gives the learner with an inner step size.
        tasks: the tasks it is judged on.
        steps: numbers of inner steps N.
        L: the largest eigenvalue of the inner Hessian, with its regularisation.

    Returns:
        From N to α, to two digits; an N at which all of them diverge is not there.

    Example:
        >>> import torch, headstart as hs
        >>> model = hs.models.mlp(features=4, ways=2)
        >>> x, y = torch.randn(8, 6, 4), torch.randint(2, (8, 6))
        >>> found = best_rates(lambda lr: hs.anil(model, 3, lr), hs.TaskBatch(x, y, x, y), steps=(1, 3), L=2.0)
        >>> sorted(found), all(lr in (0.12, 0.25, 0.5, 1.0, 2.0) for lr in found.values())
        ([1, 3], True)
    """
    tried = losses_by_rate(learner_with, tasks, steps, around(L, learner_with(1.0), tasks))
    finite = {N: {lr: loss for lr, loss in own.items() if math.isfinite(loss)} for N, own in tried.items()}
    return {N: min(own, key=own.__getitem__) for N, own in finite.items() if own}


def around(L: float, learner: MetaLearner, tasks: TaskBatch) -> list[float]:
    """The step sizes that are tried for a largest eigenvalue.

    What is normalised by its support examples does not depend on the size of its weights, which grow as they adapt: there twice as far.
    """
    with learner.in_use(tasks.examples) as normalised:
        rates = RATES if normalised is None else (*RATES, 2 * RATES[-1])
    return [two_digits(rate / L) for rate in rates]


def losses_by_rate(
    learner_with: Callable[[float], MetaLearner], tasks: TaskBatch, steps: Sequence[int], rates: Sequence[float]
) -> dict[int, dict[float, float]]:
    """For each number of inner steps, the mean query loss after so many with each of some step sizes.

    Other arguments as for :func:`best_rates`.
    """
    found: dict[int, dict[float, float]] = {N: {} for N in steps}
    for lr in rates:
        learner = learner_with(lr)
        with learner.in_use(tasks.examples):
            by_step = learner.trajectory(tasks, max(steps))
        for N in steps:
            losses = query_losses(learner, by_step[N], tasks)
            found[N][lr] = float((losses if tasks.weight is None else tasks.weight * losses).mean())
    return found


def smaller(lr: float) -> Iterator[float]:
    """The step size, a quarter and a sixteenth of it: what to fall back to where some task diverges.

    Example:
        >>> list(smaller(0.4))
        [0.4, 0.1, 0.025]
    """
    return (two_digits(lr / divisor) for divisor in (1, 4, 16))


def two_digits(value: float) -> float:
    """A number to two significant digits."""
    return float(f"{value:.1e}")
