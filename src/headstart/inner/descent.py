"""Gradient descent in the inner loop: Algorithm 1 of Ji et al. (2020), lines 5 to 7, with an optional L2 term and more."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from headstart.errors import ConfigError, MethodError, refuses
from headstart.inner import linear_head
from headstart.inner.head_rule import HeadRule
from headstart.inner.problem import InnerProblem, Regulariser
from headstart.inner.rates import Rates, check_names, check_rates, longer, rate_of
from headstart.inner.solver import SOLVERS, Solver, scaled
from headstart.types import Params, ParamsLike


@dataclass(frozen=True)
class Regularised(Solver):
    """Steps of a size α on a support loss with optional quadratic terms: what descent and Adam share."""

    lr: Rates = 0.1
    l2: float = 0.0

    @refuses
    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.lr, Sequence) and not isinstance(self.lr, str):
            object.__setattr__(self, "lr", tuple(self.lr))
        check_rates(self.lr, self.steps)
        for name in ("l2", "prox"):
            value = getattr(self, name, 0.0)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}={value!r}: the inner regularisation must be 0 or more and finite")

    def with_steps(self, steps: int | None) -> Self:
        """The same solver with another number of steps, for a test that takes more than training did."""
        return self if steps is None else replace(self, steps=steps, lr=longer(self.lr, steps))

    def parameters(self, w: ParamsLike) -> Params:
        """None; patterns of step sizes must fit the names."""
        check_names(self.lr, w)
        return {}

    @property
    def regulariser(self) -> Regulariser | None:
        """(w, start) to the (T,) terms added to the support loss; part of the loss, so every Hessian contains them."""
        l2, prox = self.l2, getattr(self, "prox", 0.0)
        if not l2 and not prox:
            return None

        def terms(w: Params, start: Params) -> Tensor:
            pulls = [l2 * _square(w[k]) for k in w if l2] + [prox * _square(w[k] - start[k]) for k in w if prox]
            return 0.5 * torch.stack(pulls).sum(0)

        return terms

    def rate(self, m: int, name: str, theta: ParamsLike) -> float | Tensor:
        """α of step m for one parameter."""
        return rate_of(self.lr, m, name)


@SOLVERS.register("descent")
@dataclass(frozen=True)
class GradientDescent(Regularised):
    """N steps ``w ← w − α ∇_w L_S(w, φ)``, the loss being the mean over the support examples.

    Args:
        steps: N, 0 or more.
        lr: α, above 0; or one for each step, ``[0.4, 0.2, 0.1]``; or by patterns over parameter names, of which the first that
            matches counts, ``{"head.*": 0.1, "*": 0.01}``; or "auto", which :func:`~headstart.train` measures before it begins.
        l2: λ of the term (λ/2)‖w‖² in the inner loss; above 0 it makes a linear head's inner loss strongly convex.
        momentum: β of heavy-ball momentum, 0 ≤ β < 1.
        prox: λ of the term (λ/2)‖w − w_0‖² (iMAML; Rajeswaran et al., NeurIPS 2019, equation 3).
        clip: the largest norm of a task's whole inner gradient; longer ones are scaled down to it. None for no limit.

    Raises:
        ConfigError: a value is out of its range.

    Example:
        >>> GradientDescent(steps=5, lr=0.1, l2=0.01)
        GradientDescent(steps=5, lr=0.1, l2=0.01, momentum=0.0, prox=0.0, clip=None)
        >>> GradientDescent(steps=2, lr=[0.4, 0.2]).rate(1, "w", {})
        0.2
    """

    momentum: float = 0.0
    prox: float = 0.0
    clip: float | None = None

    @refuses
    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum={self.momentum!r}: it must be at least 0 and below 1")
        if self.clip is not None and not (math.isfinite(self.clip) and self.clip > 0):
            raise ConfigError(f"clip={self.clip!r}: the largest norm of an inner gradient must be above 0 and finite, or None")

    @property
    def linear_in_gradient(self) -> bool:
        """Unless it is clipped."""
        return self.clip is None

    def init(self, w: Params) -> Params:
        """The velocity, where there is momentum."""
        return {k: torch.zeros_like(v) for k, v in w.items()} if self.momentum else {}

    def update(self, m: int, w: Params, state: Params, gradient: Params, theta: ParamsLike) -> tuple[Params, Params]:
        """``(w_{m+1}, state_{m+1})`` from w_m, the state and ∇_w L_S(w_m, φ)."""
        if self.clip is not None:
            gradient = scaled(gradient, self.clip)
        if state:
            state = {k: self.momentum * state[k] + gradient[k] for k in w}
            gradient = state
        return {k: w[k] - self.rate(m, k, theta) * gradient[k] for k in w}, state

    def sample_space_refusal(self, problem: InnerProblem) -> str:
        """Why the sample space does not apply, or "": plain descent on a linear head, by one step size for all of it."""
        names = problem.head_names
        if not names:
            return "the adapted parameters are not one linear layer that produces the model's output"
        if not self._plain:
            return f"{self!r} is more than plain gradient descent"
        if isinstance(self.lr, Mapping) and len({tuple(rate_of(self.lr, m, n) for m in range(self.steps)) for n in names}) > 1:
            return f"{self!r} has different step sizes for the weight and the bias"
        if problem.loss.residual is None:
            return f"the derivative of the loss {problem.loss.name!r} in the logits is not known; give its Loss a residual"
        return ""

    def head_rule(self, names: Sequence[str], theta: ParamsLike) -> HeadRule:
        """Its λ and its one α.

        Raises:
            MethodError: it has momentum, a limit, a proximal term, or several step sizes.
        """
        if not self._plain:
            return super().head_rule(names, theta)
        rates = {rate_of(self.lr, m, n) for n in names for m in range(max(self.steps, 1))}
        if len(rates) > 1:
            raise MethodError(f"{self!r} has several step sizes")
        return HeadRule(self.l2, rates.pop())

    @property
    def _plain(self) -> bool:
        own = type(self).rate is Regularised.rate and type(self).update is GradientDescent.update
        return own and not self.momentum and not self.prox and self.clip is None

    def _rates(self, problem: InnerProblem) -> list[float]:
        return [rate_of(self.lr, m, problem.head_names[0]) for m in range(self.steps)]

    def sample_space(self, problem: InnerProblem) -> Iterator[Callable[[], Tensor]]:
        """For 0, 1, …, N steps a function that gives the (T, Q, C) query outputs."""
        return linear_head.query_outputs(problem, self._rates(problem), self.l2)

    def sample_space_weights(self, problem: InnerProblem) -> Params:
        """w_N of every task, by the model's names."""
        return linear_head.adapted_weights(problem, self._rates(problem), self.l2)


def _square(v: Tensor) -> Tensor:
    return v.flatten(1).square().sum(1) if v.dim() > 1 else v.square()
