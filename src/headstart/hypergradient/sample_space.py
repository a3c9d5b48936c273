"""Exact meta-gradients of a linear head, through its inner loop in sample space or its closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headstart.errors import MethodError
from headstart.hypergradient.base import HyperResult, by_autograd, step_weights
from headstart.inner.gradient_descent import GradientDescent
from headstart.inner.linear_head import query_logits, refusal
from headstart.inner.problem import QUERY, InnerProblem
from headstart.inner.ridge import Ridge


@dataclass(frozen=True)
class SampleSpace:
    """Autograd through the inner loop of a linear head written in the span of the support features.

    The same numbers as :class:`~headstart.Unrolled` at a cost per step that does not depend on the feature dimension; the
    default where it applies: one adapted linear layer at the model's end, plain gradient descent with ``l2``, cross-entropy
    or squared error. Also differentiates the closed form of :class:`~headstart.Ridge`.

    Raises:
        MethodError: it does not apply; the message says why.
    """

    def __call__(self, problem: InnerProblem, inner: GradientDescent | Ridge) -> HyperResult:
        """The meta-gradient of the tasks of a problem."""
        if not isinstance(inner, Ridge):
            why = refusal(inner, problem)
            if why:
                raise MethodError(f"SampleSpace() does not apply: {why}. Use Recursive() or Unrolled()")
        with torch.enable_grad():
            by_step = inner.query_logits(problem) if isinstance(inner, Ridge) else query_logits(inner, problem)
            terms = []
            for weight, logits in zip(step_weights(problem, inner.steps), by_step, strict=True):
                if weight:
                    terms.append(weight * problem.mean_loss(logits, QUERY))
            return by_autograd(problem, torch.stack(terms).sum(0), logits)
