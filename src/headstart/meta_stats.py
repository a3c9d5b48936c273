"""What a meta-gradient was taken from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class MetaStats:
    """What a meta-gradient was taken from; numbers are fetched from the device when they are asked for.

    Args:
        losses: (T,) query loss of every task.
        mean_loss: () their mean, by the tasks' weights.
        answers: () right answers on query examples, and () how many there are; None, or none of none, for real targets.
        info: what the hypergradient reports about itself.

    Example:
        >>> import torch
        >>> import headstart as hs
        >>> x, y = torch.randn(4, 6, 4), torch.randint(2, (4, 6))
        >>> _, stats = hs.anil(hs.models.mlp(features=4, ways=2), lr=0.1).meta_gradient(hs.TaskBatch(x, y, x, y))
        >>> stats.losses.shape, stats.loss > 0, 0 <= stats.accuracy <= 1
        (torch.Size([4]), True, True)
    """

    losses: Tensor
    mean_loss: Tensor
    answers: tuple[Tensor, Tensor] | None = None
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Mean query loss over the tasks, after adaptation, by the tasks' weights."""
        return float(self.mean_loss)

    @property
    def accuracy(self) -> float | None:
        """Mean query accuracy after adaptation; None for real targets."""
        if self.answers is None or not (seen := float(self.answers[1])):
            return None
        return float(self.answers[0]) / seen
