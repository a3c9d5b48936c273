"""Exact meta-gradients by autograd through the inner iterates; memory grows with every inner step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headstart.hypergradient.base import HYPERGRADIENTS, Hypergradient, HyperResult, by_autograd
from headstart.inner.problem import InnerProblem, step_weights
from headstart.inner.solver import Solver


@HYPERGRADIENTS.register("unrolled")
@dataclass(frozen=True)
class Unrolled(Hypergradient):
    """Differentiates through all N steps at once (MAML; Finn et al., ICML 2017).

    Exact, and the fastest exact way for few steps; :class:`~headstart.Recursive` gives the same numbers with memory that
    does not grow with N.

    Example:
        >>> import headstart as hs
        >>> x, y = torch.randn(4, 6, 4).double(), torch.randint(2, (4, 6))
        >>> tasks = hs.TaskBatch(x, y, x, y)
        >>> model = hs.models.mlp(features=4, ways=2, hidden=[8]).double()
        >>> one, _ = hs.maml(model, steps=3, lr=0.1, hypergradient=hs.Unrolled()).meta_gradient(tasks)
        >>> two, _ = hs.maml(model, steps=3, lr=0.1, hypergradient=hs.Recursive()).meta_gradient(tasks)
        >>> all(torch.allclose(one[k], two[k]) for k in one)
        True
    """

    def __call__(self, problem: InnerProblem, inner: Solver) -> HyperResult:
        """The meta-gradient of the tasks of a problem."""
        return through_iterates(problem, inner, create_graph=True)


def through_iterates(problem: InnerProblem, inner: Solver, create_graph: bool) -> HyperResult:
    """Autograd from the query losses back through the iterates, which with ``create_graph=False`` hold constant gradients."""
    with torch.enable_grad():
        terms = []
        weights = step_weights(problem, inner.steps)
        for weight, w in zip(weights, inner.iterates(problem, create_graph), strict=True):
            if weight:
                loss, outputs = problem.query_loss(w)
                terms.append(weight * loss)
        return by_autograd(problem, torch.stack(terms).sum(0), outputs)
