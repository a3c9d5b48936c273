"""The networks by name, built for examples of a shape."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

from torch import nn

from headstart.errors import ConfigError
from headstart.models.convnets import conv4, resnet12
from headstart.models.perceptron import mlp, projection
from headstart.models.pretrained import pretrained
from headstart.models.recipe import MODELS

HIDDEN = (40, 40)
"""Widths of an mlp where none are given."""


@MODELS.register("auto")
def _auto(
    shape: tuple[int, ...],
    outputs: int,
    filters: int = 64,
    hidden: tuple[int, ...] = HIDDEN,
    by_class: bool = False,
    **options: Any,
) -> nn.Module:
    if len(shape) == 3:
        return _conv4(shape, outputs, filters, **options)
    if by_class and tuple(hidden) == HIDDEN:
        return projection(math.prod(shape), outputs, **options)
    return _mlp(shape, outputs, hidden, **options)


@MODELS.register("conv4")
def _conv4(
    shape: tuple[int, ...], outputs: int, filters: int = 64, hidden_head: int = 0, head: str = "linear", context: int = 0
) -> nn.Module:
    channels, size = _picture("conv4", shape)
    return conv4(channels, outputs, size, filters, hidden_head, head, context)


@MODELS.register("resnet12")
def _resnet12(
    shape: tuple[int, ...],
    outputs: int,
    widths: tuple[int, int, int, int] = (64, 128, 256, 512),
    dropout: float = 0.0,
    head: str = "linear",
) -> nn.Module:
    return resnet12(_picture("resnet12", shape)[0], outputs, widths, dropout, head)


@MODELS.register("mlp")
def _mlp(shape: tuple[int, ...], outputs: int, hidden: tuple[int, ...] = HIDDEN, head: str = "linear", context: int = 0) -> nn.Module:
    return _flattened(shape, mlp(math.prod(shape), outputs, tuple(hidden), head, context))


@MODELS.register("projection")
def _projection(shape: tuple[int, ...], outputs: int, head: str = "linear") -> nn.Module:
    return _flattened(shape, projection(math.prod(shape), outputs, head))


MODELS.register("transformers")(pretrained)


def _flattened(shape: tuple[int, ...], flat: nn.Sequential) -> nn.Module:
    """A network of vectors for examples of any shape; its head keeps a name that is not a number."""
    names = OrderedDict({"0": nn.Flatten(), **{str(int(n) + 1) if n.isdigit() else n: m for n, m in flat.named_children()}})
    return flat if len(shape) == 1 else nn.Sequential(names)


def _picture(name: str, shape: tuple[int, ...]) -> tuple[int, tuple[int, int]]:
    if len(shape) != 3:
        raise ConfigError(f"model={name!r} takes pictures, but these examples are {shape}; use --model mlp")
    return shape[0], (shape[1], shape[2])
