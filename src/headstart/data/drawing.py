"""What every source of tasks and every sampler answers for itself; evaluation, training and reports ask nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from headstart.data.augment import NONE, Augment
from headstart.errors import DataError
from headstart.ranks import share
from headstart.tasks import TaskBatch, Tasks

Range = int | tuple[int, int]
"""A number, or the smallest and the largest of numbers that are drawn for each task."""


NO_CLASSES = "{} have no classes and pictures: use one number of shots, sampling='independent', augment='none'"


class Sampler(Protocol):
    """Anything that gives batches of tasks by index: what training, evaluation and the planner draw from.

    Example:
        >>> import headstart as hs
        >>> class Pairs:
        ...     tasks = 2
        ...     def batch(self, index, device="cpu"):
        ...         x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(index))
        ...         return TaskBatch(x, x.sum(2), x, x.sum(2)).to(device)
        >>> learner = hs.anil(hs.models.mlp(features=3, ways=1), steps=3, lr=0.1, loss="squared_error")
        >>> Pairs().tasks, hs.evaluate(learner, Pairs(), episodes=6).metric
        (2, 'squared error')
    """

    @property
    def tasks(self) -> int:
        """Tasks of a batch."""

    def batch(self, index: int, device: torch.device | str = "cpu") -> TaskBatch:
        """The batch with this index, always the same."""


class Data(Protocol):
    """Training, validation and test tasks: a source, or an object of the user's own."""

    @property
    def train(self) -> Any: ...
    @property
    def validation(self) -> Any: ...
    @property
    def test(self) -> Any: ...


@dataclass(frozen=True)
class Signature:
    """What a model must take and give for some tasks.

    Args:
        shape: of an example.
        outputs: how many.
        regression: whether targets are real numbers.
        by_class: whether tasks are drawn from classes, with a number of ways.
    """

    shape: tuple[int, ...]
    outputs: int
    regression: bool
    by_class: bool = False


@dataclass(frozen=True)
class Wanted:
    """What is asked of a sampler.

    Args:
        ways, shots, queries, tasks, seed, stream, kind, pool_classes, pool_examples, augment: as in
            :class:`~headstart.data.Episodes`. Tables and sine waves take ``shots`` and ``queries`` per task, and have no pool.
    """

    ways: Range = 5
    shots: Range = 1
    queries: int = 5
    tasks: int = 8
    seed: int = 0
    stream: str = "train"
    kind: str = "independent"
    pool_classes: int | None = None
    pool_examples: int | None = None
    augment: Augment = NONE


class TaskSampler:
    """What a sampler says of itself beside its batches; a subclass overrides what is otherwise.

    Attributes:
        tasks: how many a batch has.
        size: how many tasks there are, where it is a list; None for endless ones.
        prefetch: whether batches may be drawn ahead, in another thread: draws depend on nothing but the index.
        names: of the groups that results are also wanted for, such as classes.
        two_classes: whether its tasks tell two classes apart, so that they can be ranked.
        pool: ``(examples, batch)``: how many examples its tasks are rows of, and the examples at given rows, where they can all be
            embedded once; its tasks then come from :meth:`rows` too.

    Example:
        >>> import headstart as hs
        >>> waves = hs.data.Sinusoid(shots=5, queries=5, tasks=2)
        >>> isinstance(waves, TaskSampler), waves.size, waves.groups(0, waves.batch(0)), waves.description()["tasks"]
        (True, None, None, 'sine waves')
        >>> [len(part) for part in waves.parts(0, [0, 1], of=2).values()]  # of several processes, each takes some
        [1, 1]
        >>> split = hs.data.Split(torch.zeros(12, 1, 8, 8, dtype=torch.uint8), ["a", "b"], [6, 6])
        >>> len(hs.data.Episodes(split, ways=2, shots=1, queries=3, tasks=4).rows(0))
        4
    """

    tasks: int
    size: int | None = None
    prefetch: bool = True
    names: Sequence[str] = ()
    two_classes: bool = False
    pool: tuple[int, Callable[..., Any]] | None = None

    def description(self) -> dict[str, Any]:
        """The part of a protocol that says which tasks these are."""
        return {"tasks": type(self).__name__}

    def batch(self, index: int, device: torch.device | str = "cpu") -> TaskBatch:
        """The batch with this index, always the same."""
        raise NotImplementedError  # pragma: no cover

    def parts(self, index: int, which: Sequence[int], of: int, device: torch.device | str = "cpu") -> dict[int, TaskBatch]:
        """Some of the parts that a batch is divided into, by number, each with the examples that it uses; empty ones are left out.

        Args:
            index: of the batch.
            which: numbers of parts.
            of: how many parts there are; 1 is the batch as it is.
            device: where they go.
        """
        whole = self.batch(index, device)
        if of == 1:
            return dict.fromkeys(which, whole)
        shares = {part: share(len(whole), of, part) for part in which}
        return {part: whole[own.start : own.stop].own_pool() for part, own in shares.items() if own}

    def rows(self, index: int, device: torch.device | str = "cpu") -> Tasks:
        """The tasks of a batch as rows of the pool."""
        raise NotImplementedError  # pragma: no cover

    def groups(self, index: int, tasks: Tasks) -> Tensor | None:
        """(T, Q) which group each query example of these tasks of a batch belongs to; None where there are no groups."""
        return None


