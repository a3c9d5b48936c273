"""Proposition 1 of Ji et al. (2020) read backwards: exact meta-gradients in memory that does not grow with activations.

    v ← ∇_w L_D(w_N, φ) ;  u ← ∇_φ L_D(w_N, φ)
    for m = N−1 … 0:   u ← u − α C_m v ;   v ← v − α H_m v        (C_m uses the v from before the update)
    ∂/∂w = v,  ∂/∂φ = u

The N iterates w_m are kept, and of the graphs of their gradients those of the last few steps. For solvers beyond plain descent the step is
``w_{m+1} = update(w_m, state_m, g_m)`` with ``g_m = ∇_w L_S(w_m, φ)``; pulling (v, state's v) back through the update gives
the part of v that passes by g_m, and p, the part that goes into g_m — plain descent has p = −αv. Then
``u ← u + C_m p`` and ``v ← v + H_m p``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from headstart.counting import CVP, GRAD_W_SUPPORT, HVP
from headstart.errors import ConfigError, refuses
from headstart.hypergradient.base import HYPERGRADIENTS, Hypergradient, HyperResult
from headstart.inner.leaves import cotangents, leaves, plus
from headstart.inner.problem import InnerProblem, step_weights
from headstart.inner.solver import Solver
from headstart.types import Params


@HYPERGRADIENTS.register("recursive")
@dataclass(frozen=True)
class Recursive(Hypergradient):
    """Exact meta-gradients in O(N·n_w) memory instead of O(N·activations): beside the iterates of w, the graphs of ``keep`` steps.

    Args:
        products: how ``H p`` and ``C p`` are formed, both at once. ``"double-backward"`` differentiates ⟨∇_w L_S, p⟩: works
            for any model, takes the least memory, and measured fastest. ``"forward-over-reverse"`` pushes the direction p through
            ∇L_S, and needs forward-mode derivatives of all operations.
        keep: the last steps whose gradients keep their graphs, which then serve the products too; those of earlier steps are built again.
            With as many as there are steps it does the work of :class:`~headstart.Unrolled`, and takes its memory.

    Example:
        >>> import headstart as hs
        >>> model = hs.models.mlp(features=4, ways=2, hidden=[8])
        >>> learner = hs.maml(model, steps=50, lr=0.1, hypergradient=Recursive(products="double-backward"))
        >>> x, y = torch.randn(4, 6, 4), torch.randint(2, (4, 6))
        >>> grads, stats = learner.meta_gradient(hs.TaskBatch(x, y, x, y))
        >>> sorted(grads) == sorted(learner.parameters())
        True
    """

    products: Literal["double-backward", "forward-over-reverse"] = "double-backward"
    keep: int = 2

    @refuses
    def __post_init__(self) -> None:
        if self.products not in ("double-backward", "forward-over-reverse"):
            raise ConfigError(f'products={self.products!r}: use "double-backward" or "forward-over-reverse"')
        if self.keep < 0:
            raise ConfigError(f"keep={self.keep}: it must be at least 0")

    def __call__(self, problem: InnerProblem, inner: Solver) -> HyperResult:
        """The meta-gradient of the tasks of a problem."""
        path, kept = _descend(problem, inner, self.keep if self.products == "double-backward" else 0)
        weights = step_weights(problem, inner.steps)

        w_N, state_N, _ = path.pop()
        losses, v, u, outputs = _query_gradient(problem, w_N, weights[-1])
        s = {k: torch.zeros_like(x) for k, x in state_N.items()}  # cotangent of the solver's state
        theta = {k: torch.zeros_like(x) for k, x in problem.theta.items()}
        start = {k: torch.zeros_like(x) for k, x in problem.start.items()}  # what reaches w_0 past the path (prox)

        for m in reversed(range(inner.steps)):
            w_m, state_m, g_m = path.pop()
            v, s, p, dtheta = _pull_back(inner, m, w_m, state_m, g_m, problem.theta, v, s)
            product = kept.pop(m, None)
            Hp, Cp, Pp = self._products(problem, w_m, p) if product is None else _split(problem, product(p))
            del product  # its graph is gone before that of an earlier step is built
            problem.note(HVP, CVP)
            u, v, theta, start = _sum(u, Cp), plus(v, Hp), plus(theta, dtheta), plus(start, Pp)
            if weights[m]:  # the multi-step objective of MAML++ meets the recursion here
                loss, dv, du, _ = _query_gradient(problem, w_m, weights[m])
                losses, v, u = losses + loss, plus(v, dv), _sum(u, du)

        if inner.steps == 0 or not s:
            return HyperResult(plus(start, v), u, theta, losses, outputs)
        return HyperResult(plus(plus(start, v), _through_init(inner, problem.start, s)), u, theta, losses, outputs)

    def _products(self, problem: InnerProblem, w_m: Params, p: Params) -> Products:
        """``H_m p``, ``C_m p`` and, where the inner loss holds w_0 itself (prox), the product for w_0."""
        if self.products == "double-backward":
            return _double_backward(problem, w_m, p)
        return _forward_over_reverse(problem, w_m, p)


Products = tuple[Params, list[Tensor], Params]


def _double_backward(problem: InnerProblem, w_m: Params, p: Params) -> Products:
    """Differentiates ⟨∇_w L_S, p⟩."""
    return _split(problem, problem.support_product(leaves(w_m), p, _others(problem)))


def _others(problem: InnerProblem) -> list[Tensor]:
    """What a product goes into besides w: φ, and w_0 where the inner loss holds it."""
    return [*problem.shared.tensors(), *problem.start.values()]


def _forward_over_reverse(problem: InnerProblem, w_m: Params, p: Params) -> Products:
    """Pushes the direction p through ∇L_S."""
    shared, start = problem.shared.tensors(), list(problem.start.values())
    with forward_ad.dual_level(), torch.enable_grad():
        dual = {k: forward_ad.make_dual(x.contiguous(), p[k].contiguous()) for k, x in leaves(w_m).items()}
        loss = problem.support_loss(dual).sum()
        inputs = [*dual.values(), *shared, *start]
        grads = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        tangents = [forward_ad.unpack_dual(g).tangent for g in grads]
    like = [*w_m.values(), *shared, *start]
    return _split(problem, [torch.zeros_like(x) if t is None else t for t, x in zip(tangents, like, strict=True)])


def _split(problem: InnerProblem, found: Sequence[Tensor]) -> Products:
    count = len(problem.start)
    Hp, Cp, Pp = found[:count], found[count : len(found) - count], found[len(found) - count :]
    return dict(zip(problem.start, Hp, strict=True)), list(Cp), dict(zip(problem.start, Pp, strict=True))


def _descend(
    problem: InnerProblem, inner: Solver, keep: int
) -> tuple[list[tuple[Params, Params, Params]], dict[int, Callable[[Params], list[Tensor]]]]:
    """(w_m, state_m, g_m) for m = 0 … N, without their graphs; g_m stands as zero where its value is not needed later.

    The graphs of so many last g_m are kept, as the products that they serve next.
    """
    w, state = {k: x.detach() for k, x in problem.start.items()}, inner.init(problem.start)
    state = {k: x.detach() for k, x in state.items()}
    # An update that is linear in the gradient, by step sizes that are not learned, has a derivative that holds no g_m.
    needed = bool(problem.theta) or not inner.linear_in_gradient
    path, kept = [], {}
    for m in range(inner.steps):
        if m + keep < inner.steps:
            g = problem.support_gradient(leaves(w))
        else:
            g, product = problem.held_gradient(leaves(w), _others(problem))
            if product is not None:
                kept[m] = product
        problem.note(GRAD_W_SUPPORT)
        path.append((w, state, g if needed else {k: x.new_zeros(()).expand_as(x) for k, x in w.items()}))
        with torch.no_grad():
            w, state = inner.update(m, w, state, g, problem.theta)
    return [*path, (w, state, {})], kept


def _query_gradient(problem: InnerProblem, w: Params, weight: float) -> tuple[Tensor, Params, list[Tensor], Tensor]:
    """The weighted query losses, their ∇_w and ∇_φ, and the outputs."""
    w = leaves(w)
    with torch.enable_grad():
        loss, outputs = problem.query_loss(w)
        loss = weight * loss
        grads = cotangents([loss.sum()], [*w.values(), *problem.shared.tensors()])
    return loss.detach(), dict(zip(w, grads, strict=False)), list(grads[len(w) :]), outputs.detach()


def _pull_back(
    inner: Solver, m: int, w_m: Params, state_m: Params, g_m: Params, theta: Params, v: Params, s: Params
) -> tuple[Params, Params, Params, Params]:
    """(v, s) of step m+1 through the update rule: into w_m, state_m, the gradient (this is p) and theta."""
    w, state, g = leaves(w_m), leaves(state_m), leaves(g_m)
    with torch.enable_grad():
        w_next, state_next = inner.update(m, w, state, g, theta)
        groups = (w, state, g, theta)
        inputs = [x for q in groups for x in q.values()]
        grads = iter(cotangents([*w_next.values(), *state_next.values()], inputs, [*v.values(), *s.values()]))
    first, second, third, fourth = ({k: next(grads) for k in q} for q in groups)
    return first, second, third, fourth


def _through_init(inner: Solver, start: Params, s: Params) -> Params:
    """What a solver's first state passes on to w_0, if it depends on it."""
    w = leaves(start)
    with torch.enable_grad():
        state = inner.init(w)
        found = cotangents(list(state.values()), list(w.values()), list(s.values()))
    return dict(zip(w, found, strict=True))


def _sum(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    return [x + y for x, y in zip(a, b, strict=True)]
