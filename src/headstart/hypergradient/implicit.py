"""Implicit meta-gradients: differentiate the solution of the inner problem, not the path to it (theory: N → ∞).

At a minimiser w* of the inner loss, ``H v = ∇_w L_D`` is solved for v, and then ``∂/∂φ = ∇_φ L_D − C v``. The start has no
influence, unless a proximal term holds w_0: iMAML (Rajeswaran et al., NeurIPS 2019), where ``∂/∂w_0 = λ v``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from headstart.counting import CVP, GRAD_W_SUPPORT, HVP
from headstart.errors import ConfigError, MethodError, refuses
from headstart.hypergradient.base import HYPERGRADIENTS, Hypergradient, HyperResult
from headstart.inner.leaves import cotangents, leaves
from headstart.inner.problem import InnerProblem
from headstart.inner.solver import Solver
from headstart.theory.oracle_counts import OracleCounts
from headstart.types import Params


@HYPERGRADIENTS.register("implicit")
@dataclass(frozen=True)
class Implicit(Hypergradient):
    """Solves with the inner Hessian by conjugate gradients or a Neumann series, on Hessian-vector products alone.

    Args:
        solver: ``"cg"``, or ``"neumann"``, whose step is the inner step size.
        iterations: at most so many Hessian-vector products.
        tolerance: stop when every task's residual ‖H v − g‖ is below this share of ‖g‖.
        stationary: the largest inner gradient norm accepted at w_N, relative to the one at w_0: the formula holds at a
            minimiser only. None accepts any.

    Raises:
        MethodError: the Hessian is not positive definite, or the inner loop has not converged.

    The residual, the iterations and the inner gradient norm are in ``stats.info``.

    Example:
        >>> import headstart as hs
        >>> x, y = torch.randn(4, 6, 4), torch.randint(2, (4, 6))
        >>> learner = hs.anil(hs.models.mlp(features=4, ways=2), steps=100, lr=0.5, l2=1.0, hypergradient=Implicit(iterations=20))
        >>> grads, stats = learner.meta_gradient(hs.TaskBatch(x, y, x, y))
        >>> "residual" in stats.info
        True
    """

    solver: Literal["cg", "neumann"] = "cg"
    iterations: int = 50
    tolerance: float = 1e-6
    stationary: float | None = 0.1

    @refuses
    def __post_init__(self) -> None:
        if self.solver not in ("cg", "neumann"):
            raise ConfigError(f'solver={self.solver!r}: use "cg" or "neumann"')
        if self.iterations < 1:
            raise ConfigError(f"iterations={self.iterations}: at least one is needed")
        if not self.tolerance >= 0:
            raise ConfigError(f"tolerance={self.tolerance}: it must be 0 or more")

    def __call__(self, problem: InnerProblem, inner: Solver) -> HyperResult:
        """The implicit meta-gradient of the tasks of a problem."""
        if problem.step_weights is not None:
            raise MethodError("Implicit() knows only the solution, not the path: leave step_weights out, or use Recursive()")
        if problem.theta:
            raise MethodError(f"{type(inner).__name__} learns its step sizes from the path, which Implicit() ignores; use Recursive()")
        *_, w_N = self._path(problem, inner)
        w, leaf = leaves(w_N), problem.shared.tensors()
        with torch.enable_grad():
            loss, outputs = problem.query_loss(w)
            grads = cotangents([loss.sum()], [*w.values(), *leaf])
            gradient = problem.support_gradient(w, create_graph=True)
        problem.note(GRAD_W_SUPPORT)
        g, u = _flat(grads[: len(w)]), grads[len(w) :]
        norm = self._check_stationary(problem, gradient)

        def H(v_TW: Tensor) -> Tensor:
            problem.note(HVP)
            return _flat(cotangents(list(gradient.values()), list(w.values()), _like(v_TW, w), retain_graph=True))

        v, residual, used = self._neumann(H, g, self._rate(inner)) if self.solver == "neumann" else self._cg(H, g)
        problem.note(CVP)
        found = cotangents(list(gradient.values()), [*leaf, *problem.start.values()], _like(v, w))
        shared = [a - b for a, b in zip(u, found, strict=False)]
        start = {k: -b for k, b in zip(problem.start, found[len(leaf) :], strict=True)}
        info = {"residual": float(residual.max()), "iterations": used, "inner_gradient": norm}
        return HyperResult(start, shared, {}, loss.detach(), outputs.detach(), info)

    def oracle_calls(self, steps: int, iterations: int | None = None) -> OracleCounts:
        """c products with H and one with C; up to two more ∇_w L_S see that the inner loop has converged.

        Raises:
            ConfigError: the iterations are missing.
        """
        if iterations is None:
            raise ConfigError('Implicit() iterates until it has converged: give iterations=stats.info["iterations"] of a meta-gradient')
        return OracleCounts.implicit(steps, iterations, checks=1 if self.stationary is None else 2)

    def _rate(self, inner: Solver) -> float:
        rate = getattr(inner, "lr", None)
        if not isinstance(rate, int | float):
            raise MethodError(
                f"Implicit(solver='neumann') takes its step from the inner lr, which must be one number, not {rate!r}; use 'cg'"
            )
        return float(rate)

    def _path(self, problem: InnerProblem, inner: Solver) -> list[Params]:
        with torch.no_grad():
            return list(inner.iterates(problem, create_graph=False))

    def _check_stationary(self, problem: InnerProblem, gradient: Params) -> float:
        last = _flat([x.detach() for x in gradient.values()]).norm(dim=1)
        if self.stationary is None:
            return float(last.max())
        problem.note(GRAD_W_SUPPORT)
        first = _flat(list(problem.support_gradient(leaves(problem.start)).values())).norm(dim=1)
        if bool((last > self.stationary * first.clamp_min(1e-12)).any()) and float(last.max()) > 1e-6:
            raise MethodError(
                f"the inner loop has not converged: its gradient norm is {float(last.max()):.2g} after the last step"
                f" and {float(first.max()):.2g} before the first. Take more steps or a larger lr, add l2 or prox,"
                " or use Recursive(), which is exact for any number of steps"
            )
        return float(last.max())

    def _cg(self, H, g: Tensor) -> tuple[Tensor, Tensor, int]:  # type: ignore[no-untyped-def]
        """Conjugate gradients on all tasks at once, each with its own step lengths."""
        v, r = torch.zeros_like(g), g.clone()
        p, rr = r.clone(), (r * r).sum(1)
        target = (self.tolerance**2) * rr
        used = 0
        while used < self.iterations and bool((rr > target).any()):
            Hp = H(p)
            used += 1
            active = (rr > target) & (rr > 0)
            curvature = (p * Hp).sum(1)
            if bool((curvature[active] <= 0).any()):
                worst = float((curvature / (p * p).sum(1).clamp_min(1e-30))[active].min())
                raise MethodError(
                    f"the inner Hessian is not positive definite: curvature {worst:.2g} along a search direction."
                    " Implicit() needs a strongly convex inner loss: adapt the head with l2 > 0, or add prox > 0"
                    " above the negative curvature, or use Recursive()"
                )
            step = torch.where(active, rr / curvature.where(active, torch.ones_like(curvature)), torch.zeros_like(rr))[:, None]
            v, r = v + step * p, r - step * Hp
            new = (r * r).sum(1)
            p = r + (new / rr.where(active, torch.ones_like(rr)))[:, None] * p
            rr = torch.where(active, new, rr)
        return v, (rr / (g * g).sum(1).clamp_min(1e-30)).sqrt(), used

    def _neumann(self, H, g: Tensor, lr: float) -> tuple[Tensor, Tensor, int]:  # type: ignore[no-untyped-def]
        """``v = lr Σ_k (I − lr H)^k g``, which converges when 0 < H < 2/lr."""
        v = lr * g
        first = float("inf")
        for used in range(1, self.iterations + 1):
            r = g - H(v)
            share = (r * r).sum(1).sqrt() / (g * g).sum(1).sqrt().clamp_min(1e-30)
            if not bool(torch.isfinite(share).all()) or float(share.max()) > 10 * max(first, 1.0):
                raise MethodError(
                    f"the Neumann series diverges (residual {float(share.max()):.2g} after {used} terms): the inner Hessian has"
                    f" an eigenvalue outside (0, 2/lr) = (0, {2 / lr:.3g}). Use a smaller lr, add l2 or prox, or solver='cg'"
                )
            if bool((share <= self.tolerance).all()):
                break
            first = min(first, float(share.max()))
            v = v + lr * r
        return v, share, used


def _flat(tensors) -> Tensor:  # type: ignore[no-untyped-def]
    return torch.cat([x.flatten(1) if x.dim() > 1 else x[:, None] for x in tensors], dim=1)


def _like(v_TW: Tensor, w: Params) -> list[Tensor]:
    parts = v_TW.split([x[0].numel() for x in w.values()], dim=1)
    return [part.reshape(x.shape) for part, x in zip(parts, w.values(), strict=True)]
