"""Episodes: few-shot tasks drawn from classes, independent ones or many from one pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from headstart.data.augment import NONE, Augment
from headstart.data.drawing import Range
from headstart.data.samplers.draws import STREAMS, Keys, OfClasses, check_draw, draw, largest, tasks_of
from headstart.data.store import ClassExamples
from headstart.errors import ConfigError, DataError
from headstart.ranks import share
from headstart.tasks import TaskBatch, Tasks


@dataclass(frozen=True, eq=False)
class Episodes(OfClasses):
    """Draws batches of tasks from a split.

    Args:
        split: where examples come from.
        ways, shots, queries: classes per task, and support and query examples per class. ``ways=(2, 5)`` and ``shots=(1, 5)``
            draw a number for each task; such tasks share a batch by weights, and labels are 0 … ways-1 of each.
        tasks: tasks per batch.
        seed: of all draws.
        stream: keeps training, validation and test draws of one seed apart.
        kind: ``"independent"``: every task draws its own examples from the whole split. ``"dense"``: a batch draws a pool of
            ``pool_classes`` classes first, and its tasks draw from the pool, so that the shared body runs on each example
            once however many tasks use it. A single task has the same distribution either way, so the meta-gradient stays
            unbiased; tasks of one batch are correlated, which shows in its variance only.
        pool_classes, pool_examples: size of a dense pool: classes, and examples of each; None for what fits 20 classes and
            20 examples.
        augment: random changes to the images, by default none.

    Raises:
        DataError: more ways than classes, or more shots and queries than examples.

    Example:
        >>> from headstart.data import Split
        >>> split = Split(torch.zeros(60, 1, 8, 8, dtype=torch.uint8), [f"c{i}" for i in range(6)], [10] * 6)
        >>> Episodes(split, ways=5, shots=1, queries=3, tasks=4).batch(0)
        TaskBatch(4 tasks, 5 support and 15 query examples each, 5 ways)
        >>> episodes = Episodes(split, ways=2, shots=(1, 3), queries=3, tasks=4)
        >>> len(episodes.rows(7)), episodes.description()["shots"]
        (4, [1, 3])
        >>> episodes.pool[0], list(episodes.names)[:2]
        (60, ['c0', 'c1'])
    """

    split: ClassExamples
    ways: Range = 5
    shots: Range = 1
    queries: int = 5
    tasks: int = 8
    seed: int = 0
    stream: str = "train"
    kind: Literal["independent", "dense"] = "independent"
    pool_classes: int | None = None
    pool_examples: int | None = None
    augment: Augment = NONE

    def __post_init__(self) -> None:
        check_draw(self.stream, queries=self.queries, tasks=self.tasks)
        for name in ("ways", "shots"):
            _check_range(name, getattr(self, name))
        if self.kind not in ("independent", "dense"):
            raise ConfigError(f'kind={self.kind!r}: use "independent" or "dense"')
        classes, need, ways = len(self.split.classes), largest(self.shots) + self.queries, largest(self.ways)
        if ways > classes:
            raise DataError(f"ways={self.ways}, but {self.split.name} has {classes} classes; use at most {classes} ways")
        smallest = min(self.split.counts)
        if need > smallest:
            name = self.split.classes[list(self.split.counts).index(smallest)]
            raise DataError(
                f"shots={self.shots} and queries={self.queries} need {need} examples per class, but class {name!r} of"
                f" {self.split.name} has {smallest}; use fewer, or leave that class out"
            )
        if self.kind == "dense":
            if self.pool_classes is not None and not ways <= self.pool_classes <= classes:
                raise ConfigError(f"pool_classes={self.pool_classes}: it must be from ways={ways} to the {classes} classes there are")
            if self.pool_examples is not None and self.pool_examples < need:
                raise ConfigError(f"pool_examples={self.pool_examples}: a task needs shots + queries = {need} of a class")

    def batch(self, index: int, device: torch.device | str = "cpu") -> TaskBatch:
        """The batch with this index: all its tasks, from one pool where it is dense."""
        return self.parts(index, [0], 1, device)[0]

    def parts(self, index: int, which: Sequence[int], of: int, device: torch.device | str = "cpu") -> dict[int, TaskBatch]:
        """Some parts of a batch, by number; dense ones have a pool each, of their own draw."""
        shares = {part: share(self.tasks, of, part) for part in which}
        if self.kind == "dense":
            return {part: self._dense(index, part, len(own), device) for part, own in shares.items() if own}
        drawn = draw(self._keys(index), np.asarray(self.split.counts), self.ways, self.shots, self.queries, self.tasks)
        rows = np.concatenate([drawn.support_index.reshape(-1), drawn.query_index.reshape(-1)])
        place = np.arange(len(rows))
        if drawn.support_present is not None and drawn.query_present is not None:  # the body need not run on what is not there
            there = np.concatenate([drawn.support_present.reshape(-1), drawn.query_present.reshape(-1)])
            rows, place = rows[there], np.where(there, np.cumsum(there) - 1, 0)
        support = place[: drawn.support_index.size].reshape(drawn.support_index.shape)
        query = place[drawn.support_index.size :].reshape(drawn.query_index.shape)
        tasks = tasks_of(replace(drawn, support_index=support, query_index=query))
        if of == 1:
            return dict.fromkeys(which, tasks.to(device).over(self._examples(rows, index, device)))
        take = lambda used: self._examples(rows[used.numpy()], index, device, used, len(rows))  # noqa: E731
        return {part: tasks[own.start : own.stop].own_pool(take).to(device) for part, own in shares.items() if own}

    def _keys(self, index: int, pool: int = 0) -> Keys:
        return Keys(self.seed, STREAMS[self.stream], index, pool)

    def rows(self, index: int, device: torch.device | str = "cpu") -> Tasks:
        """The independent tasks of :meth:`batch`, as rows of the whole split."""
        return tasks_of(draw(self._keys(index), np.asarray(self.split.counts), self.ways, self.shots, self.queries, self.tasks), device)

    def description(self) -> dict[str, Any]:
        """Ways, shots, queries, seed, and of which classes."""
        own: dict[str, Any] = {"ways": self.ways, "shots": self.shots, "queries": self.queries, "seed": self.seed}
        own = {k: list(v) if isinstance(v, tuple) else v for k, v in own.items()}  # as it comes back from JSON
        return {**own, "split": self.split.name, "classes": len(self.split.classes)}

    def _examples(
        self, rows: np.ndarray, index: int, device: torch.device | str, used: Tensor | None = None, of: int = 0, pool: int = 0
    ) -> Tensor:
        examples = self.split.batch(torch.from_numpy(rows), device)
        if self.augment == NONE:
            return examples
        seed = int(Keys(self.seed, STREAMS["augment"], index, pool).bits(1)[0] >> np.uint64(1))
        return self.augment(examples, torch.Generator().manual_seed(seed), used, of)

    def _dense(self, index: int, pool: int, tasks: int, device: torch.device | str) -> TaskBatch:
        keys, counts = self._keys(index, pool), np.asarray(self.split.counts)
        starts = np.cumsum(counts) - counts
        need = largest(self.shots) + self.queries
        wanted = min(max(20, largest(self.ways)), len(counts)) if self.pool_classes is None else self.pool_classes
        classes = keys.smallest((), len(counts), wanted)
        limit = max(20, need) if self.pool_examples is None else self.pool_examples
        each = min(limit, int(counts[classes].min()))
        rows = keys.smallest((len(classes),), counts[classes], each) + starts[classes][:, None]
        drawn = draw(keys, np.full(len(classes), each), self.ways, self.shots, self.queries, tasks)
        return tasks_of(drawn, device).over(self._examples(rows.reshape(-1), index, device, pool=pool))


def _check_range(name: str, value: object) -> None:
    pair = value if isinstance(value, tuple) else (value, value)
    whole = len(pair) == 2 and all(isinstance(v, int) and not isinstance(v, bool) for v in pair)
    if not (whole and 1 <= pair[0] <= pair[1]):
        raise ConfigError(f"{name}={value!r}: it must be a whole number of at least 1, or the smallest and the largest of a range")
