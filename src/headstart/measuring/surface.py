"""One task at a time: its inner path, and its losses as functions of all parameters of the model, (w, φ) in one flat vector.

The engine's own φ are recorded features and whatever runs per step; the constants of the theory are about the model's shared
parameters, so here the whole model runs. It does so in evaluation mode: with dropout and batch statistics off, L_S and L_D
are functions of (w, φ) alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from headstart.errors import MethodError
from headstart.inner.leaves import cotangents, leaves
from headstart.inner.problem import SUPPORT
from headstart.learner import MetaLearner
from headstart.measuring.access import OneTask, closed_form, inner_problems
from headstart.measuring.lanczos import Product
from headstart.program.modes import evaluating, undisturbed
from headstart.tasks import TaskBatch
from headstart.types import Params


@contextmanager
def at_rest(learner: MetaLearner, tasks: TaskBatch) -> Iterator[None]:
    """Evaluation mode, with buffers and random state restored afterwards."""
    with evaluating(learner.model), undisturbed(learner.model, tasks.examples):
        yield


def task_gradients(learner: MetaLearner, tasks: TaskBatch) -> Iterator[Params]:
    """The meta-gradient of each task alone, in evaluation mode, times the task's weight: their plain mean is the meta-gradient of all."""
    for task in tasks:
        one = task.own_pool()
        with at_rest(learner, one):
            grads, _ = learner.meta_gradient(one)
        yield grads


def inner_paths(learner: MetaLearner, tasks: TaskBatch) -> Iterator[tuple[OneTask, list[Params]]]:
    """The inner problem of each task, one at a time, and its iterates w_0 … w_N, (1, …) each.

    Raises:
        MethodError: the inner solver is a closed form, which has no path.
    """
    if closed_form(learner):
        kind = type(learner.inner).__name__
        raise MethodError(f"{kind}() is a closed form without inner steps, so there is no path to measure along; use GradientDescent()")
    for problem in inner_problems(learner, tasks):
        yield problem, problem.path()


class Surface:
    """L_S and L_D of one task, as functions of x = (w, φ): all trained parameters of the model, flat.

    Examples count by their weights, and the derivatives of L_D by the task's weight: as in the objective of the outer loop.

    Args:
        learner: any learner whose inner solver takes steps.
        problem: the inner problem of that task.

    Attributes:
        n_w, n_phi: the lengths of the two parts of x.
    """

    def __init__(self, learner: MetaLearner, problem: OneTask) -> None:
        self.problem = problem
        w, phi = learner.partition.split()
        self.own = {**w, **phi}
        self.sizes = [p.numel() for p in self.own.values()]
        self.adapted = tuple(w)
        self.n_w, self.n_phi = sum(p.numel() for p in w.values()), sum(p.numel() for p in phi.values())

    def point(self, w: Params) -> Tensor:
        """x at (1, …) adapted parameters of this task and the model's own φ."""
        parts = [w[n][0] if n in self.adapted else p for n, p in self.own.items()]
        return torch.cat([v.detach().reshape(-1) for v in parts])

    def loss(self, x: Tensor, side: str) -> Tensor:
        """L_S (with the inner regulariser) or L_D at x."""
        params = {n: v.view(p.shape).to(p.dtype) for (n, p), v in zip(self.own.items(), x.split(self.sizes), strict=True)}
        total = self.problem.mean_loss(self.problem.output(params, side), side)
        added = self.problem.regulariser({n: params[n][None] for n in self.adapted}) if side == SUPPORT else None
        return total if added is None else total + added

    def gradient(self, x: Tensor, side: str) -> Tensor:
        """∇L at x, in (w, φ)."""
        with self.problem.twice(), torch.enable_grad():
            x = x.detach().requires_grad_()
            return cotangents([self.loss(x, side)], [x])[0]

    def product(self, x: Tensor, side: str) -> Product:
        """v ↦ ∇²L(x) v in (w, φ) together: of a direction (v_w, 0) the parts are ``H v_w`` and ``C v_w``."""
        with self.problem.twice(), torch.enable_grad():
            x = x.detach().requires_grad_()
            gradient = torch.autograd.grad(self.loss(x, side), x, create_graph=True)[0]

        def of(v: Tensor) -> Tensor:
            with self.problem.twice():
                return cotangents([gradient], [x], [v.to(x)], retain_graph=True)[0]

        return of


def hessian_product(problem: OneTask, w: Params) -> tuple[Product, Tensor]:
    """v ↦ H v for flat v, with ``H = ∇²_w L_S(w, φ)`` of the one task of a problem, and a flat tensor like v."""
    w = leaves(w)
    gradient = problem.support_gradient(w)
    shapes, sizes = [v.shape for v in w.values()], [v.numel() for v in w.values()]

    def product(v: Tensor) -> Tensor:
        parts = [part.view(shape).to(own) for part, shape, own in zip(v.split(sizes), shapes, w.values(), strict=True)]
        found = cotangents(list(gradient.values()), list(w.values()), parts, retain_graph=True)
        return torch.cat([h.reshape(-1) for h in found])

    return product, torch.cat([v.detach().reshape(-1) for v in w.values()])
