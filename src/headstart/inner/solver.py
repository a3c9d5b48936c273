"""What an inner solver is: how w adapts to a support set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from headstart.errors import ConfigError, MethodError, refuses
from headstart.inner.head_rule import HeadRule
from headstart.inner.leaves import leaves
from headstart.inner.problem import QUERY, InnerProblem, Regulariser
from headstart.inner.rates import AUTO
from headstart.registry import Registry
from headstart.types import Params, ParamsLike

SOLVERS: Registry[Solver] = Registry("inner solver")


@dataclass(frozen=True)
class Solver:
    """An inner loop of N steps; a subclass says what a step does, in :meth:`update`.

    Args:
        steps: N, 0 or more.

    Tensors of w, of the state and of the gradient have a leading dimension of T tasks, which are not to be mixed. The update
    must be differentiable: every hypergradient then gives its exact derivative.

    Example:
        >>> @dataclass(frozen=True)
        ... class SignDescent(Solver):
        ...     lr: float = 0.1
        ...     def update(self, m, w, state, gradient, theta):
        ...         return {k: w[k] - self.lr * torch.tanh(10 * gradient[k]) for k in w}, state
        >>> SignDescent(steps=3).linear_in_gradient
        False
        >>> import headstart as hs
        >>> solver = hs.GradientDescent(steps=3, lr=0.5, l2=0.1)
        >>> learner = hs.MetaLearner(hs.Partition(hs.models.mlp(features=4, ways=2)), solver)
        >>> x, y = torch.randn(2, 6, 4), torch.randint(2, (2, 6))
        >>> problem = next(iter(learner.problems(hs.TaskBatch(x, y, x, y))))  # of the first task
        >>> len(list(solver.iterates(problem, create_graph=False))), len(list(solver.query_outputs(problem)))
        (4, 4)
        >>> solver.adapted(problem).keys() == solver.sample_space_weights(problem).keys(), solver.sample_space_refusal(problem)
        (True, '')
        >>> [tuple(outputs().shape) for outputs in solver.sample_space(problem)]
        [(1, 6, 2), (1, 6, 2), (1, 6, 2), (1, 6, 2)]
        >>> solver.with_steps(9).steps, solver.undecided, solver.parameters(problem.start), solver.scales(), solver.init(problem.start)
        (9, False, {}, {}, {})
        >>> solver.regulariser(problem.start, problem.start).shape, solver.head_rule(problem.head_names, {})
        (torch.Size([1]), HeadRule(l2=0.1, lr=0.5, scale=1.0))
        >>> w, state = solver.update(0, {"w": torch.ones(1, 1)}, {}, {"w": torch.ones(1, 1)}, {})
        >>> w["w"].item()
        0.5
    """

    steps: int = 5

    closed_form: ClassVar[bool] = False
    """Whether w comes from a formula instead of steps, so that there is no path of iterates."""
    scale_free: ClassVar[bool] = False
    """Whether steps do not grow with the gradient, as Adam's, so that curvature says nothing of the step size."""

    @refuses
    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 0:
            raise ConfigError(f"steps={self.steps!r}: the number of inner steps is a whole number, 0 or more; 5 is a usual choice")

    # -- what a solver says of itself ----------------------------------------------------------------------------------

    def update(self, m: int, w: Params, state: Params, gradient: Params, theta: ParamsLike) -> tuple[Params, Params]:
        """``(w_{m+1}, state_{m+1})`` from w_m, the state, ∇_w L_S(w_m, φ) and the learned parameters theta."""
        raise ConfigError(f"{type(self).__name__} has no update(m, w, state, gradient, theta); give it one")

    @property
    def linear_in_gradient(self) -> bool:
        """Whether the update is linear in the gradient, so that its derivative needs no g_m; False is always right."""
        return False

    @property
    def undecided(self) -> bool:
        """Whether its ``lr`` is "auto", so that it cannot take a step before that is measured."""
        return self.steps > 0 and getattr(self, "lr", None) == AUTO

    def parameters(self, w: ParamsLike) -> Params:
        """Learned parameters of the solver itself, for the adapted parameters w of a model; none by default."""
        return {}

    def scales(self) -> dict[str, float]:
        """The size that a step of the outer loop should have for a learned parameter, relative to that of a weight; 1 by default."""
        return {}

    def init(self, w: Params) -> Params:
        """The solver's state before the first step; none by default."""
        return {}

    @property
    def regulariser(self) -> Regulariser | None:
        """(w, start) to the (T,) terms added to the support loss; part of the loss, so every Hessian contains them."""
        return None

    def with_steps(self, steps: int | None) -> Self:
        """The same solver with another number of steps, for a test that takes more than training did."""
        return self if steps is None else replace(self, steps=steps)

    def head_rule(self, names: Sequence[str], theta: ParamsLike) -> HeadRule:
        """How it adapts a linear head whose parameters have these names, in plain numbers, where theta is what it has learned.

        Raises:
            MethodError: it does more than these can say.
        """
        raise MethodError(f"{self!r} is more than plain gradient descent or a ridge regression")

    # -- what follows from it ------------------------------------------------------------------------------------------

    def iterates(self, problem: InnerProblem, create_graph: bool) -> Iterator[Params]:
        """w_0, w_1, …, w_N of every task.

        With ``create_graph`` they are functions of the start, of φ and of theta; without, the gradients in them are constants
        (H = 0 and C = 0 in Proposition 1).
        """
        w, state = problem.start, self.init(problem.start)
        yield w
        for m in range(self.steps):
            gradient = problem.counted_gradient(w if create_graph else leaves(w), create_graph)
            w, state = self.update(m, w, state, gradient, problem.theta)
            yield w

    def sample_space_refusal(self, problem: InnerProblem) -> str:
        """Why the query outputs cannot be had in the span of the support features, or ""."""
        return f"{self!r} is more than plain gradient descent on a linear head"

    def sample_space(self, problem: InnerProblem) -> Iterator[Callable[[], Tensor]]:
        """For 0, 1, …, N steps a function that gives the (T, Q, C) query outputs, as functions of the leaves, where there is no refusal."""
        raise NotImplementedError(self.sample_space_refusal(problem))  # pragma: no cover

    def sample_space_weights(self, problem: InnerProblem) -> Params:
        """w_N by the same way."""
        raise NotImplementedError(self.sample_space_refusal(problem))  # pragma: no cover

    def query_outputs(self, problem: InnerProblem) -> Iterator[Tensor]:
        """(T, Q, …) query outputs after 0, 1, …, N steps, for evaluation."""
        if not self.sample_space_refusal(problem):
            yield from (outputs() for outputs in self.sample_space(problem))
            return
        for w in self.iterates(problem, create_graph=False):
            yield problem.outputs({k: v.detach() for k, v in w.items()}, QUERY).detach()

    def adapted(self, problem: InnerProblem) -> Params:
        """w_N of every task."""
        if not self.sample_space_refusal(problem):
            return self.sample_space_weights(problem)
        *_, w = self.iterates(problem, create_graph=False)
        return {k: v.detach() for k, v in w.items()}


def scaled(gradient: Params, limit: float) -> Params:
    """A gradient whose whole norm, in each task, is at most ``limit``; differentiable, also at zero."""
    square = torch.stack([g.flatten(1).square().sum(1) if g.dim() > 1 else g.square() for g in gradient.values()]).sum(0)
    above = square > limit**2
    factor = torch.where(above, limit / square.where(above, torch.ones_like(square)).sqrt(), torch.ones_like(square))
    return {k: factor.reshape(-1, *[1] * (g.dim() - 1)) * g for k, g in gradient.items()}