class Custom(TaskSampler):
    """A sampler of the user's own: any object with ``tasks`` and ``batch(index, device)``."""

    def __init__(self, own: Sampler) -> None:
        self.own, self.tasks = own, own.tasks
        self.prefetch = bool(getattr(own, "prefetch", False))  # it may use the global random numbers

    def batch(self, index: int, device: torch.device | str = "cpu") -> TaskBatch:
        """The batch with this index."""
        return self.own.batch(index, device)

    def parts(self, index: int, which: Sequence[int], of: int, device: torch.device | str = "cpu") -> dict[int, TaskBatch]:
        """Some of the parts of a batch, as the object itself divides it, or by its tasks."""
        own = getattr(self.own, "parts", None)
        return own(index, which, of, device) if callable(own) else super().parts(index, which, of, device)

    def description(self) -> dict[str, Any]:
        """What the object says of itself, or its kind."""
        own = getattr(self.own, "description", None)
        return dict(own()) if callable(own) else {"tasks": type(self.own).__name__}


def sampler_of(tasks_of: Any, **wanted: Any) -> Any:
    """What draws batches from a split; a sampler stays what it is.

    Args:
        tasks_of: a split, which draws what is wanted of it, or a sampler.
        wanted: the fields of :class:`Wanted`.

    Raises:
        ConfigError: what was asked does not go with such tasks.
        DataError: it is nothing that tasks can be drawn from, or too small.
    """
    own = getattr(tasks_of, "sampler", None)
    if callable(own):
        return own(Wanted(**wanted))
    if callable(getattr(tasks_of, "batch", None)) and isinstance(getattr(tasks_of, "tasks", None), int):
        said = all(hasattr(tasks_of, name) for name in ("description", "names", "two_classes", "pool", "groups", "parts"))
        return tasks_of if said else Custom(tasks_of)
    raise DataError(
        f"tasks cannot be drawn from {type(tasks_of).__name__}; give one split, such as data.test, or an object with"
        " tasks (a number) and batch(index, device) -> TaskBatch"
    )


def fitted(tasks_of: Any, sizes: dict[str, int]) -> dict[str, int]:
    """Ways, shots, queries and tasks lowered to what a split holds; samplers have their own, so theirs stay."""
    own = getattr(tasks_of, "fitted", None)
    return own(sizes) if callable(own) else sizes


def usual_queries(tasks_of: Any, shots: Range) -> int:
    """15 query examples, or as many as a split says are there beside its shots."""
    own = getattr(tasks_of, "usual_queries", None)
    return own(shots) if callable(own) else 15


def signature(tasks_of: Any, ways: int) -> Signature:
    """What a model must take and give for some tasks; of classes, the outputs are the ways."""
    own = getattr(tasks_of, "signature", None)
    if callable(own):
        return cast(Signature, own(ways))
    batch = sampler_of(tasks_of, tasks=1).batch(0)
    y = batch.support.y
    regression = y.is_floating_point()
    outputs = (y.shape[2] if y.dim() > 2 else 1) if regression else cast(int, batch.ways)
    return Signature(tuple(tree_leaves(batch.examples)[0].shape[1:]), outputs, regression)
