"""Reptile: the start moves to where adaptation ends."""

from __future__ import annotations

from dataclasses import dataclass

from headstart.errors import MethodError
from headstart.hypergradient.base import HYPERGRADIENTS, Hypergradient, HyperResult
from headstart.inner.problem import InnerProblem
from headstart.inner.solver import Solver
from headstart.theory.oracle_counts import OracleCounts


@HYPERGRADIENTS.register("reptile")
@dataclass(frozen=True)
class Reptile(Hypergradient):
    """``w_0 − w_N`` in place of ∂/∂w_0, so that a step of size ε moves the start by ``ε (w_N − w_0)`` (Nichol, Achiam and Schulman, 2018,
    arXiv 1803.02999, Algorithm 2).

    It is no derivative of the query loss, which is only reported: query examples play no part. The plain update takes the optimizer
    ``"sgd"``, whose step size is then ε; the paper's images took Adam in the inner loop.

    Raises:
        MethodError: something else is to be learned beside the start: shared parameters, or step sizes; or query losses are weighted.

    Example:
        >>> import torch, headstart as hs
        >>> learner = hs.reptile(hs.models.mlp(features=4, ways=2), steps=3, lr=0.1)
        >>> x, y = torch.randn(1, 6, 4), torch.randint(2, (1, 6))
        >>> gradient, adapted = learner.meta_gradient(hs.TaskBatch(x, y, x, y))[0], learner.adapt(x[0], y[0])
        >>> torch.allclose(learner.parameters()["0.bias"] - gradient["0.bias"], adapted.w["0.bias"], atol=1e-6)
        True
    """

    def __call__(self, problem: InnerProblem, inner: Solver) -> HyperResult:
        """The way back from where each task ended."""
        shared = problem.program.partition.shared
        if shared:
            raise MethodError(
                f"Reptile() moves the start of what adapts, and has nothing to say of the shared {shared[0]!r}; adapt everything,"
                ' adapt="all", freeze it by requires_grad=False, or use FirstOrder()'
            )
        if problem.theta:
            raise MethodError(f"{type(inner).__name__} learns parameters of its own, for which Reptile() has no gradient; use FirstOrder()")
        if problem.step_weights is not None:
            raise MethodError("Reptile() uses no query loss: leave step_weights out")
        *_, w = inner.iterates(problem, create_graph=False)
        w = {k: v.detach() for k, v in w.items()}
        loss, outputs = problem.query_loss(w)
        start = {k: v.detach() - w[k] for k, v in problem.start.items()}
        return HyperResult(start, [v.new_zeros(v.shape) for v in problem.shared.tensors()], {}, loss.detach(), outputs.detach())

    def oracle_calls(self, steps: int, iterations: int | None = None) -> OracleCounts:
        """The steps alone."""
        return OracleCounts.path_alone(steps)
