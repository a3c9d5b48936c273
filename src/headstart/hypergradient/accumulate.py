"""The chain rule around Proposition 1: from w_0 and recorded rows of groups of tasks back to the model's parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from headstart.hypergradient.base import HyperResult
from headstart.inner.problem import SUPPORT, InnerProblem, cotangents
from headstart.replay import Record
from headstart.types import Params, ParamsLike


class Accumulator:
    """Sums what the hypergradients of groups of tasks return.

    Args:
        w, phi: the model's own parameters, with the graph of the record behind φ.
        theta: the inner solver's learned parameters.
        record: what the tasks' rows were taken from.
    """

    def __init__(self, w: ParamsLike, phi: ParamsLike, theta: ParamsLike, record: Record) -> None:
        zeros = lambda tensors: {k: torch.zeros_like(v) for k, v in tensors.items()}  # noqa: E731
        self.phi, self.record = phi, record
        self.parameters: Params = zeros({**w, **phi})
        self.theta = zeros(theta)
        self.rows = zeros({k: v for k, v in record.rows.items() if v.requires_grad})
        self.constants = zeros({k: v for k, v in record.constants.items() if v.requires_grad})

    def add(self, problem: InnerProblem, w: Params, w_0: Params, result: HyperResult) -> None:
        """Adds one group of tasks, whose w_0 is a function of w and, where the start is made of them, of support rows."""
        rows = {k: v for k, v in problem.shared.items() if k.startswith(SUPPORT)}
        back = cotangents(list(w_0.values()), [*w.values(), *rows.values()], list(result.start.values()))
        for k, v in zip(w, back, strict=False):
            self.parameters[k] += v
        through_start = dict(zip(rows, back[len(w) :], strict=True))
        for key, u in result.shared.items():
            kind, _, name = key.partition(":")
            if kind == "phi":
                self.parameters[name] += u
            elif kind == "constant":
                self.constants[name] += u
            else:
                index = problem.tasks.support.index if kind == SUPPORT else problem.tasks.query.index
                u = u + through_start[key] if key in through_start else u
                self.rows[name].index_add_(0, index.reshape(-1), u.flatten(0, 1).to(self.rows[name].dtype))
        for key, u in result.theta.items():
            self.theta[key] += u

    def mean(self, tasks: int) -> Params:
        """The gradients of the mean over all tasks; one backward through the record carries ∂/∂φ to the parameters."""
        outputs: list[Tensor] = [*(self.record.rows[k] for k in self.rows), *(self.record.constants[k] for k in self.constants)]
        back = cotangents(outputs, list(self.phi.values()), [*self.rows.values(), *self.constants.values()])
        for name, g in zip(self.phi, back, strict=True):
            self.parameters[name] += g
        every = {**self.parameters, **{f"inner.{k}": v for k, v in self.theta.items()}}
        return {k: g / tasks for k, g in every.items()}
