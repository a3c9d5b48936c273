"""The one door from the rooms of the theory to what a learner keeps to itself: its inner problems, their heads, and how parts count.

Everything else in measuring and planning is written against these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor

from headstart.inner.linear_head import LinearHead
from headstart.inner.problem import QUERY, SUPPORT, InnerProblem
from headstart.learner import MetaLearner
from headstart.loss import Loss
from headstart.losses import cross_entropy, squared_error
from headstart.program.kernels import twice_differentiable
from headstart.program.run import apart, call
from headstart.tasks import TaskBatch, Tasks
from headstart.theory.oracle_counts import OracleCounts
from headstart.types import Params, Tree

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


def inner_problems(learner: MetaLearner, tasks: TaskBatch) -> Iterator[InnerProblem]:
    """The inner problem of each task, one task at a time; the shared part runs once for all."""
    yield from learner.problems(tasks.own_pool())


def iterates(learner: MetaLearner, problem: InnerProblem) -> list[Params]:
    """w_0 … w_N of a problem, without graphs."""
    with torch.no_grad():
        return [{k: v.detach() for k, v in w.items()} for w in learner.inner.iterates(problem, create_graph=False)]


def is_head(learner: MetaLearner, tasks: TaskBatch) -> bool:
    """Whether what adapts is one linear layer at the end of the model, which makes many tasks from one pool cheap."""
    return learner.program(tasks).head is not None


def head_of(problem: InnerProblem) -> LinearHead | None:
    """The linear head of a problem, or None where something else adapts."""
    return LinearHead.of(problem) if problem.head_names else None


def query_losses(learner: MetaLearner, logits: Tensor, tasks: Tasks) -> Tensor:
    """(T,) query loss of every task, the weighted mean over its own examples, from the (T, Q, …) logits of a trajectory."""
    return learner.loss.means(logits, tasks.query.y, tasks.query.weight, tasks.query.blank)


# -- the whole model -------------------------------------------------------------------------------------------------------


def whole_model(problem: InnerProblem) -> Callable[[Params, Tree], Tensor]:
    """The model as a function of all its trained parameters and (n, …) examples, without anything recorded, to the logits."""
    program = problem.program
    return lambda params, examples: program.output(call(program.model, params, apart(examples)))


def twice(problem: InnerProblem) -> AbstractContextManager[Any]:
    """Runs the model of a problem with kernels that can be differentiated twice."""
    return twice_differentiable(problem.program.model)


def examples_of(problem: InnerProblem) -> dict[str, Tree]:
    """The inputs of the one task of a problem, by side."""
    return {SUPPORT: problem.runner.inputs(True, 0), QUERY: problem.runner.inputs(False, 0)}
