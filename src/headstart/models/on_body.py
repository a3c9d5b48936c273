"""A network on the features of another, which stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from headstart.errors import ConfigError
from headstart.models.recipe import OURS, nested, remember


class OnFeatures(nn.Module):
    """A network on the standardised features of a body that stays as it is: what :func:`on_features` makes.

    Args:
        body: gives the features; frozen, and always in evaluation mode.
        top: takes (n, D) features.
        mean, std: of each feature; D numbers.

    Example:
        >>> whole = OnFeatures(nn.Flatten(), nn.Linear(2, 3), [1.0, 0.0], [1.0, 2.0])
        >>> whole.features(torch.tensor([[3.0, 4.0]])).tolist(), whole.train().body.training, whole.forward(torch.zeros(5, 2)).shape
        ([[2.0, 2.0]], False, torch.Size([5, 3]))
    """

    def __init__(self, body: nn.Module, top: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.body, self.top = body.requires_grad_(False).eval(), top
        for name, values in (("_mean", mean), ("_std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def train(self, mode: bool = True) -> OnFeatures:
        """Puts what is on top into training mode; the body stays in evaluation mode."""
        super().train(mode)
        self.body.eval()
        return self

    def features(self, x: Tensor) -> Tensor:
        """(n, D) standardised features of examples."""
        with torch.no_grad():
            found = self.body(x).flatten(1)
        return (found - self.get_buffer("_mean")) / self.get_buffer("_std")

    def forward(self, x: Tensor) -> Tensor:
        """What is on top makes of them."""
        return self.top(self.features(x))


def on_features(network: nn.Module, head: str, top: nn.Module, mean: Sequence[float], std: Sequence[float]) -> OnFeatures:
    """A network on the standardised features of another one, whose body is frozen: examples in, outputs out, as one module.

    Args:
        network: whose body is taken; a copy of it.
        head: the name of its last layer, which is left out; what goes into it are the D features.
        top: takes (n, D) features.
        mean, std: of each feature; D numbers.

    Raises:
        ConfigError: the network has no such layer, or mean and std are not of one length.

    Example:
        >>> from headstart.models import conv4, projection
        >>> conv = conv4(size=16, filters=4)
        >>> whole = on_features(conv, "head", projection(features=4, ways=3), [0.0] * 4, [1.0] * 4)
        >>> whole(torch.zeros(2, 3, 16, 16)).shape, [n for n, p in whole.named_parameters() if p.requires_grad][0]
        (torch.Size([2, 3]), 'top.0.weight')
    """
    if len(mean) != len(std):
        raise ConfigError(f"{len(mean)} means and {len(std)} standard deviations; give one of each for every feature")
    body = copy.deepcopy(network)
    try:
        body.get_submodule(head)
    except AttributeError as error:
        raise ConfigError(f"{type(network).__name__} has no layer {head!r} ({error}); give the name of its last layer") from error
    parent, _, leaf = head.rpartition(".")
    setattr(body.get_submodule(parent), leaf, nn.Identity())
    found = OnFeatures(body, top, mean, std)
    arguments = {"head": head, "mean": list(map(float, mean)), "std": list(map(float, std))}
    own = {name: nested(module) for name, module in (("network", network), ("top", top))}
    if all(own.values()):
        remember(found, OURS + on_features.__name__, {**own, **arguments})
    return found
