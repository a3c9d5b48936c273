"""Proposition 1 of Ji et al. (2020) read backwards: exact meta-gradients in memory that does not grow with activations.

    v ← ∇_w L_D(w_N, φ) ;  u ← ∇_φ L_D(w_N, φ)
    for m = N−1 … 0:   u ← u − α C_m v ;   v ← v − α H_m v        (C_m uses the v from before the update)
    ∂/∂w = v,  ∂/∂φ = u

Only the N iterates w_m are kept, never the graphs of their gradients. For solvers beyond plain descent the step is
``w_{m+1} = update(w_m, state_m, g_m)`` with ``g_m = ∇_w L_S(w_m, φ)``; pulling (v, state's v) back through the update gives
the part of v that passes by g_m, and p, the part that goes into g_m — plain descent has p = −αv. Then
``u ← u + C_m p`` and ``v ← v + H_m p``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.autograd import forward_ad

from headstart.counting import CVP, GRAD_W_SUPPORT, HVP
from headstart.errors import ConfigError
from headstart.hypergradient.base import HyperResult, step_weights
from headstart.inner.gradient_descent import GradientDescent
from headstart.inner.problem import InnerProblem, cotangents, leaves
from headstart.types import Params


@dataclass(frozen=True)
class Recursive:
    """Exact meta-gradients that store the iterates of w only: O(N·n_w) memory instead of O(N·activations).

    Args:
        products: how ``H p`` and ``C p`` are formed, both at once. ``"double-backward"`` differentiates ⟨∇_w L_S, p⟩: works
            for any model, and takes the least memory. ``"forward-over-reverse"`` pushes the direction p through ∇L_S: needs
            forward-mode derivatives of all operations; measured faster where a whole convolutional body adapts. ``"auto"``
            takes the second where nothing is replayed and it is possible, else the first.
    """

    products: Literal["auto", "double-backward", "forward-over-reverse"] = "auto"

    def __post_init__(self) -> None:
        if self.products not in ("auto", "double-backward", "forward-over-reverse"):
            raise ConfigError(f'products={self.products!r}: use "auto", "double-backward" or "forward-over-reverse"')

    def __call__(self, problem: InnerProblem, inner: GradientDescent) -> HyperResult:
        """The meta-gradient of the tasks of a problem."""
        path = _descend(problem, inner)
        weights = step_weights(problem, inner.steps)

        w_N, state_N, _ = path.pop()
        losses, v, u, logits = _query_gradient(problem, w_N, weights[-1])
        s = {k: torch.zeros_like(x) for k, x in state_N.items()}  # cotangent of the solver's state
        theta = {k: torch.zeros_like(x) for k, x in problem.theta.items()}
        start = {k: torch.zeros_like(x) for k, x in problem.start.items()}  # what reaches w_0 past the path (prox)

        for m in reversed(range(inner.steps)):
            w_m, state_m, g_m = path.pop()
            v, s, p, dtheta = _pull_back(inner, m, w_m, state_m, g_m, problem.theta, v, s)
            Hp, Cp, Pp = self._products(problem, w_m, p)
            problem.note(HVP, CVP)
            u, v, theta, start = _plus(u, Cp), _plus(v, Hp), _plus(theta, dtheta), _plus(start, Pp)
            if weights[m]:  # the multi-step objective of MAML++ meets the recursion here
                loss, dv, du, _ = _query_gradient(problem, w_m, weights[m])
                losses, v, u = losses + loss, _plus(v, dv), _plus(u, du)

        return HyperResult(_plus(start, v), u, theta, losses, logits)

    def _products(self, problem: InnerProblem, w_m: Params, p: Params) -> tuple[Params, Params, Params]:
        """``H_m p``, ``C_m p`` and, where the inner loss holds w_0 itself (prox), the product for w_0."""
        w = leaves(w_m)
        others = {**{("shared", k): x for k, x in problem.shared.items()}, **{("start", k): x for k, x in problem.start.items()}}
        if self.products == "auto":
            return self._faster(problem, w_m, p)
        if self.products == "double-backward":
            gradient = problem.support_gradient(w, create_graph=True)
            found = cotangents(list(gradient.values()), [*w.values(), *others.values()], list(p.values()))
        else:
            with forward_ad.dual_level(), torch.enable_grad():
                dual = {k: forward_ad.make_dual(x.contiguous(), p[k].contiguous()) for k, x in w.items()}
                loss = problem.support_loss(dual).sum()
                grads = torch.autograd.grad(loss, [*dual.values(), *others.values()], allow_unused=True, materialize_grads=True)
                tangents = [forward_ad.unpack_dual(g).tangent for g in grads]
            found = tuple(torch.zeros_like(x) if t is None else t for t, x in zip(tangents, [*w.values(), *others.values()], strict=True))
        Hp = dict(zip(w, found, strict=False))
        rest = dict(zip(others, found[len(w) :], strict=True))
        return Hp, {k: x for (g, k), x in rest.items() if g == "shared"}, {k: x for (g, k), x in rest.items() if g == "start"}

    def _faster(self, problem: InnerProblem, w_m: Params, p: Params) -> tuple[Params, Params, Params]:
        """Forward over reverse where a whole body adapts in a loop, if its first product is that of double backward.

        Forward-mode derivatives do not exist for some operations, and do not stop at ``torch.no_grad``.
        """
        forward, backward = Recursive("forward-over-reverse"), Recursive("double-backward")
        replay = problem.replay
        if replay.recorded or replay.head is not None or problem.vectorised or replay.forward_mode is False:
            return backward._products(problem, w_m, p)
        if replay.forward_mode is None:
            exact = backward._products(problem, w_m, p)
            try:
                replay.forward_mode = _agree(forward._products(problem, w_m, p), exact)
            except RuntimeError:  # NotImplementedError is one
                replay.forward_mode = False
            return exact
        return forward._products(problem, w_m, p)


def _agree(a: tuple[Params, ...], b: tuple[Params, ...]) -> bool:
    pairs = [(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in y]
    scale = max(float(y.abs().max()) for _, y in pairs)
    tolerance = 1e-9 if pairs[0][0].dtype == torch.float64 else 1e-3
    return all(float((x - y).abs().max()) <= tolerance * scale for x, y in pairs)


def _descend(problem: InnerProblem, inner: GradientDescent) -> list[tuple[Params, Params, Params]]:
    """(w_m, state_m, g_m) for m = 0 … N, without their graphs; g_m stands as zero where its value is not needed later."""
    w, state = {k: x.detach() for k, x in problem.start.items()}, inner.initial_state(problem.start)
    path = []
    with torch.no_grad():
        for m in range(inner.steps):
            g = problem.support_gradient(leaves(w))
            problem.note(GRAD_W_SUPPORT)
            # Only a learned step size has a derivative that depends on g_m; elsewhere one zero serves all steps.
            path.append((w, state, g if problem.theta else {k: x.new_zeros(()).expand_as(x) for k, x in w.items()}))
            w, state = inner.update(m, w, state, g, problem.theta)
    return [*path, (w, state, {})]


def _query_gradient(problem: InnerProblem, w: Params, weight: float):  # type: ignore[no-untyped-def]
    """The weighted query losses, their ∇_w and ∇_φ, and the logits."""
    w = leaves(w)
    with torch.enable_grad():
        loss, logits = problem.query_loss(w)
        loss = weight * loss
        grads = cotangents([loss.sum()], [*w.values(), *problem.shared.values()])
    return loss.detach(), dict(zip(w, grads, strict=False)), dict(zip(problem.shared, grads[len(w) :], strict=True)), logits.detach()


def _pull_back(  # type: ignore[no-untyped-def]
    inner: GradientDescent, m: int, w_m: Params, state_m: Params, g_m: Params, theta: Params, v: Params, s: Params
):
    """(v, s) of step m+1 through the update rule: into w_m, state_m, the gradient (this is p) and theta."""
    w, state, g = leaves(w_m), leaves(state_m), leaves(g_m)
    with torch.enable_grad():
        w_next, state_next = inner.update(m, w, state, g, theta)
        groups = (w, state, g, theta)
        inputs = [x for q in groups for x in q.values()]
        grads = iter(cotangents([*w_next.values(), *state_next.values()], inputs, [*v.values(), *s.values()]))
    return tuple({k: next(grads) for k in q} for q in groups)


def _plus(a: Params, b: Params) -> Params:
    return {k: a[k] + b[k] for k in a}
