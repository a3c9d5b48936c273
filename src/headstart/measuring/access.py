"""The one door from the rooms of the theory to what a learner keeps to itself: its inner problems, their heads, and how parts count.

Everything else in measuring and planning is written against these functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from headstart.inner.linear_head import LinearHead
from headstart.inner.problem import SUPPORT, InnerProblem
from headstart.learner import MetaLearner
from headstart.loss import Loss
from headstart.losses import cross_entropy, squared_error
from headstart.program.kernels import twice_differentiable
from headstart.program.run import apart, call
from headstart.tasks import TaskBatch, Tasks
from headstart.theory.oracle_counts import OracleCounts
from headstart.types import Params

# -- parts -----------------------------------------------------------------------------------------------------------------


def closed_form(learner: MetaLearner) -> bool:
    """Whether the inner solver has no steps, and so no path."""
    return learner.inner.closed_form


def oracle_counts(learner: MetaLearner, tasks: TaskBatch, iterations: int | None = None) -> OracleCounts:
    """The calls of a meta-gradient for one task, as its hypergradient counts them.

    Args:
        learner: any learner.
        tasks: tasks like those to come, which the default hypergradient is chosen for.
        iterations: of a linear solver, where the hypergradient has one.

    Raises:
        ConfigError: the iterations are missing.
    """
    steps = 0 if learner.inner.closed_form else learner.inner.steps
    return learner.chosen_hypergradient(tasks).oracle_calls(steps, iterations)


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
    def head(self) -> LinearHead | None:
        """The linear head with its features; None where something else adapts."""
        return LinearHead.of(self.problem) if self.problem.head_names else None

    def path(self) -> list[Params]:
        """w_0 … w_N, without graphs."""
        iterates = self.learner.inner.iterates(self.problem, create_graph=False)
        return [{k: v.detach() for k, v in w.items()} for w in iterates]

    def support_logits(self, w: Params) -> Tensor:
        """(1, S, …) logits of the support examples."""
        return self.problem.outputs(w, SUPPORT)

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
        program = self.problem.program
        return program.output(call(program.model, params, apart(self.problem.runner.inputs(side == SUPPORT, 0))))[None]

    def twice(self) -> AbstractContextManager[Any]:
        """Runs the model with kernels that can be differentiated twice."""
        return twice_differentiable(self.problem.program.model)


def inner_problems(learner: MetaLearner, tasks: TaskBatch) -> Iterator[OneTask]:
    """The inner problem of each task, one task at a time; the shared part runs once for all."""
    for problem in learner.problems(tasks.own_pool()):
        yield OneTask(problem, learner)


def is_head(learner: MetaLearner, tasks: TaskBatch) -> bool:
    """Whether what adapts is one linear layer at the end of the model, which makes many tasks from one pool cheap."""
    return learner.program(tasks).head is not None


def query_losses(learner: MetaLearner, logits: Tensor, tasks: Tasks) -> Tensor:
    """(T,) query loss of every task, the weighted mean over its own examples, from the (T, Q, …) logits of a trajectory."""
    return learner.loss.means(logits, tasks.query.y, tasks.query.weight, tasks.query.blank)
