"""Last layers: a linear one, or one that compares by angle."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.errors import ConfigError

HEADS = ("linear", "cosine")
SCALE = 10.0


class Cosine(nn.Module):
    """Scores that are cosines between features and a vector for each class, times a learned scale (Gidaris and Komodakis, CVPR 2018).

    Sizes of features and of class vectors have no influence. ``weight`` is what should adapt; ``log_scale`` is better shared.

    Args:
        features: D, length of a feature vector.
        ways: classes.
        scale: the factor on cosines, above 0, from which the learned one starts; 10 as in Meta-Baseline (Chen et al., ICCV 2021).

    Raises:
        ConfigError: the scale is not above 0.

    Example:
        >>> head, z = Cosine(features=4, ways=3), torch.randn(2, 4)
        >>> torch.allclose(head.forward(z), head(7 * z), atol=1e-5), head.extra_repr()
        (True, 'features=4')
    """

    def __init__(self, features: int, ways: int, scale: float = SCALE) -> None:
        super().__init__()
        if not scale > 0:
            raise ConfigError(f"scale={scale!r}: the factor on cosines must be above 0; 10 is usual")
        self.weight = nn.Parameter(torch.randn(ways, features) / features**0.5)
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log())

    def forward(self, z: Tensor) -> Tensor:
        """(n, ways) scores of (n, D) features."""
        return self.log_scale.exp() * F.linear(F.normalize(z, dim=-1), F.normalize(self.weight, dim=-1))

    def extra_repr(self) -> str:
        """Its sizes, but for the number of classes, as a head may have any."""
        return f"features={self.weight.shape[1]}"


def head_of(kind: str, features: int, ways: int) -> nn.Module:
    """The last layer of a kind.

    Raises:
        ConfigError: the kind is not known.
    """
    if kind not in HEADS:
        raise ConfigError(f"head={kind!r}: use one of {', '.join(HEADS)}")
    return nn.Linear(features, ways) if kind == "linear" else Cosine(features, ways)
