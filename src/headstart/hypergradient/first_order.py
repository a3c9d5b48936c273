"""First-order meta-gradients: Proposition 1 with H = 0 and C = 0."""

from __future__ import annotations

from dataclasses import dataclass

from headstart.hypergradient.base import HyperResult
from headstart.hypergradient.unrolled import through_iterates
from headstart.inner.gradient_descent import GradientDescent
from headstart.inner.problem import InnerProblem


@dataclass(frozen=True)
class FirstOrder:
    """``∂/∂w ≈ ∇_w L_D(w_N, φ)`` and ``∂/∂φ ≈ ∇_φ L_D(w_N, φ)``: cheap, biased (FOMAML; Finn et al., ICML 2017, section 5.2)."""

    def __call__(self, problem: InnerProblem, inner: GradientDescent) -> HyperResult:
        """The first-order meta-gradient of the tasks of a problem."""
        return through_iterates(problem, inner, create_graph=False)
