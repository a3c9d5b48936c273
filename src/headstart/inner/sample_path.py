"""The path of a linear head in sample space, and its derivative: the recursion of :mod:`headstart.inner.linear_head` run back by hand.

With Ā_m and L̄_m for the derivatives of an objective in A_m and L_m, and J_m for that of the residual at L_m::

    L̄_m = J_mᵀ (α_m/α) Ā_{m+1},   Ā_m += γ_m Ā_{m+1} − α K L̄_m
    L̄_0 = Σ_m d_m L̄_m,   K̄ = −α Σ_m L̄_m A_mᵀ

The sum for K̄ is one product of matrices over all steps together. Autograd would form it step by step, and keep a graph of some ten
operations for each; here a step takes five, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from headstart.counting import CVP, GRAD_W_SUPPORT, HVP
from headstart.errors import MethodError
from headstart.inner.problem import InnerProblem
from headstart.types import Linearised


@dataclass(frozen=True)
class Path:
    """What the steps are made of.

    Args:
        linearised: outputs and targets to R, and a function from directions to their products with J.
        y: (T, S, …) targets.
        share: the weight of each support example.
        rates: α_m.
        l2: λ.
        steps: enters a step into the ledger.
        products: enters the products of a step's reverse into it.
    """

    linearised: Callable[[Tensor, Tensor], Linearised]
    y: Tensor
    share: Tensor | float
    rates: Sequence[float]
    l2: float
    steps: Callable[[], None]
    products: Callable[[], None]

    @classmethod
    def of(cls, problem: InnerProblem, rates: Sequence[float], l2: float, share: Tensor | float) -> Path:
        """The path of a problem's tasks.

        Raises:
            MethodError: the derivative of the loss in the outputs is not known.
        """
        if problem.loss.residual is None:
            raise MethodError(f"the loss {problem.loss.name!r} has no residual, which the sample space needs")
        steps, products = problem.noting(GRAD_W_SUPPORT), problem.noting(HVP, CVP)
        return cls(problem.loss.linearised, problem.tasks.support.y, share, rates, l2, steps, products)

    @property
    def gammas(self) -> list[float]:
        """γ_m."""
        return [1 - lr * self.l2 for lr in self.rates]

    @property
    def decays(self) -> list[float]:
        """d_0 … d_N."""
        decays = [1.0]
        for gamma in self.gammas:
            decays.append(gamma * decays[-1])
        return decays


def unit(rates: Sequence[float]) -> float:
    """α, in units of which coefficients are kept."""
    return rates[0] if rates else 1.0


class SamplePath(torch.autograd.Function):
    """A_1 … A_N from (T, S, S) K and (T, S, C) L_0."""

    @staticmethod
    def forward(ctx: Any, K: Tensor, L_0: Tensor, path: Path) -> tuple[Tensor, ...]:
        alpha, decays = unit(path.rates), path.decays
        L, A = L_0, torch.zeros_like(L_0)
        products, passed = [], []
        for m, lr in enumerate(path.rates):
            R, product = path.linearised(L, path.y)
            products.append(product)
            A = _weighted(R, path.share, lr / alpha).add_(A, alpha=path.gammas[m])
            passed.append(A)
            path.steps()
            if m + 1 < len(path.rates):
                L = torch.baddbmm(L_0, K, A, beta=decays[m + 1], alpha=-alpha)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(K, *passed)
        ctx.path, ctx.products = path, products
        return tuple(passed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor | None) -> Any:
        path, (K, *passed) = ctx.path, ctx.saved_tensors
        alpha, back, found = unit(path.rates), None, dict[int, Tensor]()
        for m in reversed(range(len(path.rates))):
            own = given[m]
            back = own if back is None else back if own is None else back + own
            if back is None:
                continue
            found[m] = ctx.products[m](_weighted(back, path.share, path.rates[m] / alpha))
            path.products()
            if m:
                back = torch.baddbmm(back, K, found[m], beta=path.gammas[m], alpha=-alpha)
        if not found:
            return None, None, None
        by_decay = torch.stack([path.decays[m] * v if path.l2 else v for m, v in found.items()]).sum(0)
        later = [m for m in found if m]  # A_0 is zero
        if not ctx.needs_input_grad[0]:
            return None, by_decay, None
        if not later:
            return torch.zeros_like(K), by_decay, None
        K_bar = torch.cat([found[m] for m in later], -1) @ torch.cat([passed[m - 1] for m in later], -1).mT
        return K_bar.mul_(-alpha), by_decay, None


def _weighted(v: Tensor, share: Tensor | float, by: float) -> Tensor:
    return v * (share * by)


class Gram(torch.autograd.Function):
    """(T, S, D) Z to Z Zᵀ; one product back, where autograd takes two."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z @ z.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return (g + g.mT) @ z


class Products(torch.autograd.Function):
    """(T, n, D) X and (T, m, D) Y to the (T, n, m) products of their rows, with both derivatives row by row: autograd forms that of Y
    as (T, D, m), six times slower on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return x @ y.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        return (g @ y if ctx.needs_input_grad[0] else None), (g.mT @ x if ctx.needs_input_grad[1] else None)
