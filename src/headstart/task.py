"""A batch of few-shot tasks, validated once, at the boundary."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from headstart.errors import TaskError
from headstart.types import Tree


@dataclass(frozen=True, eq=False, init=False)
class TaskBatch:
    """T tasks, each with S support and Q query examples.

    Args:
        support_x: (T, S, …) examples; for models with several inputs, a tuple or dictionary of such tensors.
        support_y: (T, S) class indices, or (T, S) or (T, S, k) real targets.
        query_x, query_y: the same with Q examples.
        support_weight, query_weight: (T, S) and (T, Q) weights of the examples in a task's mean loss; 0 leaves an example
            out, which is how tasks of unequal sizes share a batch (see :meth:`ragged`).
        task_weight: (T,) weights of the tasks in the meta-objective, 0 or more; they are scaled to a mean of one. None for the
            plain mean over tasks.

    Inside, the examples are one pool and the tasks are rows of indices into it, so that tasks which share
    examples (see :meth:`from_pool`) share the work on them.

    Raises:
        TaskError: shapes do not fit, labels are negative, values are not finite, or a task has no weight left.

    Example:
        >>> x, y = torch.randn(4, 10, 3), torch.randint(5, (4, 10))
        >>> TaskBatch(x, y, x, y)
        TaskBatch(4 tasks, 10 support and 10 query examples each, 5 ways)
    """

    examples: Tree
    support_index: Tensor
    support_y: Tensor
    query_index: Tensor
    query_y: Tensor
    support_weight: Tensor | None
    query_weight: Tensor | None
    task_weight: Tensor | None

    def __init__(
        self,
        support_x: Tree,
        support_y: Tensor,
        query_x: Tree,
        query_y: Tensor,
        *,
        support_weight: Tensor | None = None,
        query_weight: Tensor | None = None,
        task_weight: Tensor | None = None,
    ) -> None:
        support_shape = _leading("support_x", support_x, "support_y", support_y)
        query_shape = _leading("query_x", query_x, "query_y", query_y)
        if support_shape[0] != query_shape[0]:
            raise TaskError(f"support has {support_shape[0]} tasks and query {query_shape[0]}; give both the same number")
        support_leaves, spec = tree_flatten(support_x)
        query_leaves, query_spec = tree_flatten(query_x)
        if spec != query_spec:
            raise TaskError("support_x and query_x are built differently; give both as tensors, or as the same tuple or dictionary")
        for s, q in zip(support_leaves, query_leaves, strict=True):
            if s.shape[2:] != q.shape[2:] or s.dtype != q.dtype:
                raise TaskError(
                    f"support examples are {tuple(s.shape[2:])} {s.dtype} and query examples {tuple(q.shape[2:])} {q.dtype};"
                    " they go through the same model, so give both the same shape and type"
                )
        pool = [torch.cat([s.flatten(0, 1), q.flatten(0, 1)]) for s, q in zip(support_leaves, query_leaves, strict=True)]
        n = support_shape[0] * support_shape[1]
        device = support_y.device
        support_index = torch.arange(n, device=device).view(support_shape)
        query_index = torch.arange(n, n + query_shape[0] * query_shape[1], device=device).view(query_shape)
        self._set(tree_unflatten(pool, spec), support_index, support_y, query_index, query_y, support_weight, query_weight, task_weight)

    @classmethod
    def from_pool(
        cls,
        examples: Tree,
        support_index: Tensor,
        support_y: Tensor,
        query_index: Tensor,
        query_y: Tensor,
        *,
        support_weight: Tensor | None = None,
        query_weight: Tensor | None = None,
        task_weight: Tensor | None = None,
    ) -> TaskBatch:
        """Tasks that draw from one pool of (P, …) examples by (T, S) and (T, Q) indices; a shared body runs once per pool example."""
        tasks = cls.__new__(cls)
        tasks._set(examples, support_index, support_y, query_index, query_y, support_weight, query_weight, task_weight)
        return tasks

    @classmethod
    def ragged(cls, tasks: Sequence[tuple[Tree, Tensor, Tree, Tensor]], *, task_weight: Tensor | None = None) -> TaskBatch:
        """A batch from ``(support_x, support_y, query_x, query_y)`` of single tasks with different numbers of examples.

        Shorter tasks are filled up with examples of weight zero, so every task keeps its own mean.
        """
        if not tasks:
            raise TaskError("ragged() got no tasks; give at least one")
        parts = [part for task in tasks for part in (task[0], task[2])]
        sizes = [len(tree_leaves(part)[0]) for part in parts]
        starts = [0, *itertools.accumulate(sizes)][:-1]
        flat = [tree_flatten(part) for part in parts]
        try:
            examples = tree_unflatten([torch.cat(leaves) for leaves in zip(*(f[0] for f in flat), strict=True)], flat[0][1])
        except (RuntimeError, ValueError) as error:
            raise TaskError(f"the examples of the tasks do not fit together: {error}; give all the same shape and type") from error

        def pad(side: int) -> tuple[Tensor, Tensor, Tensor]:
            labels = [task[1 + 2 * side] for task in tasks]
            width = max(len(y) for y in labels)
            index = torch.zeros(len(tasks), width, dtype=torch.long)
            weight = torch.zeros(len(tasks), width)
            y = labels[0].new_zeros(len(tasks), width, *labels[0].shape[1:])
            for t, own in enumerate(labels):
                size = sizes[2 * t + side]
                if len(own) != size:
                    raise TaskError(f"task {t} has {size} examples but {len(own)} labels; give one label per example")
                index[t, :size] = starts[2 * t + side] + torch.arange(size)
                weight[t, :size] = 1
                y[t, :size] = own
            device = labels[0].device
            return index.to(device), y, weight.to(device)

        (support_index, support_y, support_weight), (query_index, query_y, query_weight) = pad(0), pad(1)
        return cls.from_pool(
            examples,
            support_index,
            support_y,
            query_index,
            query_y,
            support_weight=support_weight,
            query_weight=query_weight,
            task_weight=task_weight,
        )

    def _set(self, examples, support_index, support_y, query_index, query_y, support_weight, query_weight, task_weight) -> None:  # type: ignore[no-untyped-def]
        set_ = object.__setattr__
        set_(self, "examples", examples)
        set_(self, "support_index", support_index)
        set_(self, "support_y", support_y)
        set_(self, "query_index", query_index)
        set_(self, "query_y", query_y)
        set_(self, "support_weight", _checked_weight("support", support_weight, support_index))
        set_(self, "query_weight", _checked_weight("query", query_weight, query_index))
        set_(self, "task_weight", _checked_task_weight(task_weight, len(support_index)))
        self._validate()

    def _validate(self) -> None:
        size = len(tree_leaves(self.examples)[0])
        for side, index, y in (("support", self.support_index, self.support_y), ("query", self.query_index, self.query_y)):
            if index.dim() != 2 or index.shape[0] < 1 or index.shape[1] < 1:
                raise TaskError(f"{side} has shape (tasks, examples) = {tuple(index.shape)}; give at least one task with one example")
            if tuple(y.shape[:2]) != tuple(index.shape):
                raise TaskError(f"{side}_y has shape {tuple(y.shape)}, but there are {tuple(index.shape)} (tasks, examples)")
            if int(index.min()) < 0 or int(index.max()) >= size:
                raise TaskError(f"{side}_index reaches from {int(index.min())} to {int(index.max())}, but the pool has {size} examples")
            if y.is_floating_point():
                if not bool(torch.isfinite(y).all()):
                    raise TaskError(f"{side}_y holds NaN or infinite targets; clean the data first")
            elif y.dtype != torch.long:
                raise TaskError(f"{side}_y has type {y.dtype}; give class indices as torch.long, or real targets as floats")
            elif int(y.min()) < 0:
                raise TaskError(f"{side}_y holds the label {int(y.min())}; labels are 0 … ways-1")
        if len({len(self.support_index), len(self.query_index)}) > 1:
            raise TaskError(f"support has {len(self.support_index)} tasks and query {len(self.query_index)}; give both the same number")
        if self.support_y.dtype.is_floating_point != self.query_y.dtype.is_floating_point:
            raise TaskError(f"support_y is {self.support_y.dtype} and query_y {self.query_y.dtype}; give both as labels or both as targets")
        for leaf in tree_leaves(self.examples):
            if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
                raise TaskError("the examples hold NaN or infinite values; clean or normalise the data first")
            if len(leaf) != size:
                raise TaskError(f"the inputs have {size} and {len(leaf)} examples; give every input the same examples")

    def __len__(self) -> int:
        return len(self.support_index)

    def __repr__(self) -> str:
        ways = "" if self.ways is None else f", {self.ways} ways"
        s, q = self.support_index.shape[1], self.query_index.shape[1]
        return f"TaskBatch({len(self)} tasks, {s} support and {q} query examples each{ways})"

    @property
    def ways(self) -> int | None:
        """Classes that the labels name, or None for real targets."""
        if self.support_y.is_floating_point():
            return None
        return 1 + max(int(self.support_y.max()), int(self.query_y.max()))

    @property
    def pool_size(self) -> int:
        """P, the number of examples that a shared body runs on."""
        return len(tree_leaves(self.examples)[0])

    @property
    def support_x(self) -> Tree:
        """(T, S, …) the support examples of every task."""
        return tree_map(lambda leaf: leaf[self.support_index], self.examples)

    @property
    def query_x(self) -> Tree:
        """(T, Q, …) the query examples of every task."""
        return tree_map(lambda leaf: leaf[self.query_index], self.examples)

    def to(self, device: torch.device | str) -> TaskBatch:
        """The same tasks on another device."""
        return self._map(lambda t: t.to(device), tree_map(lambda t: t.to(device), self.examples))

    def __getitem__(self, tasks: slice | int) -> TaskBatch:
        """Some of the tasks, or one, over the same pool; each keeps the weight it had among all."""
        if isinstance(tasks, int):
            tasks = slice(tasks, tasks + 1 or None)
        return self._map(lambda t: t[tasks], self.examples)

    def own_pool(self, take: Callable[[Tensor], Tree] | None = None) -> TaskBatch:
        """The same tasks over a pool of the examples they use: some tasks of a batch keep the whole pool, on which a body would run.

        Args:
            take: gives the examples at (k,) places of the present pool, where the pool only stands for them.

        Example:
            >>> x, y = torch.randn(8, 6, 4), torch.randint(2, (8, 6))
            >>> tasks = TaskBatch(x, y, x, y)[3]
            >>> tasks.pool_size, tasks.own_pool().pool_size
            (96, 12)
        """
        sides = ((self.support_index, self.support_weight), (self.query_index, self.query_weight))
        # Examples of weight zero are not there: they must not enter batch statistics either.
        used = torch.cat([index.reshape(-1) if weight is None else index[weight > 0] for index, weight in sides]).unique()
        support, query = (torch.searchsorted(used, index.contiguous()).clamp_max(len(used) - 1) for index, _ in sides)
        examples = tree_map(lambda v: v[used], self.examples) if take is None else take(used)
        moved = self._map(lambda t: t, examples)
        object.__setattr__(moved, "support_index", support)
        object.__setattr__(moved, "query_index", query)
        return moved

    def chunks(self, size: int) -> Iterator[TaskBatch]:
        """The tasks in groups of at most ``size``, over the same pool."""
        for first in range(0, len(self), size):
            yield self[first : first + size]

    def _map(self, function, examples: Tree) -> TaskBatch:  # type: ignore[no-untyped-def]
        tasks = TaskBatch.__new__(TaskBatch)
        set_ = object.__setattr__
        set_(tasks, "examples", examples)
        for name in ("support_index", "support_y", "query_index", "query_y", "support_weight", "query_weight", "task_weight"):
            value = getattr(self, name)
            set_(tasks, name, None if value is None else function(value))
        return tasks


def _leading(x_name: str, x: Tree, y_name: str, y: Tensor) -> tuple[int, int]:
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


def _describe(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _checked_task_weight(weight: Tensor | None, tasks: int) -> Tensor | None:
    """The weights of the tasks, scaled to a mean of one."""
    if weight is None:
        return None
    if weight.shape != (tasks,):
        raise TaskError(f"task_weight has shape {tuple(weight.shape)}, but there are {tasks} tasks; give one weight each")
    if not bool(torch.isfinite(weight).all()) or bool((weight < 0).any()) or not bool(weight.any()):
        raise TaskError("task_weight holds negative, NaN or infinite values, or zeros only; weights are 0 or more")
    return weight / weight.mean()


def _checked_weight(side: str, weight: Tensor | None, index: Tensor) -> Tensor | None:
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
