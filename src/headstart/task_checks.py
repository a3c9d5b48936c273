"""Checks of what a user gives as tasks, at the boundary: shapes, labels and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from headstart.errors import TaskError
from headstart.types import Tree


def leading(x_name: str, x: Tree, y_name: str, y: Tensor) -> tuple[int, int]:
    """(T, examples), which the examples and the labels must share."""
    leaves = tree_leaves(x)
    if not leaves or not all(isinstance(leaf, Tensor) and leaf.dim() >= 2 for leaf in leaves):
        raise TaskError(f"{x_name} must be a tensor (tasks, examples, …), or tuples or dictionaries of such; got {_describe(x)}")
    if not isinstance(y, Tensor) or y.dim() < 2:
        raise TaskError(f"{y_name} must be a tensor (tasks, examples); got {_describe(y)}. One task alone: add a dimension with y[None]")
    for leaf in leaves:
        if leaf.shape[:2] != y.shape[:2]:
            raise TaskError(
                f"{x_name} is (tasks, examples, …) = {tuple(leaf.shape)} but {y_name} is {tuple(y.shape)};"
                " the first two dimensions must be the same"
            )
    return int(y.shape[0]), int(y.shape[1])


def _describe(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def checked_task_weight(weight: Tensor | None, tasks: int) -> Tensor | None:
    """The weights of the tasks, scaled to a mean of one."""
    if weight is None:
        return None
    if weight.shape != (tasks,):
        raise TaskError(f"task_weight has shape {tuple(weight.shape)}, but there are {tasks} tasks; give one weight each")
    if not bool(torch.isfinite(weight).all()) or bool((weight < 0).any()) or not bool(weight.any()):
        raise TaskError("task_weight holds negative, NaN or infinite values, or zeros only; weights are 0 or more")
    return weight / weight.mean()


def checked_weight(side: str, weight: Tensor | None, index: Tensor) -> Tensor | None:
    """The weights of each task, scaled to sum to one."""
    if weight is None:
        return None
    if weight.shape != index.shape:
        raise TaskError(f"{side}_weight has shape {tuple(weight.shape)}, but there are {tuple(index.shape)} (tasks, examples)")
    if not bool(torch.isfinite(weight).all()) or bool((weight < 0).any()):
        raise TaskError(f"{side}_weight holds negative, NaN or infinite values; weights are 0 or more")
    total = weight.sum(1, keepdim=True)
    if bool((total == 0).any()):
        raise TaskError(f"{side}_weight of task {int((total == 0).nonzero()[0, 0])} is zero everywhere; leave the task out")
    return weight / total


def as_tensors(given: Any) -> Any:
    """Tensors of what may be arrays or lists of examples; tuples and dictionaries of several inputs stay so.

    Real numbers that are no tensors get torch's default type.

    Example:
        >>> as_tensors([[1, 2], [3, 4]]).shape, as_tensors([0.5]).dtype
        (torch.Size([2, 2]), torch.float32)
    """
    if isinstance(given, torch.Tensor):
        return given
    if isinstance(given, tuple | dict):
        return tuple(as_tensors(v) for v in given) if isinstance(given, tuple) else {k: as_tensors(v) for k, v in given.items()}
    if isinstance(given, list) and given and isinstance(given[0], torch.Tensor):
        return torch.stack(given)
    try:
        found = torch.from_numpy(np.array(given))
    except (TypeError, ValueError) as error:
        raise TaskError(f"examples and labels are tensors, arrays or lists of numbers, and not {type(given).__name__}: {error}") from error
    return found.to(torch.get_default_dtype()) if found.is_floating_point() else found


def one_task(x: Any, y: Any) -> tuple[Tree, Tensor]:
    """The examples and labels of one task, as tensors."""
    x, y = as_tensors(x), as_tensors(y)
    if not isinstance(y, Tensor) or y.dim() < 1 or any(len(v) != len(y) for v in tree_leaves(x)):
        raise TaskError("adapt() takes one task: (S, …) examples and (S,) labels; for many tasks use trajectory() or meta_gradient()")
    return x, y
