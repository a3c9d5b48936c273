"""The closed-form ridge head: adaptation by solving a least-squares problem (R2D2; Bertinetto et al., ICLR 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.errors import ConfigError, MethodError
from headstart.inner.head_rule import HeadRule
from headstart.inner.linear_head import LinearHead
from headstart.inner.problem import InnerProblem
from headstart.inner.solver import SOLVERS, Solver
from headstart.types import Params, ParamsLike


@SOLVERS.register("ridge")
@dataclass(frozen=True)
class Ridge(Solver):
    """Adapts a linear head to the minimiser of ``Σ‖W z + b − y‖² + l2 (‖W‖² + ‖b‖²)`` over the support examples.

    The first weights play no part. For class labels the targets are one-hot, and the regularisation and the scale of the
    logits are meta-learned (equations 4 to 6 of the paper).

    Args:
        l2: the regularisation, above 0; learned from this value on.
        scale: the factor on the logits; learned from this value on. Not used for real targets.

    Raises:
        ConfigError: a value is out of its range.

    Example:
        >>> sorted(Ridge(l2=1.0).parameters({"w": torch.zeros(1)}))
        ['log_l2', 'log_scale']
        >>> import headstart as hs
        >>> from headstart.inner.linear_head import LinearHead
        >>> learner = hs.r2d2(hs.models.mlp(features=4, ways=2))
        >>> x, y = torch.randn(2, 6, 4), torch.randint(2, (2, 6))
        >>> problem = next(iter(learner.problems(hs.TaskBatch(x, y, x, y))))
        >>> learner.inner.coefficients(problem, LinearHead.of(problem)).shape  # six support examples, two classes
        torch.Size([1, 6, 2])
    """

    steps: ClassVar[int] = 1  # type: ignore[misc]
    l2: float = 1.0
    scale: float = 10.0

    closed_form: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("l2", "scale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}={value!r}: it must be above 0 and finite")

    def with_steps(self, steps: int | None) -> Self:
        """Itself: a closed form has no steps to choose."""
        if steps not in (None, 1):
            raise ConfigError(f"steps={steps!r}: the ridge head is a closed form and has no inner steps; leave steps out")
        return self

    def parameters(self, w: ParamsLike) -> Params:
        """The logarithms of the regularisation and of the scale."""
        like = next(iter(w.values()))
        new = lambda v: torch.tensor(math.log(v), dtype=like.dtype, device=like.device, requires_grad=True)  # noqa: E731
        return {"log_l2": new(self.l2), "log_scale": new(self.scale)}

    def iterates(self, problem: InnerProblem, create_graph: bool) -> Iterator[Params]:
        """None: a closed form takes no steps.

        Raises:
            MethodError: always.
        """
        raise MethodError("Ridge() is a closed form without inner steps, so there is no path; use GradientDescent()")

    def coefficients(self, problem: InnerProblem, head: LinearHead) -> Tensor:
        """(T, S, C) solution of ``(K_SS + l2 Ω⁻¹) A = Y``, Ω being the support weights times S."""
        K_TSS = head.kernel(head.z_TSD)
        y = problem.tasks.support.y
        ways = head.weight_TCD.shape[-2]
        labels = F.one_hot(y.clamp_min(0), ways) if not y.is_floating_point() else y.reshape(*y.shape[:2], ways)
        targets = labels.to(K_TSS.dtype)
        l2 = problem.theta["log_l2"].exp().to(K_TSS.dtype)
        size = K_TSS.shape[-1]
        if isinstance(head.share, float):
            return torch.linalg.solve(K_TSS + l2 * torch.eye(size, dtype=K_TSS.dtype, device=K_TSS.device), targets)
        # Weighted: √Ω (√Ω K √Ω + l2)⁻¹ √Ω Y, which leaves examples of weight zero out without dividing by it.
        present = (head.share > 0).sum(-2, keepdim=True)
        root = (head.share * present).sqrt()
        inside = root * K_TSS * root.mT + l2 * torch.eye(size, dtype=K_TSS.dtype, device=K_TSS.device)
        return root * torch.linalg.solve(inside, root * targets)

    def sample_space_refusal(self, problem: InnerProblem) -> str:
        """ "", or an error: a closed form has no other way.

        Raises:
            MethodError: what adapts is not a linear head.
        """
        LinearHead.of(problem)
        return ""

    def sample_space(self, problem: InnerProblem) -> Iterator[Tensor]:
        """(T, Q, C) query outputs before and after adaptation."""
        head = LinearHead.of(problem)
        yield head.outputs(head.z_TQD)
        yield self._scale(problem) * (head.kernel(head.z_TQD) @ self.coefficients(problem, head))

    def sample_space_weights(self, problem: InnerProblem) -> Params:
        """w of every task, by the model's names; the scale is multiplied in."""
        head = LinearHead.of(problem)
        found = head.weights(0.0, -self._scale(problem) * self.coefficients(problem, head))
        return dict(zip(problem.head_names, found, strict=True))

    def head_rule(self, names: Sequence[str], theta: ParamsLike) -> HeadRule:
        """The regularisation and the scale that it has learned."""
        l2, scale = (float(theta[name].detach().double().exp()) for name in ("log_l2", "log_scale"))
        return HeadRule(l2, scale=scale)

    @staticmethod
    def _scale(problem: InnerProblem) -> Tensor | float:
        scaled = problem.loss.kind_for(problem.tasks.support.y) == "classes"
        return problem.theta["log_scale"].exp() if scaled else 1.0
