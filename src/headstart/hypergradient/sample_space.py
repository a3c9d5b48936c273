"""Exact meta-gradients of a linear head, through its inner loop in sample space or its closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headstart.errors import MethodError
from headstart.hypergradient.base import HYPERGRADIENTS, Hypergradient, HyperResult, by_autograd
from headstart.inner.problem import QUERY, InnerProblem, step_weights
from headstart.inner.solver import Solver


@HYPERGRADIENTS.register("sample-space")
@dataclass(frozen=True)
class SampleSpace(Hypergradient):
    """Autograd through the inner loop of a linear head written in the span of the support features.

    The same numbers as :class:`~headstart.Unrolled` at a cost per step that does not depend on the feature dimension; the
    default where it applies: one adapted linear layer at the model's end, plain gradient descent with ``l2``, and a loss whose
    residual is known. Also differentiates the closed form of :class:`~headstart.Ridge`.

    Raises:
        MethodError: it does not apply; the message says why.

    Example:
        >>> import headstart as hs
        >>> x, y = torch.randn(4, 6, 4), torch.randint(2, (4, 6))
        >>> learner = hs.anil(hs.models.mlp(features=4, ways=2), steps=5, lr=0.1)
        >>> learner.chosen_hypergradient(hs.TaskBatch(x, y, x, y))  # the default where it applies
        SampleSpace()
        >>> SampleSpace().refusal(hs.Ridge())
        ''
    """

    def __call__(self, problem: InnerProblem, inner: Solver) -> HyperResult:
        """The meta-gradient of the tasks of a problem."""
        why = inner.sample_space_refusal(problem)
        if why:
            raise MethodError(f"SampleSpace() does not apply: {why}. Use Recursive() or Unrolled()")
        with torch.enable_grad():
            terms = []
            for weight, after in zip(step_weights(problem, inner.steps), inner.sample_space(problem), strict=True):
                if weight:  # as that of the last step always is
                    outputs = after()
                    terms.append(weight * problem.mean_loss(outputs, QUERY))
            return by_autograd(problem, torch.stack(terms).sum(0), outputs)

    def refusal(self, inner: Solver) -> str:
        """None: a closed form has a sample space too."""
        return ""
