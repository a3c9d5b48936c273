"""The closed-form ridge head: adaptation by solving a least-squares problem (R2D2; Bertinetto et al., ICLR 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.errors import refuses
from headstart.inner.closed_form import ClosedForm, check_positive, logarithms
from headstart.inner.head_rule import HeadRule
from headstart.inner.linear_head import LinearHead
from headstart.inner.problem import InnerProblem
from headstart.inner.solver import SOLVERS
from headstart.types import Params, ParamsLike


@SOLVERS.register("ridge")
@dataclass(frozen=True)
class Ridge(ClosedForm):
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

    l2: float = 1.0
    scale: float = 10.0

    @refuses
    def __post_init__(self) -> None:
        check_positive(self, "l2", "scale")

    def parameters(self, w: ParamsLike) -> Params:
        """The logarithms of the regularisation and of the scale."""
        return logarithms(w, l2=self.l2, scale=self.scale)

    def coefficients(self, problem: InnerProblem, head: LinearHead) -> Tensor:
        """(T, S, C) solution of ``(K_SS + l2 Ω⁻¹) A = Y``, Ω being the support weights times S."""
        K_TSS = head.gram()
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

    def scale_of(self, problem: InnerProblem) -> Tensor | float:
        """The learned factor on the logits; 1 for real targets."""
        scaled = problem.loss.kind_for(problem.tasks.support.y) == "classes"
        return problem.theta["log_scale"].exp() if scaled else 1.0

    def head_rule(self, names: Sequence[str], theta: ParamsLike) -> HeadRule:
        """The regularisation and the scale that it has learned."""
        l2, scale = (float(theta[name].detach().double().exp()) for name in ("log_l2", "log_scale"))
        return HeadRule(l2, scale=scale)
