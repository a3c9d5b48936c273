"""Gradient descent on a linear head, computed in the space of the support examples: exact, at a cost that does not depend on D.

The steps ``W ← W − α_m (∇ mean loss + λW)`` never leave the span of the support features, so it is enough to follow the
coefficients A (S×C) of that span, in units of the first step size α. With the kernel ``K_SS = Z_S Z_Sᵀ + 1`` (the 1 is the bias),
``γ_m = 1 − α_m λ``, the decay ``d_m = γ_0 … γ_{m−1}`` and R(L) the weighted derivative of the loss in the outputs::

    A_0 = 0,  L_0 = Z_S W_0ᵀ + b_0
    A_{m+1} = γ_m A_m + (α_m/α) R(L_m),   L_{m+1} = d_{m+1} L_0 − α K_SS A_{m+1}
    query outputs: d_N (Z_Q W_0ᵀ + b_0) − α K_QS A_N,   weights: W_N = d_N W_0 − α A_Nᵀ Z_S,   b_N = d_N b_0 − α A_Nᵀ 1

Every step costs O(S²·C) instead of O(S·D·C), and the body runs forward and backward once whatever N is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from headstart.errors import MethodError
from headstart.inner.problem import QUERY, SUPPORT, InnerProblem
from headstart.inner.sample_path import Gram, Path, Products, SamplePath, unit
from headstart.types import Params


@dataclass(frozen=True)
class LinearHead:
    """The linear head of T tasks: features, first weights, and the weight of each support example (summing to one)."""

    z_TSD: Tensor
    z_TQD: Tensor
    y_TS: Tensor
    weight_TCD: Tensor
    bias_TC: Tensor | None
    share: Tensor | float

    @classmethod
    def of(cls, problem: InnerProblem) -> LinearHead:
        """The head of a problem that is one.

        Raises:
            MethodError: it is not.
        """
        if not problem.head_names:
            raise MethodError(
                'a closed form needs one linear layer that produces the model\'s output: use adapt="head", and leave replay on'
            )
        weight, bias = problem.head_parameters(problem.start)
        z_TSD, z_TQD = problem.features(SUPPORT), problem.features(QUERY)
        dtype = torch.promote_types(z_TSD.dtype, torch.float32)
        up = lambda v: v.to(dtype)  # noqa: E731  (half-precision features: the small solve is done in single precision)
        share = problem.shares(SUPPORT)
        return cls(
            up(z_TSD),
            up(z_TQD),
            problem.tasks.support.y,
            up(weight),
            None if bias is None else up(bias),
            1 / z_TSD.shape[1] if share is None else up(share).unsqueeze(-1),
        )

    def outputs(self, z: Tensor) -> Tensor:
        """Outputs of features (T, n, D) under the first weights."""
        product: Tensor = Products.apply(z, self.weight_TCD)
        return product if self.bias_TC is None else product + self.bias_TC.unsqueeze(-2)

    def kernel(self, z: Tensor) -> Tensor:
        """(T, n, S) inner products with the support features, plus one for the bias."""
        product: Tensor = Products.apply(z, self.z_TSD)
        return product if self.bias_TC is None else product + 1

    def gram(self) -> Tensor:
        """:meth:`kernel` of the support features themselves."""
        product: Tensor = Gram.apply(self.z_TSD)
        return product if self.bias_TC is None else product + 1

    def weights(self, decay: float, coefficients: Tensor) -> list[Tensor]:
        """``decay·(W_0, b_0) − Aᵀ (Z_S, 1)`` for (T, S, C) coefficients A."""
        weight = decay * self.weight_TCD - coefficients.mT @ self.z_TSD
        return [weight] if self.bias_TC is None else [weight, decay * self.bias_TC - coefficients.sum(-2)]


def coefficients(problem: InnerProblem, head: LinearHead, rates: Sequence[float], l2: float) -> Iterator[tuple[float, Tensor]]:
    """(d_0, A_0), (d_1, A_1), …, (d_N, A_N)."""
    L_0 = head.outputs(head.z_TSD)
    yield 1.0, torch.zeros_like(L_0)
    if not rates:
        return
    path = Path.of(problem, rates, l2, head.share)
    yield from zip(path.decays[1:], SamplePath.apply(head.gram(), L_0, path), strict=True)


def query_outputs(problem: InnerProblem, rates: Sequence[float], l2: float) -> Iterator[Callable[[], Tensor]]:
    """For 0, 1, …, N steps a function that gives the (T, Q, C) outputs of the query examples: not every step's are asked for."""
    head = LinearHead.of(problem)
    K_TQS, L_0 = head.kernel(head.z_TQD), head.outputs(head.z_TQD)
    for decay, A_TSC in coefficients(problem, head, rates, l2):
        yield partial(torch.baddbmm, L_0, K_TQS, A_TSC, beta=decay, alpha=-unit(rates))


def adapted_weights(problem: InnerProblem, rates: Sequence[float], l2: float) -> Params:
    """w_N of every task, by the model's names."""
    head = LinearHead.of(problem)
    *_, (decay, A_TSC) = coefficients(problem, head, rates, l2)
    return dict(zip(problem.head_names, head.weights(decay, unit(rates) * A_TSC), strict=True))
