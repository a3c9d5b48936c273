"""The one door from the rooms of the theory to what a learner keeps to itself: its inner problems, their heads, and how parts count.

Everything else in measuring and planning is written against these functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from headstart.errors import ConfigError
from headstart.hypergradient.base import Hypergradient
from headstart.hypergradient.first_order import FirstOrder
from headstart.hypergradient.implicit import Implicit
from headstart.inner.linear_head import Head
from headstart.inner.problem import SUPPORT, InnerProblem, leaves
from headstart.inner.ridge import Ridge
from headstart.learner import MetaLearner
from headstart.losses import Loss, cross_entropy, squared_error
from headstart.running import twice_differentiable
from headstart.tasks import TaskBatch, Tasks
from headstart.theory.oracle_counts import OracleCounts
from headstart.types import Params

# -- parts -----------------------------------------------------------------------------------------------------------------


def closed_form(learner: MetaLearner) -> bool:
    """Whether the inner solver has no steps, and so no path."""
    return isinstance(learner.inner, Ridge)


def oracle_counts(learner: MetaLearner, tasks: TaskBatch, iterations: int | None = None) -> OracleCounts:
    """The calls of a meta-gradient for one task, as its hypergradient counts them.

    Args:
        learner: any learner.
        tasks: tasks like those to come, which the default hypergradient is chosen for.
        iterations: of a linear solver, where the hypergradient has one.

    Raises:
        ConfigError: the iterations are missing.
    """
    method: Hypergradient = learner.chosen_hypergradient(tasks)
    steps = learner.inner.steps
    if isinstance(method, Implicit):
        if iterations is None:
            raise ConfigError('Implicit() iterates until it has converged: give iterations=stats.info["iterations"] of a meta-gradient')
        return OracleCounts.implicit(steps, iterations, checks=1 if method.stationary is None else 2)
    if closed_form(learner):
        return OracleCounts.closed_form()
    return OracleCounts.first_order(steps) if isinstance(method, FirstOrder) else OracleCounts.exact(steps)


def regularisation(learner: MetaLearner) -> float:
    """λ: what ``l2`` and ``prox`` add to every eigenvalue of the inner Hessian."""
    return float(getattr(learner.inner, "l2", 0.0) + getattr(learner.inner, "prox", 0.0))


def known_loss(loss: Loss) -> Literal["cross_entropy", "squared_error"] | None:
    """The name of a loss whose curvature is known, and convex in the logits; None for any other."""
    return "cross_entropy" if loss is cross_entropy else "squared_error" if loss is squared_error else None


# -- inner problems --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class OneTask:
    """The inner problem of one task, as what is measured needs it: L_S and L_D at weights of (1, …) each.

    Args:
        problem: the engine's, of this task alone.
        learner: whose it is.
    """

    problem: InnerProblem
    learner: MetaLearner

    @property
    def task(self) -> Tasks:
        """Its examples' weights, and its own."""
        return self.problem.tasks

    @property
    def known_loss(self) -> Literal["cross_entropy", "squared_error"] | None:
        """The name of its loss, where the curvature is known."""
        return known_loss(self.learner.loss)

    @property
    def start(self) -> Params:
        """w_0."""
        return {k: v.detach() for k, v in self.problem.start.items()}

    @property
    def head(self) -> Head | None:
        """The linear head with its features; None where something else adapts."""
        return None if self.problem.replay.head is None else Head.of(self.problem)

    def path(self) -> list[Params]:
        """w_0 … w_N, without graphs."""
        with torch.no_grad():
            iterates = self.learner.inner.iterates(self.problem, create_graph=False)  # type: ignore[union-attr]
            return [{k: v.detach() for k, v in w.items()} for w in iterates]

    def support_logits(self, w: Params) -> Tensor:
        """(1, S, …) logits of the support examples."""
        return self.problem.logits(w, SUPPORT)

    def mean_loss(self, logits: Tensor, side: str) -> Tensor:
        """The mean loss of a side by its examples' weights, without the regulariser; derivatives of L_D count by the task's weight."""
        return self.problem.mean_loss(logits, side)[0]

    def regulariser(self, w: Params) -> Tensor | None:
        """What the inner solver adds to L_S; None for nothing."""
        regulariser = self.learner.inner.regulariser
        return None if regulariser is None else regulariser(w, self.start)[0]

    def support_gradient(self, w: Params) -> Params:
        """∇_w L_S with its regulariser, in a graph."""
        return self.problem.support_gradient(w, create_graph=True)

    def output(self, params: Params, side: str) -> Tensor:
        """(1, n, …) logits of a side, from the whole model at all its trained parameters, without anything recorded."""
        x = self.problem.tasks.support_x if side == SUPPORT else self.problem.tasks.query_x
        return self.problem.replay.output(self.problem.replay.call(params, tree_map(lambda v: v[0], x)))[None]

    def twice(self) -> AbstractContextManager[Any]:
        """Runs the model with kernels that can be differentiated twice."""
        return twice_differentiable(self.problem.replay.model)


def inner_problems(learner: MetaLearner, tasks: TaskBatch) -> Iterator[OneTask]:
    """The inner problem of each task, one task at a time; the shared part runs once for all."""
    tasks = tasks.own_pool()
    embedded = learner._embedded(tasks)
    for one in tasks:
        w = leaves(learner.partition.split()[0])
        yield OneTask(learner._problem(embedded.replay, embedded.record, one, w, 0)[0], learner)


def is_head(learner: MetaLearner, tasks: TaskBatch) -> bool:
    """Whether what adapts is one linear layer at the end of the model, which makes many tasks from one pool cheap."""
    return learner._replay(tasks).head is not None


def query_losses(learner: MetaLearner, logits: Tensor, tasks: Tasks) -> Tensor:
    """(T,) query loss of every task, the weighted mean over its own examples, from the (T, Q, …) logits of a trajectory."""
    losses = learner.loss(logits, tasks.query_y)
    losses = losses.flatten(2).mean(2) if losses.dim() > 2 else losses
    return losses.mean(1) if tasks.query.weight is None else (losses * tasks.query.weight).sum(1)
