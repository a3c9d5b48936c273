"""Tasks given as tables: one row per example, with a column that names its task."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.data.augment import NONE
from headstart.data.drawing import NO_CLASSES, Signature, TaskSampler, Wanted
from headstart.data.samplers.draws import STREAMS, Keys, check_draw
from headstart.errors import ConfigError, DataError
from headstart.target_scale import TargetScale
from headstart.tasks import Side, TaskBatch, Tasks

log = logging.getLogger("headstart")
Kind = Literal["classification", "regression"]


@dataclass(frozen=True, eq=False)
class TableTasks:
    """Tasks of rows with the same features.

    Args:
        features: (P, D) float32; or (P, D/8) uint8 if ``packed``: bits, which become 0 and 1 when they are drawn.
        target: (n,) class indices as int64, or real targets as float32; the rows of one task lie together.
        counts: rows of each task; the first ``counts[0]`` rows are task 0, and so on.
        names: of the tasks.
        splits: of each task, "train", "validation" or "test".
        kind: what the targets are.
        classes: the values that class indices stand for.
        rows: (n,) the row of ``features`` that each example has, where examples share them; None if they are the same rows.
        packed: whether features are bits.
        scale_targets: whether learners work on standardised targets; predictions and errors are in the targets' unit either way.
        columns: how further files are read into such features (:class:`~headstart.data.sources.columns.TableColumns`); None where they
            hold the features themselves.

    Raises:
        DataError: sizes do not fit.

    Example:
        >>> tasks = TableTasks(np.zeros((5, 3), np.float32), np.arange(5.0), [2, 3], ["a", "b"], ["train", "test"], "regression")
        >>> tasks.test.names, tasks.test.ranges.tolist()
        (['b'], [[2, 5]])
        >>> tasks.train.names, tasks.validation.names, tasks.examples(np.array([0, 1])).shape
        (['a'], [], torch.Size([2, 3]))
    """

    features: NDArray[Any]
    target: NDArray[Any]
    counts: Sequence[int]
    names: Sequence[str]
    splits: Sequence[str]
    kind: Kind
    classes: Sequence[Any] = ()
    rows: NDArray[Any] | None = None
    packed: bool = False
    scale_targets: bool = True
    columns: Any = None

    def __post_init__(self) -> None:
        n = len(self.features) if self.rows is None else len(self.rows)
        if not len(self.counts) == len(self.names) == len(self.splits) or not sum(self.counts) == len(self.target) == n:
            raise DataError(
                f"{len(self.names)} tasks with {len(self.counts)} sizes and {len(self.splits)} splits, {n} examples with"
                f" {len(self.target)} targets in tasks of {sum(self.counts)}; give one of each"
            )

    @property
    def train(self) -> TableView:
        """The training tasks."""
        return TableView(self, "train")

    @property
    def validation(self) -> TableView:
        """The validation tasks."""
        return TableView(self, "validation")

    @property
    def test(self) -> TableView:
        """The test tasks."""
        return TableView(self, "test")

    def examples(self, index: NDArray[np.int64]) -> Tensor:
        """(k, D) the features of rows ``index`` (k,), as floats."""
        chosen = self.features[index if self.rows is None else self.rows[index]]
        return torch.from_numpy((np.unpackbits(chosen, axis=1) if self.packed else chosen).astype(np.float32))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"

    def __str__(self) -> str:
        parts = ", ".join(f"{len(v.names)} {v.split} tasks" for v in (self.train, self.validation, self.test))
        width = self.features.shape[1] * (8 if self.packed else 1)
        over = f" over {len(self.classes)} classes" if self.classes else ""
        return f"{self.kind}{over}, {width} features, {len(self.target)} rows: {parts}"


@dataclass(frozen=True, eq=False)
class TableView:
    """The tasks of one split."""

    table: TableTasks
    split: str

    @cached_property
    def _chosen(self) -> list[int]:
        return [t for t, split in enumerate(self.table.splits) if split == self.split]

    def sampler(self, wanted: Wanted) -> TableEpisodes:
        """Tasks of this table; a test takes the tasks there are."""
        if wanted.kind != "independent" or wanted.augment != NONE or not isinstance(wanted.shots, int):
            raise ConfigError(NO_CLASSES.format("tables"))
        fitting = TableEpisodes(self, wanted.shots, wanted.queries, 1, wanted.seed, wanted.stream)
        limit = len(fitting.ranges) if wanted.stream != "train" else wanted.tasks
        return TableEpisodes(self, wanted.shots, wanted.queries, min(wanted.tasks, limit), wanted.seed, wanted.stream)

    def fitted(self, sizes: dict[str, int]) -> dict[str, int]:
        """Tasks and shots lowered to what this table holds, so that half of the rows of most tasks are left to query."""
        rows = self.ranges[:, 1] - self.ranges[:, 0]
        shots = max(1, min(sizes["shots"], int(np.median(rows)) // 2 if len(rows) else 1))
        fitting = TableEpisodes(self, shots, sizes["queries"], 1)
        return {**sizes, "shots": shots, "tasks": max(1, min(sizes["tasks"], len(fitting.ranges)))}

    def signature(self, ways: int) -> Signature:
        """Outputs for the classes of the table, or one."""
        width = self.table.features.shape[1] * (8 if self.table.packed else 1)
        return Signature((width,), len(self.table.classes) or 1, self.table.kind == "regression")

    @cached_property
    def target_scale(self) -> TargetScale | None:
        """Mean and standard deviation of the targets of these tasks; None for classes, or where they are to stay as they are."""
        if self.table.kind != "regression" or not self.table.scale_targets or not len(self.ranges):
            return None
        return TargetScale.of(torch.from_numpy(np.concatenate([self.table.target[a:b] for a, b in self.ranges])))

    @property
    def names(self) -> list[str]:
        return [self.table.names[t] for t in self._chosen]

    @cached_property
    def ranges(self) -> NDArray[np.int64]:
        """(tasks, 2) first row of each task, and the one behind its last."""
        ends = np.cumsum(np.asarray(self.table.counts, np.int64))
        return np.stack([ends - self.table.counts, ends], 1)[self._chosen]


@dataclass(frozen=True, eq=False)
class TableEpisodes(TaskSampler):
    """Draws batches of tasks from a table: distinct tasks, and of each distinct rows, from (seed, stream, index) alone.

    The support set of a classification task has every label of the task, if it is large enough, and the labels in about their
    proportions. Tasks with no row left to query, and classification tasks with one label, are left out, with a warning.

    Args:
        view: the tasks of a split.
        support: rows in a support set.
        queries: rows in a query set, or those that remain if they are fewer; weights make up for the unequal sizes.
        tasks: tasks per batch.
        seed, stream: as in :class:`~headstart.data.Episodes`.
        weighting: ``"task"``: all tasks count alike in the meta-objective; ``"row"``: by their number of rows.

    Raises:
        DataError: the view has fewer tasks of that size than a batch needs.

    Example:
        >>> table = TableTasks(np.zeros((12, 3), np.float32), np.arange(12) % 2, [6, 6], ["a", "b"], ["train"] * 2, "classification")
        >>> TableEpisodes(table.train, support=4, queries=9, tasks=2).batch(0)
        TaskBatch(2 tasks, 4 support and 2 query examples each, 2 ways)
        >>> drawn = TableEpisodes(table.train, support=4, queries=9, tasks=2)
        >>> drawn.names, sorted(drawn.chosen(0).tolist()), drawn.ranges.tolist(), drawn.two_classes
        (['a', 'b'], [0, 1], [[0, 6], [6, 12]], False)
        >>> drawn.groups(0, drawn.batch(0)).shape, drawn.description()["shots"]
        (torch.Size([2, 2]), 4)
    """

    view: TableView
    support: int = 16
    queries: int = 16
    tasks: int = 8
    seed: int = 0
    stream: str = "train"
    weighting: Literal["task", "row"] = "task"

    def __post_init__(self) -> None:
        if self.weighting not in ("task", "row"):
            raise ConfigError(f'weighting={self.weighting!r}: use "task" or "row"')
        check_draw(self.stream, support=self.support, queries=self.queries, tasks=self.tasks)
        found, total = len(self._fitting), len(self.view.names)
        if found < total:
            log.warning("%d of %d %s tasks are left out: too few rows, or one label only", total - found, total, self.view.split)
        if found < self.tasks:
            remedy = "use fewer" if found else "three tasks are the fewest, one each for training, validation and test"
            raise DataError(f"tasks={self.tasks}, but {found} {self.view.split} tasks have enough rows (support={self.support}); {remedy}")

    @property
    def ranges(self) -> NDArray[np.int64]:
        """(tasks, 2) the rows of the tasks that are drawn from."""
        return self.view.ranges[self._fitting]

    @cached_property
    def _fitting(self) -> NDArray[np.int64]:
        """Which tasks of the view are drawn from."""
        table = self.view.table

        def fits(a: int, b: int) -> bool:
            y = table.target[a:b]
            return b - a > self.support and (table.kind == "regression" or bool((y != y[0]).any()))

        return np.array([t for t, r in enumerate(self.view.ranges.tolist()) if fits(*r)], np.int64)

    def _start(self, index: int) -> tuple[Keys, NDArray[np.int64]]:
        """The random numbers of a batch, and its tasks among those that fit."""
        keys = Keys(self.seed, STREAMS[self.stream], index)
        return keys, keys.smallest((), len(self._fitting), self.tasks)

    def chosen(self, index: int) -> NDArray[np.int64]:
        """(T,) which tasks of the view are in a batch."""
        return self._fitting[self._start(index)[1]]

    @property
    def names(self) -> list[str]:  # type: ignore[override]
        """The tasks of the view."""
        return self.view.names

    @property
    def two_classes(self) -> bool:  # type: ignore[override]
        """Whether the table has two classes."""
        return len(self.view.table.classes) == 2

    def groups(self, index: int, tasks: Tasks) -> Tensor:
        """The task that each query example is of."""
        return torch.from_numpy(self.chosen(index)[: len(tasks), None]).expand(tasks.query.index.shape)

    def description(self) -> dict[str, Any]:
        """Rows of a support and a query set, seed, and of how many tasks."""
        what = f"{len(self.ranges)} {self.view.split} tasks"
        return {"shots": self.support, "queries": self.queries, "seed": self.seed, "tasks": what}

    def batch(self, index: int, device: torch.device | str = "cpu") -> TaskBatch:
        """The batch with this index."""
        keys, chosen = self._start(index)
        table, s, ranges = self.view.table, self.support, self.view.ranges[self._fitting[chosen]]
        drawn = [self._rows(keys, start, stop) for start, stop in ranges]
        sizes = np.array([len(d) for d in drawn])
        # (T, S + Q) places in the pool; a short task repeats its last row, with weight zero.
        place = np.minimum(np.arange(sizes.max()), sizes[:, None] - 1) + (np.cumsum(sizes) - sizes)[:, None]
        weight = (np.arange(sizes.max()) < sizes[:, None]).astype(np.float32)[:, s:]
        rows = np.concatenate(drawn)
        y = torch.from_numpy(table.target[rows].astype(np.float32 if table.kind == "regression" else np.int64))
        pool, at = table.examples(rows), torch.from_numpy(place)
        weights = None if weight.all() else torch.from_numpy(weight)
        size = torch.from_numpy(ranges[:, 1] - ranges[:, 0]).float() if self.weighting == "row" else None
        # Checked where they are drawn, and then moved: looking at values on a GPU would wait for it.
        return TaskBatch.from_pool(pool, Side(at[:, :s], y[at[:, :s]]), Side(at[:, s:], y[at[:, s:]], weights), size).to(device)

    def _rows(self, keys: Keys, start: int, stop: int) -> NDArray[np.int64]:
        """The support and then the query rows of one task."""
        n = int(stop - start)
        order = keys.smallest((), n, n)
        if self.view.table.kind == "classification":
            _, y, counts = np.unique(self.view.table.target[start:stop][order], return_inverse=True, return_counts=True)
            by_label = np.argsort(y, kind="stable")
            rank = np.empty(n)  # among those of its label, in random order
            rank[by_label] = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
            # The first of every label, then each label at its own pace: any first rows have the labels in their proportions.
            chosen = np.argsort(np.where(rank == 0, -1, (rank + 0.5) / counts[y]), kind="stable")[: self.support]
            order = np.concatenate([order[chosen], np.delete(order, chosen)])
        return start + order[: self.support + self.queries]
