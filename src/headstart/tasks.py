"""Few-shot tasks: rows of a pool of examples, validated once, at the boundary."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from headstart.errors import TaskError
from headstart.side import NO_LABEL as NO_LABEL
from headstart.side import Side as Side
from headstart.task_checks import checked_task_weight, checked_weight, leading
from headstart.types import Tree


@dataclass(frozen=True, eq=False)
class Tasks:
    """T tasks as rows of some pool, without its examples; a sequence of tasks.

    Args:
        support, query: the two sides.
        weight: (T,) weights of the tasks in the meta-objective, with a mean of one; None for the plain mean.
        ways: classes that the labels of the whole batch name; None for real targets.

    Example:
        >>> side = Side(torch.tensor([[0, 1], [4, 5]]), torch.tensor([[0, 1], [1, 0]]))
        >>> tasks = Tasks.of(side, side)
        >>> tasks.support_y.shape, tasks.query_y.shape, [len(part) for part in tasks.chunks(1)], tasks.over(torch.zeros(6, 3)).pool_size
        (torch.Size([2, 2]), torch.Size([2, 2]), [1, 1], 6)
        >>> tasks.moved(torch.arange(6).flip(0)).support.index.tolist()
        [[5, 4], [1, 0]]
    """

    support: Side
    query: Side
    weight: Tensor | None = None
    ways: int | None = None

    @classmethod
    def of(cls, support: Side, query: Side, weight: Tensor | None = None) -> Tasks:
        """Tasks with their weights normalised and their labels checked.

        Raises:
            TaskError: shapes do not fit, labels are negative, values are not finite, or a task has no weight or label left.
        """
        return Tasks(*_checked(support, query, weight))

    def __len__(self) -> int:
        return len(self.support.index)

    @property
    def support_y(self) -> Tensor:
        """(T, S, …) support labels."""
        return self.support.y

    @property
    def query_y(self) -> Tensor:
        """(T, Q, …) query labels."""
        return self.query.y

    def __getitem__(self, tasks: slice | int) -> Self:
        """Some of the tasks, or one, over the same pool; each keeps the weight it had among all."""
        if isinstance(tasks, int):
            if not -len(self) <= tasks < len(self):
                raise IndexError(f"task {tasks} of {len(self)}")
            tasks = slice(tasks, tasks + 1 or None)
        return self._map(lambda t: t[tasks])

    def __iter__(self) -> Iterator[Self]:
        return (self[t] for t in range(len(self)))

    def chunks(self, size: int) -> Iterator[Self]:
        """The tasks in groups of at most ``size``, over the same pool."""
        for first in range(0, len(self), size):
            yield self[first : first + size]

    def to(self, device: torch.device | str) -> Self:
        """The same tasks on another device."""
        return self._map(lambda t: t.to(device))

    def moved(self, place: Tensor) -> Self:
        """The same tasks over another pool, in which example i stands at ``place[i]``."""
        support, query = (replace(s, index=place[s.index]) for s in (self.support, self.query))
        return replace(self, support=support, query=query)

    def over(self, examples: Tree) -> TaskBatch:
        """The tasks over the (P, …) examples that their rows are of."""
        tasks = TaskBatch._from_checked(examples, self.support, self.query, self.weight, self.ways)
        tasks._check_pool()
        return tasks

    def own_pool(self, take: Callable[[Tensor], Tree]) -> TaskBatch:
        """The tasks with a pool of the examples they use; ``take`` gives those at (k,) places of the present pool."""
        sides = (self.support, self.query)
        # Examples of weight zero are not there: they must not enter batch statistics either.
        used = torch.cat([s.index.reshape(-1) if s.weight is None else s.index[s.weight > 0] for s in sides]).unique()
        moved = [replace(s, index=torch.searchsorted(used, s.index.contiguous()).clamp_max(len(used) - 1)) for s in sides]
        return TaskBatch._from_checked(take(used), moved[0], moved[1], self.weight, self.ways)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        weight = None if self.weight is None else function(self.weight)
        return replace(self, support=self.support.map(function), query=self.query.map(function), weight=weight)


@dataclass(frozen=True, eq=False, init=False)
class TaskBatch(Tasks):
    """T tasks with their pool of examples; each has S support and Q query examples. A sequence of tasks.

    Args:
        support_x: (T, S, …) examples; for models with several inputs, a tuple or dictionary of such tensors.
        support_y: (T, S) class indices, (T, S, …) class indices of positions (pixels, tokens), or (T, S) or (T, S, …) real
            targets. The class -100 stands for no label.
        query_x, query_y: the same with Q examples.
        support_weight, query_weight: (T, S) and (T, Q) weights of the examples in a task's mean loss; 0 leaves an example
            out, which is how tasks of unequal sizes share a batch (see :meth:`ragged`).
        task_weight: (T,) weights of the tasks in the meta-objective, 0 or more; they are scaled to a mean of one. None for the
            plain mean over tasks.

    Inside, the examples are one pool and the tasks are rows of indices into it, so that tasks which share
    examples (see :meth:`from_pool`) share the work on them.

    Raises:
        TaskError: shapes do not fit, labels are negative, values are not finite, or a task has no weight or label left.

    Example:
        >>> x, y = torch.randn(4, 10, 3), torch.randint(5, (4, 10))
        >>> tasks = TaskBatch(x, y, x, y)
        >>> tasks
        TaskBatch(4 tasks, 10 support and 10 query examples each, 5 ways)
        >>> [len(task) for task in tasks]
        [1, 1, 1, 1]
        >>> tasks.support_x.shape, tasks.pool_size, tasks.take(tasks.query).equal(tasks.query_x)
        (torch.Size([4, 10, 3]), 80, True)
        >>> TaskBatch.ragged([(x[0, :3], y[0, :3], x[0], y[0]), (x[1], y[1], x[1], y[1])]).to("cpu").pool_size
        33
    """

    examples: Tree = None

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
        support_shape = leading("support_x", support_x, "support_y", support_y)
        query_shape = leading("query_x", query_x, "query_y", query_y)
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
        support, query = Side(support_index, support_y, support_weight), Side(query_index, query_y, query_weight)
        self._set(tree_unflatten(pool, spec), *_checked(support, query, task_weight))
        self._check_pool()

    @classmethod
    def from_pool(cls, examples: Tree, support: Side, query: Side, task_weight: Tensor | None = None) -> TaskBatch:
        """Tasks that draw from one pool of (P, …) examples by index; a shared body runs once per pool example.

        Example:
            >>> pool = torch.randn(6, 3)
            >>> side = Side(torch.tensor([[0, 1], [4, 5]]), torch.tensor([[0, 1], [1, 0]]))
            >>> TaskBatch.from_pool(pool, side, side).pool_size
            6
        """
        return Tasks.of(support, query, task_weight).over(examples)

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

        def pad(side: int) -> Side:
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
            return Side(index.to(device), y, weight.to(device))

        return cls.from_pool(examples, pad(0), pad(1), task_weight)

    @classmethod
    def _from_checked(cls, examples: Tree, support: Side, query: Side, weight: Tensor | None, ways: int | None) -> TaskBatch:
        tasks = cls.__new__(cls)
        tasks._set(examples, support, query, weight, ways)
        return tasks

    def _set(self, examples: Tree, support: Side, query: Side, weight: Tensor | None, ways: int | None) -> None:
        values = {"examples": examples, "support": support, "query": query, "weight": weight, "ways": ways}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _check_pool(self) -> None:
        leaves = tree_leaves(self.examples)
        size = len(leaves[0])
        for name, side in (("support", self.support), ("query", self.query)):
            low, high = int(side.index.min()), int(side.index.max())
            if low < 0 or high >= size:
                raise TaskError(f"{name}_index reaches from {low} to {high}, but the pool has {size} examples")
        for leaf in leaves:
            if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
                raise TaskError("the examples hold NaN or infinite values; clean or normalise the data first")
            if len(leaf) != size:
                raise TaskError(f"the inputs have {size} and {len(leaf)} examples; give every input the same examples")

    def __repr__(self) -> str:
        ways = "" if self.ways is None else f", {self.ways} ways"
        s, q = self.support.index.shape[1], self.query.index.shape[1]
        return f"TaskBatch({len(self)} tasks, {s} support and {q} query examples each{ways})"

    @property
    def pool_size(self) -> int:
        """P, the number of examples that a shared body runs on."""
        return len(tree_leaves(self.examples)[0])

    @property
    def support_x(self) -> Tree:
        """(T, S, …) the support examples of every task."""
        return self.take(self.support)

    @property
    def query_x(self) -> Tree:
        """(T, Q, …) the query examples of every task."""
        return self.take(self.query)

    def take(self, side: Side) -> Tree:
        """(T, n, …) the examples of one side."""
        return tree_map(lambda leaf: leaf[side.index], self.examples)

    def to(self, device: torch.device | str) -> TaskBatch:
        """The same tasks on another device."""
        moved = super().to(device)
        moved._set(tree_map(lambda t: t.to(device), self.examples), moved.support, moved.query, moved.weight, moved.ways)
        return moved

    def own_pool(self, take: Callable[[Tensor], Tree] | None = None) -> TaskBatch:
        """The same tasks over a pool of the examples they use: some tasks of a batch keep the whole pool, on which a body would run.

        Example:
            >>> x, y = torch.randn(8, 6, 4), torch.randint(2, (8, 6))
            >>> tasks = TaskBatch(x, y, x, y)[3]
            >>> tasks.pool_size, tasks.own_pool().pool_size
            (96, 12)
        """
        return super().own_pool(take or (lambda used: tree_map(lambda v: v[used], self.examples)))

    def _map(self, function: Callable[[Tensor], Tensor]) -> TaskBatch:
        weight = None if self.weight is None else function(self.weight)
        return self._from_checked(self.examples, self.support.map(function), self.query.map(function), weight, self.ways)


def _checked(support: Side, query: Side, weight: Tensor | None) -> tuple[Side, Side, Tensor | None, int | None]:
    """The sides with normalised weights, the tasks' weights with a mean of one, and the ways."""
    for name, side in (("support", support), ("query", query)):
        index, y = side.index, side.y
        if index.dim() != 2 or index.shape[0] < 1 or index.shape[1] < 1:
            raise TaskError(f"{name} has shape (tasks, examples) = {tuple(index.shape)}; give at least one task with one example")
        if tuple(y.shape[:2]) != tuple(index.shape):
            raise TaskError(f"{name}_y has shape {tuple(y.shape)}, but there are {tuple(index.shape)} (tasks, examples)")
        if y.is_floating_point():
            if not bool(torch.isfinite(y).all()):
                raise TaskError(f"{name}_y holds NaN or infinite targets; clean the data first")
        elif y.dtype != torch.long:
            raise TaskError(f"{name}_y has type {y.dtype}; give class indices as torch.long, or real targets as floats")
        elif bool(((y < 0) & (y != NO_LABEL)).any()):
            raise TaskError(f"{name}_y holds the label {int(y[y != NO_LABEL].min())}; labels are 0 … ways-1, or {NO_LABEL} for none")
    if len(support.index) != len(query.index):
        raise TaskError(f"support has {len(support.index)} tasks and query {len(query.index)}; give both the same number")
    if support.y.dtype.is_floating_point != query.y.dtype.is_floating_point:
        raise TaskError(f"support_y is {support.y.dtype} and query_y {query.y.dtype}; give both as labels or both as targets")
    ways = None if support.y.is_floating_point() else 1 + max(int(support.y.max()), int(query.y.max()))
    support, query = _labelled("support", support), _labelled("query", query)
    if query.bare:
        raise TaskError("query_y of a task holds no label; its loss would be of nothing: leave the task out")
    return support, query, checked_task_weight(weight, len(support.index)), None if ways is None else max(ways, 1)


def _labelled(name: str, side: Side) -> Side:
    """The side with its weights normalised, and what is known of missing labels."""
    weight = checked_weight(name, side.weight, side.index)
    side = replace(side, weight=weight, padded=weight is not None and bool((weight == 0).any()))
    there = None if side.y.is_floating_point() else (side.y != NO_LABEL).reshape(*side.index.shape, -1).any(2)
    if there is None or (bool(there.all()) and not bool((side.y == NO_LABEL).any())):
        return side
    counted = there if weight is None else there & (weight > 0)
    return replace(side, blank=True, bare=not bool(counted.any(1).all()))
