"""The support-vector head: adaptation by a multi-class SVM (MetaOptNet; Lee et al., CVPR 2019)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.errors import MethodError, refuses
from headstart.inner.closed_form import ClosedForm, check_positive, logarithms
from headstart.inner.linear_head import LinearHead
from headstart.inner.problem import InnerProblem
from headstart.inner.simplex_qp import solve
from headstart.inner.solver import SOLVERS
from headstart.types import Params, ParamsLike


@SOLVERS.register("svm")
@dataclass(frozen=True)
class SVM(ClosedForm):
    """Adapts a linear head to the multi-class support-vector machine of Crammer and Singer on the support examples.

    It minimises ``½ (‖W‖² + ‖b‖²) + C Σ_n ξ_n`` under ``w_y·z_n − w_k·z_n ≥ 1 − [k = y_n] − ξ_n`` (Lee et al., CVPR 2019, section 3.2;
    MetaOptNet-SVM). The dual is solved to convergence, in double precision, and its solution is differentiated by its optimality
    conditions, so the meta-gradient is exact wherever the set of support vectors does not change. The scale of the logits is meta-learned.

    Args:
        C: the price of a violated margin, above 0; weights of examples multiply it.
        scale: the factor on the logits; learned from this value on.

    Raises:
        ConfigError: a value is out of its range.

    Example:
        >>> import headstart as hs
        >>> learner = hs.metaoptnet(hs.models.mlp(features=4, ways=3))
        >>> learner.adapt(torch.randn(6, 4), torch.tensor([0, 1, 2] * 2)).predict(torch.randn(5, 4)).shape
        torch.Size([5])
    """

    C: float = 0.1
    scale: float = 10.0

    @refuses
    def __post_init__(self) -> None:
        check_positive(self, "C", "scale")

    def parameters(self, w: ParamsLike) -> Params:
        """The logarithm of the scale."""
        return logarithms(w, scale=self.scale)

    def coefficients(self, problem: InnerProblem, head: LinearHead) -> Tensor:
        """(T, S, C) dual variables α, which are at most C for an example's own class and at most 0 for another, and sum to 0.

        With ``α_n = C_n (e_y − u_n)`` every u_n is in a simplex, and the dual is a program of :mod:`headstart.inner.simplex_qp`.

        Raises:
            MethodError: the targets are no class indices.
        """
        y_TS = problem.tasks.support.y
        if y_TS.is_floating_point() or problem.loss.kind_for(y_TS) != "classes":
            raise MethodError("SVM() tells classes apart, but the targets are no class indices; use Ridge(), or GradientDescent()")
        z_TSD = head.z_TSD.double()  # before the product: one that was rounded may have negative eigenvalues
        K_TSS = replace(head, z_TSD=z_TSD).kernel(z_TSD)
        own_TSC = F.one_hot(y_TS.clamp_min(0), head.weight_TCD.shape[-2]).double()
        price_TS1 = self._price(head, y_TS)
        K_TSS = price_TS1 * K_TSS * price_TS1.mT
        fixed = K_TSS.detach()
        found = solve(fixed, price_TS1 * own_TSC - fixed @ own_TSC)
        apart = found.u - own_TSC
        alpha = price_TS1 * (own_TSC - found.moved(fixed @ apart - K_TSS @ apart))
        return alpha.to(head.z_TSD.dtype)

    def scale_of(self, problem: InnerProblem) -> Tensor | float:
        """The learned factor on the logits."""
        return problem.theta["log_scale"].exp()

    def _price(self, head: LinearHead, y_TS: Tensor) -> Tensor:
        """(T, S, 1) C of each example: weights are relative to their mean over those that count."""
        if isinstance(head.share, float):
            return torch.full_like(y_TS, self.C, dtype=torch.float64).unsqueeze(-1)
        share = head.share.double()
        return self.C * share * (share > 0).sum(-2, keepdim=True)
