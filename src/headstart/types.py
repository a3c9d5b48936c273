"""Type aliases, and the letters that name tensor dimensions everywhere in headstart.

T tasks · S support examples · Q query examples · C ways (classes) · D features · P examples in a pool · N inner steps

A name such as ``logits_TQC`` has dimensions (tasks, query examples, ways).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Params = dict[str, Tensor]
"""Parameters by their name in the model."""

Tree = Any
"""A tensor, or tuples, lists and dictionaries of tensors, as a model takes them."""

ParamsLike = Mapping[str, Tensor]
Linearised = tuple[Tensor, Callable[[Tensor], Tensor]]
"""A residual, and the products of its derivative with directions."""
