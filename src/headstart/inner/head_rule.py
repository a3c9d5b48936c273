"""How a solver adapts a linear head, in plain numbers: for what adapts one without torch, such as an exported graph."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadRule:
    """Plain gradient descent on the mean loss, or a ridge regression on one-hot labels.

    Args:
        l2: λ.
        lr: α of every step; None for the ridge regression.
        scale: of the logits of the ridge regression.
    """

    l2: float
    lr: float | None = None
    scale: float = 1.0

    @property
    def descends(self) -> bool:
        """Whether it takes steps."""
        return self.lr is not None
