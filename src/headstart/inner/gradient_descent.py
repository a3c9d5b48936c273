"""Gradient descent in the inner loop: Algorithm 1 of Ji et al. (2020), lines 5 to 7, with an optional L2 term and more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from headstart.counting import GRAD_W_SUPPORT
from headstart.errors import ConfigError
from headstart.inner.problem import InnerProblem, Regulariser, leaves
from headstart.types import Params, ParamsLike


@dataclass(frozen=True)
class GradientDescent:
    """N steps ``w ← w − α ∇_w L_S(w, φ)``, the loss being the mean over the support examples.

    Args:
        steps: N, 0 or more.
        lr: α, above 0.
        l2: λ of the term (λ/2)‖w‖² in the inner loss; above 0 it makes a linear head's inner loss strongly convex.
        momentum: β of heavy-ball momentum, 0 ≤ β < 1.
        prox: λ of the term (λ/2)‖w − w_0‖² (iMAML; Rajeswaran et al., NeurIPS 2019, equation 3).

    Raises:
        ConfigError: a value is out of its range.

    Example:
        >>> GradientDescent(steps=5, lr=0.1, l2=0.01)
        GradientDescent(steps=5, lr=0.1, l2=0.01, momentum=0.0, prox=0.0)
    """

    steps: int = 5
    lr: float = 0.1
    l2: float = 0.0
    momentum: float = 0.0
    prox: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 0:
            raise ConfigError(f"steps={self.steps!r}: the number of inner steps is a whole number, 0 or more; 5 is a usual choice")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"lr={self.lr!r}: the inner step size must be above 0 and finite; 0.01 to 0.5 is usual")
        for name in ("l2", "prox"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}={value!r}: the inner regularisation must be 0 or more and finite")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum={self.momentum!r}: it must be at least 0 and below 1")

    def with_steps(self, steps: int | None) -> Self:
        """The same solver with another number of steps, for a test that takes more than training did."""
        return self if steps is None else replace(self, steps=steps)

    def parameters(self, w: ParamsLike) -> Params:
        """Learned parameters of the solver itself: none here."""
        return {}

    @property
    def regulariser(self) -> Regulariser | None:
        """(w, start) to the (T,) terms added to the support loss; part of the loss, so every Hessian contains them."""
        if not self.l2 and not self.prox:
            return None

        def terms(w: Params, start: Params) -> Tensor:
            pulls = [self.l2 * _square(w[k]) for k in w if self.l2] + [self.prox * _square(w[k] - start[k]) for k in w if self.prox]
            return 0.5 * torch.stack(pulls).sum(0)

        return terms

    def initial_state(self, w: Params) -> Params:
        """The solver's state beside w: the velocity, where there is momentum."""
        return {k: torch.zeros_like(v) for k, v in w.items()} if self.momentum else {}

    def update(self, m: int, w: Params, state: Params, gradient: Params, theta: ParamsLike) -> tuple[Params, Params]:
        """``(w_{m+1}, state_{m+1})`` from w_m, the state and ∇_w L_S(w_m, φ)."""
        if state:
            state = {k: self.momentum * state[k] + gradient[k] for k in w}
            gradient = state
        return {k: w[k] - self.rate(m, k, theta) * gradient[k] for k in w}, state

    def rate(self, m: int, name: str, theta: ParamsLike) -> float | Tensor:
        """α of step m for one parameter."""
        return self.lr

    def iterates(self, problem: InnerProblem, create_graph: bool) -> Iterator[Params]:
        """w_0, w_1, …, w_N of every task.

        With ``create_graph`` they are functions of the start, of φ and of theta; without, the gradients in them are constants
        (H = 0 and C = 0 in Proposition 1).
        """
        w, state = problem.start, self.initial_state(problem.start)
        yield w
        for m in range(self.steps):
            gradient = problem.support_gradient(w if create_graph else leaves(w), create_graph)
            problem.note(GRAD_W_SUPPORT)
            if create_graph:
                gradient = dict(zip(gradient, problem.differentiated(list(gradient.values())), strict=True))
            w, state = self.update(m, w, state, gradient, problem.theta)
            yield w


def _square(v: Tensor) -> Tensor:
    return v.flatten(1).square().sum(1) if v.dim() > 1 else v.square()
