"""Meta-curvature: gradients are transformed by learned matrices before each inner step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.inner.descent import GradientDescent
from headstart.inner.solver import SOLVERS
from headstart.types import Params, ParamsLike

AXES = ("out", "in", "filter")


@SOLVERS.register("metacurvature")
@dataclass(frozen=True)
class MetaCurvature(GradientDescent):
    """Gradient descent along gradients that learned matrices transform (MC2 of Park and Oliva, NeurIPS 2019, section 3.2).

    The gradient of a weight, seen as a tensor of outputs × inputs × filter, is multiplied along each of these by a matrix of its own,
    ``G ×₃ M_f ×₂ M_i ×₁ M_o``; that of a vector, such as a bias, number by number. All begin as the identity, which is plain descent.

    Args:
        steps, lr, l2, momentum, prox, clip: as in :class:`~headstart.GradientDescent`; a limit holds for the transformed gradient.

    Raises:
        ConfigError: a value is out of its range.

    Example:
        >>> own = MetaCurvature(steps=1, lr=0.1).parameters({"conv": torch.zeros(4, 2, 3, 3), "bias": torch.zeros(4)})
        >>> {name: tuple(matrix.shape) for name, matrix in own.items()}
        {'out.conv': (4, 4), 'in.conv': (2, 2), 'filter.conv': (9, 9), 'each.bias': (4,)}
    """

    def parameters(self, w: ParamsLike) -> Params:
        """An identity for each axis of each weight, and ones for each vector."""
        super().parameters(w)
        found: Params = {}
        for name, v in w.items():
            if v.dim() < 2:
                found[f"each.{name}"] = torch.ones_like(v, requires_grad=True)
                continue
            sizes = _as_three(v.unsqueeze(0)).shape[1:]
            for axis, size in zip(AXES, sizes, strict=True):
                if size > 1 or axis != "filter":
                    found[f"{axis}.{name}"] = torch.eye(size, dtype=v.dtype, device=v.device, requires_grad=True)
        return found

    def update(self, m: int, w: Params, state: Params, gradient: Params, theta: ParamsLike) -> tuple[Params, Params]:
        """``(w_{m+1}, state_{m+1})`` from w_m, the state and ∇_w L_S(w_m, φ)."""
        return super().update(m, w, state, {k: _transformed(k, g, theta) for k, g in gradient.items()}, theta)


def _transformed(name: str, g: Tensor, theta: ParamsLike) -> Tensor:
    """(T, …) a gradient, multiplied along its axes."""
    if f"each.{name}" in theta:
        return theta[f"each.{name}"] * g
    found = torch.einsum("oO,tOif->toif", theta[f"out.{name}"], _as_three(g))
    found = torch.einsum("iI,toIf->toif", theta[f"in.{name}"], found)
    if f"filter.{name}" in theta:
        found = torch.einsum("fF,toiF->toif", theta[f"filter.{name}"], found)
    return found.reshape(g.shape)


def _as_three(v: Tensor) -> Tensor:
    """(T, outputs, inputs, filter) of a (T, outputs, inputs, …) tensor."""
    return v.flatten(3) if v.dim() > 3 else v.unsqueeze(-1)
