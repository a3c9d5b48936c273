"""First-order meta-gradients: Proposition 1 with H = 0 and C = 0."""

from __future__ import annotations

from dataclasses import dataclass

from headstart.hypergradient.base import HYPERGRADIENTS, Hypergradient, HyperResult
from headstart.hypergradient.unrolled import through_iterates
from headstart.inner.problem import InnerProblem
from headstart.inner.solver import Solver
from headstart.theory.oracle_counts import OracleCounts


@HYPERGRADIENTS.register("first-order")
@dataclass(frozen=True)
class FirstOrder(Hypergradient):
    """``∂/∂w ≈ ∇_w L_D(w_N, φ)`` and ``∂/∂φ ≈ ∇_φ L_D(w_N, φ)``: cheap, biased (FOMAML; Finn et al., ICML 2017, section 5.2).

    Example:
        >>> import headstart as hs
        >>> learner = hs.anil(hs.models.mlp(features=4, ways=2), steps=5, lr=0.1, hypergradient=FirstOrder())
        >>> learner.hypergradient.oracle_calls(steps=5).hessian_products
        0
    """

    def __call__(self, problem: InnerProblem, inner: Solver) -> HyperResult:
        """The first-order meta-gradient of the tasks of a problem."""
        return through_iterates(problem, inner, create_graph=False)

    def oracle_calls(self, steps: int, iterations: int | None = None) -> OracleCounts:
        """No products."""
        return OracleCounts.first_order(steps)
