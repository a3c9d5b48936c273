"""The chain rule around Proposition 1: from w_0 and recorded rows of groups of tasks back to the model's parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headstart.hypergradient.base import HyperResult
from headstart.inner.leaves import cotangents
from headstart.inner.problem import InnerProblem
from headstart.program.run import Record
from headstart.types import Params, ParamsLike


class ChainRule:
    """Sums what the hypergradients of groups of tasks return, and carries it back.

    Args:
        w, phi: the model's own parameters, with the graph of the record behind φ.
        theta: the inner solver's learned parameters.
        record: what the tasks' rows were taken from.
    """

    def __init__(self, w: ParamsLike, phi: ParamsLike, theta: ParamsLike, record: Record) -> None:
        def zeros(tensors: Any) -> Any:
            return {k: torch.zeros_like(v) for k, v in tensors.items() if v.requires_grad}

        self.w, self.phi, self.record = w, phi, record
        self.sums: dict[str, Any] = {"phi": zeros(phi), "constants": zeros(record.constants)}
        self.rows = zeros(record.rows)
        self.start, self.theta = zeros(w), zeros(theta)

    def add(self, problem: InnerProblem, w_0: Params, result: HyperResult) -> None:
        """Adds one group of tasks, whose w_0 is a function of w and, where the start is made of them, of recorded rows."""
        shared = problem.shared
        back = cotangents(list(w_0.values()), [*self.w.values(), *shared.tensors()], list(result.start.values()))
        for k, v in zip(self.w, back, strict=False):
            self.start[k] += v
        through_start = back[len(self.w) :]
        sides = {"support": problem.tasks.support.index, "query": problem.tasks.query.index}
        for place, key, u in shared.placed([a + b for a, b in zip(result.shared, through_start, strict=True)]):
            if place in sides:
                self._scatter(key, sides[place], u)
            else:
                self.sums[place][key] += u
        for name, u in result.theta.items():
            self.theta[name] += u

    def _scatter(self, key: Any, index: Tensor, u: Tensor) -> None:
        self.rows[key].index_add_(0, index.reshape(-1), u.flatten(0, 1).to(self.rows[key].dtype))

    def mean(self, tasks: int) -> Params:
        """The gradients of the mean over all tasks; one backward through the record carries ∂/∂φ to the parameters."""
        constants = self.sums["constants"]
        outputs: list[Tensor] = [*(self.record.rows[k] for k in self.rows), *(self.record.constants[k] for k in constants)]
        back = cotangents(outputs, list(self.phi.values()), [*self.rows.values(), *constants.values()])
        phi = {k: self.sums["phi"][k] + g for k, g in zip(self.phi, back, strict=True)}
        every = {**self.start, **phi, **{f"inner.{k}": v for k, v in self.theta.items()}}
        return {k: g / tasks for k, g in every.items()}
