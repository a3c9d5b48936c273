"""How a meta-gradient changes while training goes on: first order before second, all steps before the last (MAML++)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.errors import ConfigError, refuses
from headstart.hypergradient.first_order import FirstOrder
from headstart.learner import MetaLearner
from headstart.training.checks import at_least


@dataclass(frozen=True)
class AnnealingConfig:
    """Schedules of the meta-gradient (MAML++; Antoniou et al., ICLR 2019, sections 4.1 and 4.3)."""

    first_order: float = 0.0
    """share of the outer steps, at the beginning, whose meta-gradients are first order; 0 for none"""
    multi_step: float = 0.0
    """share of the outer steps, at the beginning, in which the query loss counts after every inner step: all alike at first, and by and by
    the last alone; 0 for none"""

    @refuses
    def __post_init__(self) -> None:
        at_least(self, 0, "first_order", "multi_step")
        for name in ("first_order", "multi_step"):
            if getattr(self, name) > 1:
                raise ConfigError(f"{name}={getattr(self, name)}: it is a share of the outer steps, from 0 to 1")

    def check(self, learner: MetaLearner) -> None:
        """Refuses a learner that cannot be trained by such schedules, before any work.

        Raises:
            ConfigError: it says why.

        Example:
            >>> import headstart as hs
            >>> hs.TrainConfig(first_order=0.5).check(hs.maml(hs.models.mlp(features=4, ways=2), lr=0.1))  # nothing to refuse
        """
        if not (self.first_order or self.multi_step):
            return
        if self.first_order and (why := FirstOrder().refusal(learner.inner)):
            raise ConfigError(f"first_order={self.first_order}: {why}")
        if self.multi_step and (learner.inner.closed_form or learner.inner.steps < 1):
            raise ConfigError(f"multi_step={self.multi_step}: {learner.inner!r} takes no steps whose query losses could count")

    def weights(self, steps: int, share: float) -> Tensor | None:
        """(N + 1,) weights of the query loss after 0 … N steps when a share of training is over; None for the learner's own.

        Each but the last falls from 1/N to 0 in a straight line, and the last takes what they leave.

        Example:
            >>> AnnealingConfig(multi_step=0.5).weights(4, 0.25).tolist()
            [0.0, 0.125, 0.125, 0.125, 0.625]
            >>> AnnealingConfig(multi_step=0.5).weights(4, 0.5) is None
            True
        """
        if share >= self.multi_step:
            return None
        weights = torch.full((steps + 1,), (1 - share / self.multi_step) / steps, dtype=torch.float64)
        weights[0], weights[-1] = 0.0, 1 - weights[1:-1].sum()
        return weights
