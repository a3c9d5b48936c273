"""What every hypergradient takes and returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from headstart.inner.leaves import cotangents
from headstart.inner.problem import InnerProblem
from headstart.inner.solver import Solver
from headstart.registry import Registry
from headstart.theory.oracle_counts import OracleCounts
from headstart.types import Params

HYPERGRADIENTS: Registry[Hypergradient] = Registry("hypergradient")


@dataclass
class HyperResult:
    """The derivative of the tasks' query losses, summed over the tasks of a problem.

    Args:
        start: into w_0 of each task, (T, …): Proposition 1's ∂/∂w.
        shared: into ``problem.shared.tensors()``, in their order: Proposition 1's ∂/∂φ.
        theta: into the solver's learned parameters.
        losses: (T,) the objective of each task.
        outputs: (T, Q, …) query outputs after the last step.
        info: what the method reports about itself, such as a residual.

    Example:
        >>> import torch
        >>> import headstart as hs
        >>> x, y = torch.randn(4, 6, 4), torch.randint(2, (4, 6))
        >>> learner = hs.anil(hs.models.mlp(features=4, ways=2), steps=3, lr=0.1)
        >>> problem = next(iter(learner.problems(hs.TaskBatch(x, y, x, y))))
        >>> hs.Unrolled()(problem, learner.inner).losses.shape  # of one task
        torch.Size([1])
    """

    start: Params
    shared: Sequence[Tensor]
    theta: Params
    losses: Tensor
    outputs: Tensor
    info: dict[str, Any] = field(default_factory=dict)


class Hypergradient:
    """A way to differentiate through the inner loop; a subclass is called with a problem and its solver.

    Example:
        >>> import headstart as hs
        >>> from dataclasses import replace
        >>> class Halved(Hypergradient):
        ...     def __call__(self, problem, inner):
        ...         found = hs.Unrolled()(problem, inner)
        ...         return replace(found, shared=[v / 2 for v in found.shared])
        >>> learner = hs.anil(hs.models.mlp(features=4, ways=2), steps=3, lr=0.1, hypergradient=Halved())
        >>> Halved().refusal(learner.inner), Halved().oracle_calls(steps=3).hessian_products
        ('', 3)
    """

    def __call__(self, problem: InnerProblem, inner: Solver) -> HyperResult:
        """The meta-gradient of the tasks of a problem."""
        raise NotImplementedError  # pragma: no cover

    def refusal(self, inner: Solver) -> str:
        """Why a solver cannot be differentiated in this way, or ""."""
        return f"{inner!r} is a closed form, which {self!r} cannot differentiate; leave hypergradient out" if inner.closed_form else ""

    def oracle_calls(self, steps: int, iterations: int | None = None) -> OracleCounts:
        """The oracle calls for one task with N steps; the exact ones make a product of each kind per step.

        Args:
            steps: N; 0 for a closed form.
            iterations: of a linear solver, for a method that has one.
        """
        return OracleCounts.exact(steps)


def refusal_of(hypergradient: Any, inner: Solver) -> str:
    """Why a solver cannot be differentiated by something, or ""."""
    if not isinstance(hypergradient, Hypergradient):
        return f"hypergradient={hypergradient!r} is none; use Unrolled(), or another subclass of headstart.Hypergradient"
    return hypergradient.refusal(inner)


def by_autograd(problem: InnerProblem, objective: Tensor, outputs: Tensor) -> HyperResult:
    """The result when the (T,) objective is a graph over the problem's leaves."""
    shared = problem.shared.tensors()
    found = iter(cotangents([objective.sum()], [*problem.start.values(), *shared, *problem.theta.values()]))
    start = {k: next(found) for k in problem.start}
    into_shared = [next(found) for _ in shared]
    return HyperResult(start, into_shared, {k: next(found) for k in problem.theta}, objective.detach(), outputs.detach())
