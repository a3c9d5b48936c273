"""Context parameters: a few numbers, zero at first, that adapt to a task and steer a network whose weights are shared (CAVIA)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Context(nn.Module):
    """Scales and shifts what passes by, channel by channel, as context parameters say (Zintgraf et al., ICML 2019, section 3.3; FiLM of
    Perez et al., AAAI 2018).

    With context c it is ``x ↦ (1 + W_1 c) x + W_2 c``, and nothing at c = 0. After a linear layer the shift is what c as more of its inputs
    would do.

    Args:
        channels: of x, its second dimension.
        size: how many context parameters.

    Example:
        >>> x = torch.randn(2, 3, 4, 4)
        >>> torch.equal(Context(channels=3, size=5).forward(x), x)
        True
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.steer = nn.Linear(size, 2 * channels, bias=False)
        self.context = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, …) as it was given."""
        scale, shift = self.steer(self.context).unflatten(0, (2, -1, *[1] * (x.dim() - 2)))
        return x + scale * x + shift
