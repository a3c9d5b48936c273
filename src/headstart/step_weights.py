"""Weights of the query loss after 0 … N inner steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from headstart.errors import ConfigError


def as_step_weights(weights: Sequence[float] | Tensor | None, steps: int) -> Tensor | None:
    """(N + 1,) weights in float64; None, which puts all on the last step, stays None.

    Args:
        weights: of the query loss after 0, 1, …, N steps.
        steps: N.

    Raises:
        ConfigError: there are not N + 1 of them, one is not finite, or the last is 0.
    """
    if weights is None:
        return None
    try:
        found = torch.as_tensor(weights, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"step_weights={weights!r}: give {steps + 1} numbers, for 0 … N steps") from error
    if found.shape != (steps + 1,) or not found[-1] or not found.isfinite().all():
        raise ConfigError(
            f"step_weights={found.tolist()}: give {steps + 1} weights, for 0 … N steps; the last is not 0, or the last step would have"
            " no influence"
        )
    return found


def multi_step(steps: int, over: int) -> Callable[[int], list[float] | None]:
    """Weights by outer step: equal after each inner step at first, moving in a straight line to the last alone (MAML++, Antoniou et al.,
    ICLR 2019, section 4, multi-step loss).

    Args:
        steps: N, inner steps.
        over: outer steps after which all weight is on the last inner step.

    Returns:
        A function of the number of outer steps taken, to N + 1 weights of sum 1; None once they are on the last alone.

    Raises:
        ConfigError: one of them is below 1.

    Example:
        >>> weights = multi_step(2, over=4)
        >>> weights(0), weights(2), weights(4)
        ([0.0, 0.5, 0.5], [0.0, 0.25, 0.75], None)
    """
    if steps < 1 or over < 1:
        raise ConfigError(f"multi_step({steps}, over={over}): both are at least 1; without inner steps there is one query loss only")

    def weights(step: int) -> list[float] | None:
        if step >= over:
            return None
        early = (1 - step / over) / steps
        return [0.0, *[early] * (steps - 1), 1 - (steps - 1) * early]

    return weights
