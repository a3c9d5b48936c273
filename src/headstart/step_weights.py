"""Weights of the query loss after 0 … N inner steps."""

from __future__ import annotations

from collections.abc import Sequence

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

    Example:
        >>> as_step_weights([0, 0.5, 0.5], steps=2)
        tensor([0.0000, 0.5000, 0.5000], dtype=torch.float64)
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
