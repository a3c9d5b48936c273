"""Last layers: a linear one, one that compares by angle, or one whose class vectors are decoded from short codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.errors import ConfigError

HEADS = ("linear", "cosine", "latent")
SCALE = 10.0
CODE = 16
"""Length of the codes of a latent head, where features are not shorter."""


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


class Latent(nn.Module):
    """Nearness to a vector for each class, which a shared decoder makes of a short code (after LEO: Rusu et al., ICLR 2019).

    Scores are negative squared distances up to ``‖z‖²``, which all classes have in common.
    ``code`` is what should adapt: a few numbers for each class instead of one for each feature. ``decode`` is shared.

    Args:
        features: D, length of a feature vector.
        ways: classes.
        size: K, length of a code; at most D.

    Raises:
        ConfigError: the size is not from 1 to D.

    Example:
        >>> head, z = Latent(features=4, ways=3, size=2), torch.randn(5, 4)
        >>> distances = torch.cdist(z, head.decode(head.code)).square()
        >>> torch.allclose(head.forward(z), z.square().sum(-1, keepdim=True) - distances, atol=1e-4), head.extra_repr()
        (True, 'size=2')
    """

    def __init__(self, features: int, ways: int, size: int) -> None:
        super().__init__()
        if not 1 <= size <= features:
            raise ConfigError(f"size={size!r}: a code has 1 to {features} numbers, as many as there are features")
        self.decode = nn.Linear(size, features, bias=False)
        nn.init.orthogonal_(self.decode.weight)
        self.code = nn.Parameter(torch.randn(ways, size))

    def forward(self, z: Tensor) -> Tensor:
        """(n, ways) scores of (n, D) features."""
        rows = self.decode(self.code)
        return 2 * F.linear(z, rows) - rows.square().sum(-1)

    def extra_repr(self) -> str:
        """The length of a code; a head may have any number of classes."""
        return f"size={self.code.shape[1]}"


def head_of(kind: str, features: int, ways: int) -> nn.Module:
    """The last layer of a kind.

    Raises:
        ConfigError: the kind is not known.
    """
    if kind not in HEADS:
        raise ConfigError(f"head={kind!r}: use one of {', '.join(HEADS)}")
    if kind == "latent":
        return Latent(features, ways, min(CODE, features))
    return nn.Linear(features, ways) if kind == "linear" else Cosine(features, ways)
