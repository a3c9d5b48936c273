"""What every hypergradient takes and returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from headstart.inner.problem import InnerProblem, cotangents
from headstart.types import Params


@dataclass
class HyperResult:
    """The derivative of the tasks' query losses, summed over the tasks of a problem.

    Args:
        start: into w_0 of each task, (T, …): Proposition 1's ∂/∂w.
        shared: into ``problem.shared``: Proposition 1's ∂/∂φ.
        theta: into the solver's learned parameters.
        losses: (T,) the objective of each task.
        logits: (T, Q, C) query logits after the last step.
        info: what the method reports about itself, such as a residual.
    """

    start: Params
    shared: Params
    theta: Params
    losses: Tensor
    logits: Tensor
    info: dict[str, Any] = field(default_factory=dict)


class Hypergradient(Protocol):
    """A way to differentiate through the inner loop."""

    def __call__(self, problem: InnerProblem, inner: Any) -> HyperResult: ...


def by_autograd(problem: InnerProblem, objective: Tensor, logits: Tensor) -> HyperResult:
    """The result when the (T,) objective is a graph over the problem's leaves."""
    groups = (problem.start, problem.shared, problem.theta)
    grads = iter(cotangents([objective.sum()], [v for group in groups for v in group.values()]))
    start, shared, theta = ({k: next(grads) for k in group} for group in groups)
    return HyperResult(start, shared, theta, objective.detach(), logits.detach())


def step_weights(problem: InnerProblem, steps: int) -> list[float]:
    """The weight of the query loss after 0 … N steps: all on the last unless the problem says otherwise."""
    if problem.step_weights is None:
        return [0.0] * steps + [1.0]
    return [float(v) for v in torch.as_tensor(problem.step_weights)]
