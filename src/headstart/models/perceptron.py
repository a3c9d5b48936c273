"""A multi-layer perceptron."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch  # noqa: F401  (for the example)
from torch import nn

from headstart.errors import ConfigError
from headstart.models.recipe import remembered


@remembered
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


@remembered
def projection(features: int, ways: int = 5) -> nn.Sequential:
    """A square linear layer that begins as the identity, and a linear head: for vectors that a pretrained network made.

    Untrained it is the head alone on the vectors as they are, so that what training gains over them shows.

    Args:
        features: length of an input vector.
        ways: outputs.

    Example:
        >>> x = torch.randn(3, 4)
        >>> torch.equal(projection(features=4, ways=2)[0](x), x)
        True
    """
    if features < 1 or ways < 1:
        raise ConfigError(f"features={features}, ways={ways}: every width must be at least 1")
    body = nn.Linear(features, features)
    nn.init.eye_(body.weight)
    nn.init.zeros_(body.bias)
    return nn.Sequential(body, nn.Linear(features, ways))
