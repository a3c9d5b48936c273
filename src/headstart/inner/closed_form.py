"""A linear head that adapts by solving a problem instead of taking steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from headstart.errors import ConfigError, MethodError
from headstart.inner.linear_head import LinearHead
from headstart.inner.problem import InnerProblem
from headstart.inner.solver import Solver
from headstart.types import Params, ParamsLike


@dataclass(frozen=True)
class ClosedForm(Solver):
    """Adapts a linear head to ``W = scale · Aᵀ Z_S`` for coefficients A of the support examples; a subclass says which.

    The first weights play no part. Where the head has a bias, it is the weight of a feature that is 1 everywhere.

    Example:
        >>> import headstart as hs
        >>> class Means(ClosedForm):
        ...     def coefficients(self, problem, head):
        ...         member = torch.nn.functional.one_hot(problem.tasks.support.y, head.weight_TCD.shape[-2]).float()
        ...         return member / member.sum(1, keepdim=True)
        ...     def scale_of(self, problem):
        ...         return 10.0
        >>> learner = hs.MetaLearner(hs.Partition(hs.models.mlp(features=4, ways=2), "head"), Means())
        >>> learner.adapt(torch.randn(4, 4), torch.tensor([0, 1, 0, 1])).predict(torch.randn(3, 4)).shape
        torch.Size([3])
    """

    steps: ClassVar[int] = 1  # type: ignore[misc]
    closed_form: ClassVar[bool] = True

    def coefficients(self, problem: InnerProblem, head: LinearHead) -> Tensor:
        """(T, S, C) A, as a function of the features and of what is learned."""
        raise NotImplementedError  # pragma: no cover

    def scale_of(self, problem: InnerProblem) -> Tensor | float:
        """The factor on the outputs."""
        return 1.0

    def with_steps(self, steps: int | None) -> Self:
        """Itself: a closed form has no steps to choose."""
        if steps not in (None, 1):
            raise ConfigError(f"steps={steps!r}: {type(self).__name__} is a closed form and has no inner steps; leave steps out")
        return self

    def iterates(self, problem: InnerProblem, create_graph: bool) -> Iterator[Params]:
        """None: a closed form takes no steps.

        Raises:
            MethodError: always.
        """
        raise MethodError(f"{type(self).__name__}() is a closed form without inner steps, so there is no path; use GradientDescent()")

    def sample_space_refusal(self, problem: InnerProblem) -> str:
        """ "", or an error: a closed form has no other way.

        Raises:
            MethodError: what adapts is not a linear head.
        """
        LinearHead.of(problem)
        return ""

    def sample_space(self, problem: InnerProblem) -> Iterator[Callable[[], Tensor]]:
        """For before and after adaptation a function that gives the (T, Q, C) query outputs."""
        head = LinearHead.of(problem)
        yield lambda: head.outputs(head.z_TQD)
        yield lambda: self.scale_of(problem) * (head.kernel(head.z_TQD) @ self.coefficients(problem, head))

    def sample_space_weights(self, problem: InnerProblem) -> Params:
        """w of every task, by the model's names; the scale is multiplied in."""
        head = LinearHead.of(problem)
        found = head.weights(0.0, -self.scale_of(problem) * self.coefficients(problem, head))
        return dict(zip(problem.head_names, found, strict=True))


def check_positive(part: Solver, *names: str) -> None:
    """Refuses values that are not above 0 and finite.

    Raises:
        ConfigError: it says which.
    """
    for name in names:
        value = getattr(part, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name}={value!r}: it must be above 0 and finite")


def logarithms(w: ParamsLike, **values: float) -> Params:
    """Learned parameters ``log_NAME``, in the type and on the device of w, that start from the logarithms of some values."""
    like = next(iter(w.values()))
    return {f"log_{k}": torch.tensor(math.log(v), dtype=like.dtype, device=like.device, requires_grad=True) for k, v in values.items()}
