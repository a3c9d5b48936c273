"""The losses there are: the library's own, torch's own, and what a name or a function means."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from headstart.errors import ConfigError
from headstart.loss import Kind, Loss
from headstart.registry import Registry
from headstart.tasks import NO_LABEL
from headstart.types import Linearised

__all__ = ["LOSSES", "Kind", "Loss", "binary_cross_entropy", "cross_entropy", "resolve", "squared_error"]

LOSSES: Registry[Loss] = Registry("loss")

# -- the library's own -------------------------------------------------------------------------------------------------------


def _cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs, y, reduction="none")


def _softmax(outputs: Tensor) -> Tensor:
    """torch's kernel is three times slower on a CPU where the last dimension holds a few classes."""
    if outputs.device.type != "cpu" or outputs.shape[-1] > 16:
        return outputs.softmax(-1)
    raised = (outputs - outputs.amax(-1, keepdim=True)).exp()
    return raised / raised.sum(-1, keepdim=True)


def _cross_entropy_line(outputs: Tensor, y: Tensor) -> Linearised:
    p = _softmax(outputs)

    def product(v: Tensor) -> Tensor:
        own = p * v
        return own.addcmul_(p, own.sum(-1, keepdim=True), value=-1)

    if y.is_floating_point():  # a probability for each class
        total = y.sum(-1, keepdim=True)
        return p * total - y, lambda v: product(v) * total
    own = y.clamp_min(0).unsqueeze(-1)
    return p.scatter_add(-1, own, p.new_full((), -1.0).expand(own.shape)), product


def _squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    error = 0.5 * (outputs - y).square()
    return error.sum(-1) if error.dim() > 1 else error


def _squared_error_line(outputs: Tensor, y: Tensor) -> Linearised:
    if not y.is_floating_point() and outputs.shape[-1] > 1:
        y = F.one_hot(y, outputs.shape[-1])
    return outputs - y.reshape(outputs.shape).to(outputs.dtype), lambda v: v


def _binary_cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    values = F.binary_cross_entropy_with_logits(outputs, y, reduction="none")
    return values.flatten(1).mean(1) if values.dim() > 1 else values


def _binary_line(outputs: Tensor, y: Tensor) -> Linearised:
    p, share = outputs.sigmoid(), 1 / outputs.shape[-1]
    return (p - y.reshape(outputs.shape).to(outputs.dtype)) * share, lambda v: v * p * (1 - p) * share


def _residual(line: Callable[..., Linearised], outputs: Tensor, y: Tensor) -> Tensor:
    return line(outputs, y)[0]


def _with_line(name: str, per_example: Callable[[Tensor, Tensor], Tensor], line: Callable[..., Linearised], kind: Kind) -> Loss:
    """A loss whose residual is known with its derivative."""
    return Loss(name, per_example, functools.partial(_residual, line), kind, line=line)


cross_entropy = _with_line("cross_entropy", _cross_entropy, _cross_entropy_line, "classes")
squared_error = _with_line("squared_error", _squared_error, _squared_error_line, "real")
binary_cross_entropy = _with_line("binary_cross_entropy", _binary_cross_entropy, _binary_line, "binary")
for _own in (cross_entropy, squared_error, binary_cross_entropy):
    LOSSES.register(_own.name)(lambda _own=_own: _own)

# -- torch's own -------------------------------------------------------------------------------------------------------------

_KINDS: dict[Any, tuple[Kind, str]] = {
    **dict.fromkeys((nn.CrossEntropyLoss, F.cross_entropy, nn.MultiMarginLoss, F.multi_margin_loss), ("classes", "logits")),
    **dict.fromkeys((nn.NLLLoss, F.nll_loss), ("classes", "log_probabilities")),
    **dict.fromkeys((nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits), ("binary", "logits")),
    **dict.fromkeys((nn.MultiLabelSoftMarginLoss, F.multilabel_soft_margin_loss), ("binary", "logits")),
    **dict.fromkeys((nn.BCELoss, F.binary_cross_entropy), ("binary", "probabilities")),
    **dict.fromkeys((nn.MSELoss, F.mse_loss, nn.L1Loss, F.l1_loss, nn.SmoothL1Loss, F.smooth_l1_loss), ("real", "logits")),
    **dict.fromkeys((nn.HuberLoss, F.huber_loss, nn.PoissonNLLLoss, F.poisson_nll_loss), ("real", "logits")),
}


def resolve(loss: str | Loss | Callable[..., Any]) -> Loss:
    """The :class:`Loss` meant by a name, a criterion of torch's, or a function of (outputs, targets) of flat examples.

    Raises:
        ConfigError: the name is not known, or the criterion reduces.

    Example:
        >>> resolve(nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)).kind
        'classes'
        >>> resolve(F.mse_loss).kind
        'real'
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        return LOSSES.build(loss) if loss in LOSSES else resolve(LOSSES.find(loss))
    if not callable(loss):
        raise ConfigError(
            f"loss={loss!r} is not known; use one of {', '.join(LOSSES)}, or a function (outputs, targets) -> loss per example"
        )
    if isinstance(loss, type):
        made: Any = loss(reduction="none") if issubclass(loss, nn.Module) else loss()
        return resolve(made)
    base = loss.func if isinstance(loss, functools.partial) else type(loss) if isinstance(loss, nn.Module) else loss
    name = getattr(base, "__name__", type(base).__name__)
    reduction = getattr(loss, "reduction", None) if isinstance(loss, nn.Module) else None
    keywords = loss.keywords if isinstance(loss, functools.partial) else {}
    reduction = keywords.get("reduction", reduction)
    if reduction not in (None, "none"):
        raise ConfigError(
            f"loss={name}(reduction={reduction!r}) reduces over the examples, but headstart takes the mean over each task's own; give"
            f' {name}(…, reduction="none")'
        )
    function = loss
    if not isinstance(loss, nn.Module) and "reduction" not in keywords and _has_reduction(loss):
        function = functools.partial(loss, reduction="none")
    kind, scores = _KINDS.get(base, (None, "logits"))
    ignore = getattr(loss, "ignore_index", keywords.get("ignore_index", NO_LABEL))
    return replace(Loss(name, function, None, kind), scores=scores, ignore=int(ignore))  # type: ignore[arg-type]


def _has_reduction(function: Callable[..., Any]) -> bool:
    try:
        return "reduction" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
