"""Adam in the inner loop: an update that is not linear in the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from headstart.errors import ConfigError, refuses
from headstart.inner.descent import Regularised
from headstart.inner.solver import SOLVERS
from headstart.types import Params, ParamsLike


@SOLVERS.register("adam")
@dataclass(frozen=True)
class Adam(Regularised):
    """N steps of Adam (Kingma and Ba, ICLR 2015, Algorithm 1), started afresh for every task.

    ``w ← w − α m̂ / √(v̂ + eps)``: eps stands under the root, so that the step has a derivative where a gradient is zero.

    Args:
        steps: N, 0 or more.
        lr: α, as in :class:`~headstart.GradientDescent`.
        l2: λ of the term (λ/2)‖w‖² in the inner loss.
        betas: decay of the first and the second moment, at least 0 and below 1.
        eps: above 0.

    Raises:
        ConfigError: a value is out of its range.

    Example:
        >>> Adam(steps=3, lr=0.05).linear_in_gradient
        False
        >>> Adam(steps=2, lr=0.1).rate(1, "w", {})
        0.1
    """

    scale_free: ClassVar[bool] = True
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    @refuses
    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "betas", tuple(self.betas))
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise ConfigError(f"betas={self.betas!r}: give two numbers of at least 0 and below 1")
        if not self.eps > 0:
            raise ConfigError(f"eps={self.eps!r}: it must be above 0")

    def init(self, w: Params) -> Params:
        """Zero moments."""
        return {f"{moment}.{k}": torch.zeros_like(v) for moment in ("first", "second") for k, v in w.items()}

    def update(self, m: int, w: Params, state: Params, gradient: Params, theta: ParamsLike) -> tuple[Params, Params]:
        """``(w_{m+1}, state_{m+1})`` from w_m, the moments and ∇_w L_S(w_m, φ)."""
        a, b = self.betas
        first = {k: a * state[f"first.{k}"] + (1 - a) * g for k, g in gradient.items()}
        second = {k: b * state[f"second.{k}"] + (1 - b) * g * g for k, g in gradient.items()}
        moved = {}
        for k in w:
            step = first[k] / (1 - a ** (m + 1)) / (second[k] / (1 - b ** (m + 1)) + self.eps).sqrt()
            moved[k] = w[k] - self.rate(m, k, theta) * step
        return moved, {**{f"first.{k}": v for k, v in first.items()}, **{f"second.{k}": v for k, v in second.items()}}
