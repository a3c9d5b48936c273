"""The support sets, or the query sets, of tasks: rows of a pool of examples, with their labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

NO_LABEL = -100
"""The label of an example, or of a position of one, that has none; the number that torch's losses ignore."""


@dataclass(frozen=True, eq=False)
class Side:
    """The support sets, or the query sets, of T tasks, as rows of a pool.

    Args:
        index: (T, n) which examples of the pool.
        y: (T, n) class indices, (T, n, …) class indices of positions, or (T, n) or (T, n, …) real targets; -100 for no label.
        weight: (T, n) weights of the examples in a task's mean loss, summing to one; None for the plain mean. 0 leaves an
            example out.
        blank, bare, padded: whether some label is missing, a task has none, an example has weight zero; found when tasks are made.

    Example:
        >>> import torch
        >>> side = Side(torch.tensor([[0, 1], [4, 5]]), torch.tensor([[0, 1], [1, 0]]))  # two tasks of two examples
        >>> side.count, side.map(lambda t: t[:1]).y.tolist()
        (4, [[0, 1]])
    """

    index: Tensor
    y: Tensor
    weight: Tensor | None = None
    blank: bool = False
    bare: bool = False
    padded: bool = False

    @property
    def count(self) -> int:
        """How many examples are there, over all tasks."""
        return self.index.numel() if self.weight is None else int((self.weight > 0).sum())

    def map(self, function: Callable[[Tensor], Tensor]) -> Side:
        """The side with a function applied to each of its tensors."""
        weight = None if self.weight is None else function(self.weight)
        return replace(self, index=function(self.index), y=function(self.y), weight=weight)
