"""A model that needs no meta-training: a linear head on features of whatever unit, for the examples of one task."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[Any]


class Scaled(nn.Module):
    """Flat features, centred, and scaled by one number, so that their sizes relative to one another stay.

    Args:
        mean: (D,) of the features.
        length: the number.
    """

    mean: Tensor
    length: Tensor

    def __init__(self, mean: Array, length: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("length", torch.tensor(length, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """(n, D) features of (n, …) examples."""
        return (x.flatten(1) - self.mean) / self.length


def untrained(x: Array, weight: Array, outputs: int) -> nn.Module:
    """A linear head, of zeros, on the support features scaled to a mean square length of 1, in double precision.

    With the bias's 1 the mean square length is 2, and the curvature of cross-entropy in the head is at most half of it, so that
    gradient descent with a step size of 1 descends.

    Args:
        x: (S, …) support examples.
        weight: (S,) their weights, above 0.
        outputs: of the head.

    Example:
        >>> x = 1000 * np.random.default_rng(0).normal(size=(20, 3))
        >>> z = untrained(x, np.ones(20), outputs=2)[0](torch.from_numpy(x))
        >>> round(float(z.square().sum(1).mean()), 6)
        1.0
    """
    flat = x.reshape(len(x), -1).astype(np.float64)
    mean, variance = moments(flat, weight)
    total = float(variance.sum())
    # Not drawn, so that no random number is used up.
    head = nn.utils.skip_init(nn.Linear, flat.shape[1], outputs, dtype=torch.float64)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(Scaled(mean, total**0.5 if total else 1.0), head)


def moments(values: Array, weight: Array) -> tuple[Array, Array]:
    """(k,) mean and variance of (n, k) weighted values; a variance that is rounding alone is 0."""
    mean = np.average(values, axis=0, weights=weight)
    variance = np.average((values - mean) ** 2, axis=0, weights=weight)
    return mean, np.where(variance > (1e-12 * mean) ** 2, variance, 0.0)
