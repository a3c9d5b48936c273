"""Leaves of a graph, and gradients into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headstart.types import Params, ParamsLike


def cotangents(outputs: Sequence[Tensor], inputs: Sequence[Tensor], grads: Sequence[Tensor] | None = None, **kw: Any) -> tuple[Tensor, ...]:
    """``torch.autograd.grad`` with zeros where an output does not depend on an input."""
    kept = [i for i, o in enumerate(outputs) if o.requires_grad]
    if not kept or not inputs:
        return tuple(torch.zeros_like(x) for x in inputs)
    chosen = None if grads is None else [grads[i] for i in kept]
    return torch.autograd.grad([outputs[i] for i in kept], inputs, chosen, allow_unused=True, materialize_grads=True, **kw)


def leaves(tensors: ParamsLike) -> Params:
    """The same values as new leaves of a graph that ask for a gradient."""
    return {k: v.detach().requires_grad_() for k, v in tensors.items()}


def plus(a: Params, b: Params) -> Params:
    """The sum, name by name."""
    return {k: a[k] + b[k] for k in a}
