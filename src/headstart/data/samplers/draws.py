"""Random draws of tasks, each from a seed, a stream and an index alone.

A draw depends on nothing but (seed, stream, index), so a run can be resumed or split over processes, and the same seed
gives the same episodes on any machine: only the raw bits of a counter-based generator are used (Philox), whose stream is
fixed, and not library functions that may change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.data.drawing import Range, TaskSampler
from headstart.data.store import ClassExamples
from headstart.errors import ConfigError
from headstart.tasks import Side, Tasks

STREAMS = {"train": 0, "validation": 1, "test": 2, "statistics": 3, "augment": 4, "classes": 5, "objective": 6}


def check_draw(stream: str, **sizes: int) -> None:
    """Refuses a stream that is not known, and sizes below one.

    Raises:
        ConfigError: it says which.
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise ConfigError(f"{name}={size}: it must be a whole number, at least 1")
    if stream not in STREAMS:
        raise ConfigError(f"stream={stream!r}: use one of {sorted(STREAMS)}")


WIDE = 10_000


class Keys:
    """Uniform 64-bit numbers that depend on (seed, stream, index), and the number of a pool, alone."""

    def __init__(self, seed: int, stream: int, index: int, pool: int = 0) -> None:
        if not 0 <= seed < 2**63:
            raise ConfigError(f"seed={seed}: it must be a whole number from 0 to 2**63 - 1")
        self._bits = np.random.Philox(key=seed, counter=[0, pool, index, stream])

    def bits(self, count: int) -> np.ndarray:
        """So many 64-bit numbers."""
        return self._bits.random_raw(count)

    def smallest(self, shape: tuple[int, ...], among: np.ndarray | int, count: int) -> np.ndarray:
        """``count`` distinct random positions, in random order, among the first ``among`` of each row of the given shape.

        A key for every position, and the smallest win; of many rows of more than 10,000 positions, random positions that are not yet
        taken, so that few of many cost little.
        """
        width = int(np.max(among))
        if shape and width > WIDE:
            return self._distinct(np.broadcast_to(np.asarray(among), shape).reshape(-1), count).reshape(*shape, count)
        keys = self._bits.random_raw(int(np.prod(shape)) * width).reshape(*shape, width)
        if not np.isscalar(among):
            keys = np.where(np.arange(width) < np.asarray(among)[..., None], keys, np.uint64(2**64 - 1))
        if count < width:
            found = np.argpartition(keys, count - 1, axis=-1)[..., :count]
            order = np.take_along_axis(keys, found, -1).argsort(-1, kind="stable")
            return np.take_along_axis(found, order, -1)
        return keys.argsort(-1, kind="stable")[..., :count]

    def _distinct(self, among: np.ndarray, count: int) -> np.ndarray:
        found = np.empty((len(among), count), np.int64)
        for row, size in enumerate(among.tolist()):
            if size < 4 * count:  # most positions: order them all
                found[row] = self._bits.random_raw(size).argsort(kind="stable")[:count]
                continue
            taken: dict[int, None] = {}
            while len(taken) < count:
                # The remainder of 64 bits by a small number is uniform to one part in 2**40.
                for position in (self._bits.random_raw(count) % np.uint64(size)).tolist():
                    if len(taken) < count:
                        taken.setdefault(position)
            found[row] = list(taken)
        return found


@dataclass(frozen=True)
class Draw:
    """Rows of a class-ordered pool, and labels: (T, S) support and (T, Q) query, in random order; where tasks differ in ways
    or shots, also which examples are there."""

    support_index: np.ndarray
    support_y: np.ndarray
    query_index: np.ndarray
    query_y: np.ndarray
    support_present: np.ndarray | None = None
    query_present: np.ndarray | None = None


def draw(keys: Keys, counts: np.ndarray, ways: Range, shots: Range, queries: int, tasks: int) -> Draw:
    """Draws tasks from classes of the given sizes that lie one after the other in a pool.

    Every task gets ``ways`` distinct classes in random order — so a label says nothing about a class — and of each class
    ``shots + queries`` distinct examples. Of ranges each task draws its own number, all equally likely.
    """
    most, s = largest(ways), largest(shots)
    starts = np.cumsum(counts) - counts
    classes = keys.smallest((tasks,), len(counts), most)  # (T, C)
    rows = keys.smallest((tasks, most), counts[classes], s + queries) + starts[classes][..., None]
    labels = np.broadcast_to(np.arange(most)[:, None], (most, s + queries))
    orders: list[np.ndarray] = []

    def side(part: slice) -> tuple[np.ndarray, np.ndarray]:
        index = rows[..., part].reshape(tasks, -1)
        y = np.broadcast_to(labels[:, part].reshape(1, -1), index.shape)
        orders.append(keys.smallest((tasks,), index.shape[1], index.shape[1]))
        return np.take_along_axis(index, orders[-1], 1), np.take_along_axis(y, orders[-1], 1)

    support, query = side(slice(0, s)), side(slice(s, None))
    if isinstance(ways, int) and isinstance(shots, int):
        return Draw(*support, *query)
    own_ways, own_shots = _drawn(keys, ways, tasks), _drawn(keys, shots, tasks)
    rank = np.take_along_axis(np.broadcast_to(np.tile(np.arange(s), most), support[0].shape), orders[0], 1)
    return Draw(*support, *query, (support[1] < own_ways) & (rank < own_shots), query[1] < own_ways)


def largest(number: Range) -> int:
    return number if isinstance(number, int) else number[1]


def _drawn(keys: Keys, number: Range, tasks: int) -> np.ndarray:
    """(T, 1) a number for each task."""
    low, high = (number, number) if isinstance(number, int) else number
    # The remainder of 64 bits by a small number is uniform to one part in 2**50.
    return (keys.bits(tasks) % np.uint64(high - low + 1)).astype(np.int64)[:, None] + low


def tasks_of(drawn: Draw, device: torch.device | str = "cpu") -> Tasks:
    """The tasks of a draw, as rows of what was drawn from."""
    to = lambda a: torch.from_numpy(np.ascontiguousarray(a)).to(torch.long)  # noqa: E731

    def side(index: np.ndarray, y: np.ndarray, present: np.ndarray | None) -> Side:
        if present is None or present.all():
            return Side(to(index), to(y))
        # What is not there has weight zero, and label 0, so that it does not count among the ways.
        return Side(to(index), to(np.where(present, y, 0)), torch.from_numpy(present.astype(np.float32)))

    # Checked where they are drawn, and then moved: looking at values on a GPU would wait for it.
    support = side(drawn.support_index, drawn.support_y, drawn.support_present)
    return Tasks.of(support, side(drawn.query_index, drawn.query_y, drawn.query_present)).to(device)


class OfClasses(TaskSampler):
    """A sampler whose tasks are rows of one split of classes."""

    split: ClassExamples

    @property
    def pool(self) -> tuple[int, Any]:  # type: ignore[override]
        """The whole split."""
        return len(self.split), self.split.batch

    @property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        """The classes."""
        return self.split.classes

    def groups(self, index: int, tasks: Tasks) -> Tensor:
        """The class of each query example of rows of the split."""
        return self.split.labels.to(tasks.query.index.device)[tasks.query.index]
