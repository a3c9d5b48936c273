"""A multi-layer perceptron."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch  # noqa: F401  (for the example)
from torch import nn

from headstart.errors import ConfigError


def mlp(features: int, ways: int = 5, hidden: Sequence[int] = (40, 40)) -> nn.Sequential:
    """Linear layers with ReLUs between them.

    Args:
        features: length of an input vector.
        ways: outputs; 1 for the regression of one number.
        hidden: widths of the layers between.

    Example:
        >>> mlp(features=1, ways=1)(torch.zeros(3, 1)).shape
        torch.Size([3, 1])
    """
    widths = [features, *hidden, ways]
    if min(widths) < 1:
        raise ConfigError(f"features={features}, hidden={tuple(hidden)}, ways={ways}: every width must be at least 1")
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
