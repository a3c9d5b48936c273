"""Gradient descent on a linear head, computed in the space of the support examples: exact, at a cost that does not depend on D.

The steps ``W ← W − α(∇ mean loss + λW)`` never leave the span of the support features, so it is enough to follow the
coefficients A (S×C) of that span. With the kernel ``K_SS = Z_S Z_Sᵀ + 1`` (the 1 is the bias), ``γ = 1 − αλ`` and R(L) the
weighted derivative of the loss in the logits::

    A_0 = 0,  L_0 = Z_S W_0ᵀ + b_0
    A_{m+1} = γ A_m + R(L_m),   L_{m+1} = γ^{m+1} L_0 − α K_SS A_{m+1}
    query logits: γ^N (Z_Q W_0ᵀ + b_0) − α K_QS A_N,   weights: W_N = γ^N W_0 − α A_Nᵀ Z_S,   b_N = γ^N b_0 − α A_Nᵀ 1

Every step costs O(S²·C) instead of O(S·D·C), and the body runs forward and backward once whatever N is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from headstart.counting import GRAD_W_SUPPORT
from headstart.errors import MethodError
from headstart.inner.gradient_descent import GradientDescent
from headstart.inner.problem import QUERY, SUPPORT, InnerProblem


@dataclass(frozen=True)
class Head:
    """The linear head of T tasks: features, first weights, and the weight of each support example (summing to one)."""

    z_TSD: Tensor
    z_TQD: Tensor
    y_TS: Tensor
    weight_TCD: Tensor
    bias_TC: Tensor | None
    share: Tensor | float

    @classmethod
    def of(cls, problem: InnerProblem) -> Head:
        """The head of a problem whose replay found one.

        Raises:
            MethodError: it found none.
        """
        if problem.replay.head is None:
            raise MethodError('Ridge() needs one linear layer that produces the model\'s output: use adapt="head", and leave replay on')
        weight, bias = problem.replay.head_parameters(problem.start)
        z_TSD, z_TQD = problem.rows(SUPPORT)["features"], problem.rows(QUERY)["features"]
        share = problem.tasks.support.weight
        dtype = z_TSD.dtype if z_TSD.dtype.itemsize >= 4 else weight.new_zeros(()).float().dtype
        up = lambda v: v.to(dtype)  # noqa: E731  (half-precision features: the small solve is done in single precision)
        return cls(
            up(z_TSD),
            up(z_TQD),
            problem.tasks.support_y,
            up(weight),
            None if bias is None else up(bias),
            1 / z_TSD.shape[1] if share is None else up(share).unsqueeze(-1),
        )

    def logits(self, z: Tensor) -> Tensor:
        """Logits of features (T, n, D) under the first weights."""
        product = z @ self.weight_TCD.mT
        return product if self.bias_TC is None else product + self.bias_TC.unsqueeze(-2)

    def kernel(self, z: Tensor) -> Tensor:
        """(T, n, S) inner products with the support features, plus one for the bias."""
        product = z @ self.z_TSD.mT
        return product if self.bias_TC is None else product + 1

    def weights(self, decay: float, coefficients: Tensor) -> list[Tensor]:
        """``decay·(W_0, b_0) − Aᵀ (Z_S, 1)`` for (T, S, C) coefficients A."""
        weight = decay * self.weight_TCD - coefficients.mT @ self.z_TSD
        return [weight] if self.bias_TC is None else [weight, decay * self.bias_TC - coefficients.sum(-2)]


def coefficients(inner: GradientDescent, problem: InnerProblem, head: Head) -> Iterator[Tensor]:
    """A_0, A_1, …, A_N."""
    residual = problem.loss.residual
    assert residual is not None
    gamma = 1 - inner.lr * inner.l2
    K_TSS, L_0 = head.kernel(head.z_TSD), head.logits(head.z_TSD)
    A_TSC, L_TSC = L_0.new_zeros(L_0.shape), L_0
    yield A_TSC
    for m in range(inner.steps):
        # ∇_w L_S in the span of the support examples; a backward pass through it is a product with its Jacobian.
        (R_TSC,) = problem.differentiated([residual(L_TSC, head.y_TS)])
        problem.note(GRAD_W_SUPPORT)
        A_TSC = gamma * A_TSC + head.share * R_TSC
        yield A_TSC
        if m + 1 < inner.steps:
            L_TSC = gamma ** (m + 1) * L_0 - inner.lr * (K_TSS @ A_TSC)


def query_logits(inner: GradientDescent, problem: InnerProblem) -> Iterator[Tensor]:
    """(T, Q, C) logits of the query examples after 0, 1, …, N steps."""
    head = Head.of(problem)
    gamma = 1 - inner.lr * inner.l2
    K_TQS, L_0 = head.kernel(head.z_TQD), head.logits(head.z_TQD)
    for m, A_TSC in enumerate(coefficients(inner, problem, head)):
        yield gamma**m * L_0 - inner.lr * (K_TQS @ A_TSC)


def adapted_weights(inner: GradientDescent, problem: InnerProblem) -> dict[str, Tensor]:
    """w_N of every task, by the model's names."""
    head = Head.of(problem)
    *_, A_TSC = coefficients(inner, problem, head)
    decay = (1 - inner.lr * inner.l2) ** inner.steps
    found = head.weights(decay, inner.lr * A_TSC)
    return {n: v.to(problem.start[n].dtype) for n, v in zip(problem.replay.head_names, found, strict=True)}


def refusal(inner: object, problem: InnerProblem) -> str:
    """Why the sample space does not apply, or ""."""
    if problem.replay.head is None:
        return "the adapted parameters are not one linear layer that produces the model's output"
    if type(inner) is not GradientDescent or inner.momentum or inner.prox:
        return f"{inner!r} is more than plain gradient descent"
    if problem.loss.residual is None:
        return f"the derivative of the loss {problem.loss.name!r} in the logits is not known; give its Loss a residual"
    return ""
