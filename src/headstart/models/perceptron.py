"""A multi-layer perceptron."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch  # noqa: F401  (for the example)
from torch import nn

from headstart.errors import ConfigError
from headstart.models.context import Context
from headstart.models.heads import head_of
from headstart.models.recipe import remembered


@remembered
def mlp(features: int, ways: int = 5, hidden: Sequence[int] = (40, 40), head: str = "linear", context: int = 0) -> nn.Sequential:
    """Linear layers with ReLUs between them.

    Args:
        features: length of an input vector.
        ways: outputs; 1 for the regression of one number.
        hidden: widths of the layers between.
        head: "linear"; "cosine" or "latent": :class:`~headstart.models.Cosine`, :class:`~headstart.models.Latent`, then called ``head``.
        context: so many context parameters, ``1.context``, steer what comes of the first layer (CAVIA); 0 for none.

    Example:
        >>> mlp(features=1, ways=1)(torch.zeros(3, 1)).shape
        torch.Size([3, 1])
    """
    widths = [features, *hidden, ways]
    if min(widths) < 1:
        raise ConfigError(f"features={features}, hidden={tuple(hidden)}, ways={ways}: every width must be at least 1")
    if context < 0:
        raise ConfigError(f"context={context}: give the number of context parameters, 0 for none")
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return _with_head(layers, head_of(head, widths[-2], ways), context)


def _with_head(layers: list[nn.Module], last: nn.Module, context: int = 0) -> nn.Sequential:
    """Layers in order; a head that is not linear has its name, so that a pattern finds it in any network."""
    layers = layers if not isinstance(last, nn.Linear) else [*layers, last]
    if context:
        first = layers[0] if layers else last
        layers = [*layers[:1], Context(first.out_features, context), *layers[1:]]  # type: ignore[arg-type]
    found = nn.Sequential(*layers)
    if not isinstance(last, nn.Linear):
        found.add_module("head", last)
    return found


@remembered
def projection(features: int, ways: int = 5, head: str = "linear") -> nn.Sequential:
    """A square linear layer that begins as the identity, and a linear head: for vectors that a pretrained network made.

    Untrained it is the head alone on the vectors as they are, so that what training gains over them shows.

    Args:
        features: length of an input vector.
        ways: outputs.
        head: "linear"; "cosine" or "latent": :class:`~headstart.models.Cosine`, :class:`~headstart.models.Latent`, then called ``head``.

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
    return _with_head([body], head_of(head, features, ways))
