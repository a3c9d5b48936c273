"""The losses an inner or outer loop minimises: one number per example, and its derivative in the logits where it is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.errors import ConfigError, TaskError


@dataclass(frozen=True)
class Loss:
    """A loss per example.

    Args:
        name: how it is called in messages and configs.
        per_example: (…, C) logits and (…) or (…, C) targets to (…) losses.
        residual: the same arguments to the (…, C) derivative in the logits; None where only autograd knows it.
            The sample-space head needs it.
        classification: whether targets are class indices, so that an accuracy exists.
    """

    name: str
    per_example: Callable[[Tensor, Tensor], Tensor]
    residual: Callable[[Tensor, Tensor], Tensor] | None = None
    classification: bool = True

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        # Half-precision models keep their weights in half; the loss is always taken in single precision or better.
        return self.per_example(logits if logits.dtype == torch.float64 else logits.float(), target)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    flat = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), target.reshape(-1), reduction="none")
    return flat.reshape(target.shape)


def _cross_entropy_residual(logits: Tensor, target: Tensor) -> Tensor:
    return logits.softmax(-1) - F.one_hot(target, logits.shape[-1]).to(logits.dtype)


def _targets(logits: Tensor, target: Tensor) -> Tensor:
    """Targets in the shape of the logits: class indices become one-hot rows, scalars a last dimension of one."""
    fits = target.shape in (logits.shape, logits.shape[:-1]) and (target.shape == logits.shape or logits.shape[-1] == 1)
    if target.is_floating_point() and not fits:
        raise TaskError(
            f"targets have shape {tuple(target.shape)} and outputs {tuple(logits.shape)}: give one target per output, or build the"
            f" model with as many outputs as there are targets"
        )
    if not target.is_floating_point():
        return F.one_hot(target, logits.shape[-1]).to(logits.dtype)
    return (target if target.dim() == logits.dim() else target.unsqueeze(-1)).to(logits.dtype)


def _squared_error(logits: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (logits - _targets(logits, target)).square().sum(-1)


def _squared_error_residual(logits: Tensor, target: Tensor) -> Tensor:
    return logits - _targets(logits, target)


cross_entropy = Loss("cross_entropy", _cross_entropy, _cross_entropy_residual)
squared_error = Loss("squared_error", _squared_error, _squared_error_residual, classification=False)
LOSSES = {loss.name: loss for loss in (cross_entropy, squared_error)}


def resolve(loss: str | Loss | Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """The :class:`Loss` meant by a name or by a function of (logits, target) that returns one value per example."""
    if isinstance(loss, Loss):
        return loss
    if callable(loss):
        return Loss(getattr(loss, "__name__", "custom"), loss)
    if loss in LOSSES:
        return LOSSES[loss]
    raise ConfigError(f"loss={loss!r} is not known; use one of {sorted(LOSSES)}, or a function (logits, target) -> loss per example")
