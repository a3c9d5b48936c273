"""Upper bounds that are proven for a linear head, in w, for the φ that the model has: the features are held fixed.

With features z̃ = (z, 1), example weights s that sum to one, ``G = Σ s z̃ z̃ᵀ`` and p = softmax(W z̃):

- ``∇²_w L_S = λI + Σ s (diag p − ppᵀ) ⊗ z̃z̃ᵀ``. For a vector v, ``vᵀ(diag p − ppᵀ)v`` is the variance of a variable with values in
  an interval of length ``max v − min v ≤ √2 ‖v‖``, at most a quarter of its square: the norm is at most 1/2.
  So ``L_w ≤ λ + ½ λ_max(G)``, and ``μ ≥ λ``.
- The third derivative of log-sum-exp along v is the third central moment of that variable. Of all variables on an interval of
  length R the largest has two values and is ``max_t t(1−t)(1−2t) R³ = R³/(6√3)``; with R = √2 that is **√6/9**, and it is attained
  (two classes, v = (1, −1)/√2, p = (½ − √3/6, ½ + √3/6)). The norm of a symmetric form is attained on the diagonal (Banach), so √6/9
  bounds it for three different directions, and ``ρ ≤ (√6/9) max‖z̃‖ λ_max(G)`` by the Cauchy–Schwarz inequality.
- ``‖p − y‖ ≤ √2``, so ``M_w ≤ √2 min(Σ s‖z̃‖, √λ_max(G))`` with the query features.
- Squared error has the constant Hessian ``λI + I ⊗ G``: ``L_w = λ + λ_max(G)``, ρ = 0; it has no Lipschitz constant M.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.measuring.access import OneTask
from headstart.tasks import Side

SOFTMAX_CURVATURE = 0.5
"""sup ‖diag p − ppᵀ‖ over probability vectors p; attained."""
SOFTMAX_THIRD = math.sqrt(6) / 9
"""sup of the norm of the third derivative of log-sum-exp; attained."""


@dataclass(frozen=True)
class HeadBounds:
    """Proven constants of one task's linear head, in w with φ fixed.

    Args:
        mu: the inner Hessian has no smaller eigenvalue, at any w.
        L: nor a larger one; of L_S, with its regulariser.
        L_query: the same for L_D, times the task's weight.
        rho: Lipschitz constant of the inner Hessian in w.
        M: Lipschitz constant of L_D in w, times the task's weight; None where there is none.
    """

    mu: float
    L: float
    L_query: float
    rho: float
    M: float | None


def head_bounds(problem: OneTask, regularisation: float) -> HeadBounds | None:
    """The bounds for the one task of a problem, or None: they hold for linear heads with cross-entropy or squared error.

    Args:
        problem: with one task.
        regularisation: λ.

    Source:
        The module's own derivation, above.
    """
    head, loss = problem.head, problem.known_loss
    if head is None or loss is None:
        return None
    lam, bias = regularisation, head.bias_TC is not None
    (z_S, s_S), (z_Q, s_Q) = _features(head.z_TSD, problem.task.support, bias), _features(head.z_TQD, problem.task.query, bias)
    if problem.task.weight is not None:  # in the meta-objective L_D counts by the task's weight
        s_Q = s_Q * problem.task.weight.to(s_Q)
    top, top_query = _top(z_S, s_S), _top(z_Q, s_Q)
    if loss == "squared_error":
        return HeadBounds(lam, lam + top, top_query, 0.0, None)
    longest = float(z_S[s_S > 0].norm(dim=1).max())
    mean = float((s_Q * z_Q.norm(dim=1)).sum())
    return HeadBounds(
        mu=lam,
        L=lam + SOFTMAX_CURVATURE * top,
        L_query=SOFTMAX_CURVATURE * top_query,
        rho=SOFTMAX_THIRD * longest * top,
        M=math.sqrt(2) * min(mean, math.sqrt(float(s_Q.sum()) * top_query)),
    )


def _features(z_TnD: Tensor, side: Side, bias: bool) -> tuple[Tensor, Tensor]:
    """(n, D+1) features of the one task with a one for the bias, if there is one, and their (n,) weights, float64."""
    z = z_TnD[0].detach().double()
    s = z.new_full((len(z),), 1 / len(z)) if side.weight is None else side.weight[0].to(z)
    if bias:
        z = torch.cat([z, z.new_ones(len(z), 1)], 1)
    return z, s


def _top(z: Tensor, s: Tensor) -> float:
    """λ_max(Σ s z̃ z̃ᵀ), from the smaller of the two Gram matrices."""
    rows = s.sqrt()[:, None] * z
    return float(torch.linalg.eigvalsh(rows @ rows.mT if len(rows) < rows.shape[1] else rows.mT @ rows)[-1])
