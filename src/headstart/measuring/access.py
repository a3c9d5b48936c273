"""The one door from the rooms of the theory to what a learner keeps to itself: its inner problems, their heads, and how parts count.

Everything else in measuring and planning is written against these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from headstart.errors import ConfigError
from headstart.hypergradient.base import Hypergradient
from headstart.hypergradient.first_order import FirstOrder
from headstart.hypergradient.implicit import Implicit
from headstart.inner.linear_head import Head
from headstart.inner.problem import QUERY, SUPPORT, InnerProblem, leaves
from headstart.inner.ridge import Ridge
from headstart.learner import MetaLearner
from headstart.losses import Loss, cross_entropy, squared_error
from headstart.running import twice_differentiable
from headstart.tasks import TaskBatch, Tasks
from headstart.theory.oracle_counts import OracleCounts
from headstart.types import Params, Tree

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


def inner_problems(learner: MetaLearner, tasks: TaskBatch) -> Iterator[InnerProblem]:
    """The inner problem of each task, one task at a time; the shared part runs once for all."""
    tasks = tasks.own_pool()
    embedded = learner._embedded(tasks)
    for one in tasks:
        yield learner._problem(embedded.replay, embedded.record, one, leaves(learner.partition.split()[0]), 0)[0]


def iterates(learner: MetaLearner, problem: InnerProblem) -> list[Params]:
    """w_0 … w_N of a problem, without graphs."""
    with torch.no_grad():
        return [{k: v.detach() for k, v in w.items()} for w in learner.inner.iterates(problem, create_graph=False)]  # type: ignore[union-attr]


def is_head(learner: MetaLearner, tasks: TaskBatch) -> bool:
    """Whether what adapts is one linear layer at the end of the model, which makes many tasks from one pool cheap."""
    return learner._replay(tasks).head is not None


def head_of(problem: InnerProblem) -> Head | None:
    """The linear head of a problem, or None where something else adapts."""
    return None if problem.replay.head is None else Head.of(problem)


def query_losses(learner: MetaLearner, logits: Tensor, tasks: Tasks) -> Tensor:
    """(T,) query loss of every task, the weighted mean over its own examples, from the (T, Q, …) logits of a trajectory."""
    losses = learner.loss(logits, tasks.query_y)
    losses = losses.flatten(2).mean(2) if losses.dim() > 2 else losses
    return losses.mean(1) if tasks.query.weight is None else (losses * tasks.query.weight).sum(1)


# -- the whole model -------------------------------------------------------------------------------------------------------


def whole_model(problem: InnerProblem) -> Callable[[Params, Tree], Tensor]:
    """The model as a function of all its trained parameters and (n, …) examples, without anything recorded, to the logits."""
    return lambda params, examples: problem.replay.output(problem.replay.call(params, examples))


def twice(problem: InnerProblem) -> AbstractContextManager[Any]:
    """Runs the model of a problem with kernels that can be differentiated twice."""
    return twice_differentiable(problem.replay.model)


def examples_of(problem: InnerProblem) -> dict[str, Tree]:
    """The inputs of the one task of a problem, by side."""
    sides = {SUPPORT: problem.tasks.support_x, QUERY: problem.tasks.query_x}
    return {side: tree_map(lambda v: v[0], x) for side, x in sides.items()}
