"""One way to draw tasks from whatever holds them: classes, tables, sine waves, lists, or an object of the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

from torch.utils._pytree import tree_leaves

from headstart.data.augment import NONE, Augment
from headstart.data.episode_list import EpisodeList
from headstart.data.episodes import Episodes, Range, Sampler
from headstart.data.sinusoid import Sinusoid, Waves
from headstart.data.store import Split
from headstart.data.tables import TableEpisodes, TableView
from headstart.errors import ConfigError, DataError

TasksOf = Split | TableView | Waves | Sampler
"""Where tasks come from: a split of a source, or a sampler."""


class Data(Protocol):
    """Training, validation and test tasks: :class:`Source`, :class:`TableTasks`, sine waves, or an object of the user's own."""

    @property
    def train(self) -> Any: ...
    @property
    def validation(self) -> Any: ...
    @property
    def test(self) -> Any: ...


def sampler_of(
    tasks_of: TasksOf,
    *,
    ways: Range = 5,
    shots: Range = 1,
    queries: int = 5,
    tasks: int = 8,
    seed: int = 0,
    stream: str = "train",
    kind: str = "independent",
    pool_classes: int | None = None,
    pool_examples: int | None = None,
    augment: Augment = NONE,
) -> Sampler:
    """What draws batches from a split; a sampler stays what it is.

    Args:
        tasks_of: a split or a sampler.
        ways, shots, queries, tasks, seed, stream, kind, pool_classes, pool_examples, augment: as in
            :class:`~headstart.data.Episodes`. Tables and sine waves take ``shots`` and ``queries`` per task, and have no pool.

    Raises:
        ConfigError: what was asked does not go with such tasks.
        DataError: it is nothing that tasks can be drawn from, or too small.
    """
    if isinstance(tasks_of, Split):
        return Episodes(tasks_of, ways, shots, queries, tasks, seed, stream, kind, pool_classes, pool_examples, augment)  # type: ignore[arg-type]
    if isinstance(tasks_of, TableView | Waves):
        what = "tables" if isinstance(tasks_of, TableView) else "sine waves"
        if kind != "independent" or augment != NONE or not isinstance(shots, int):
            raise ConfigError(f"{what} have no classes and pictures: use one number of shots, sampling='independent', augment='none'")
        if isinstance(tasks_of, TableView):
            fitting = TableEpisodes(tasks_of, shots, queries, 1, seed, stream)
            limit = len(fitting.ranges) if stream != "train" else tasks  # a test takes the tasks there are
            return TableEpisodes(tasks_of, shots, queries, min(tasks, limit), seed, stream)
        return Sinusoid(shots, queries, tasks, seed, stream)
    if callable(getattr(tasks_of, "batch", None)) and isinstance(getattr(tasks_of, "tasks", None), int):
        return tasks_of
    raise DataError(
        f"tasks cannot be drawn from {type(tasks_of).__name__}; give one split, such as data.test, or an object with"
        " tasks (a number) and batch(index, device) -> TaskBatch"
    )


def usual_queries(tasks_of: TasksOf, shots: Range) -> int:
    """15 query examples, or as many as the smallest class leaves beside its shots."""
    if not isinstance(tasks_of, Split):
        return 15
    return max(1, min(15, min(tasks_of.counts) - (shots if isinstance(shots, int) else shots[1])))


@dataclass(frozen=True)
class Signature:
    """What a model must take and give for some tasks: the shape of an example, the number of outputs, and which loss."""

    shape: tuple[int, ...]
    outputs: int
    regression: bool


def signature(tasks_of: TasksOf, ways: int) -> Signature:
    """The signature of tasks; of classes, the outputs are the ways.

    Example:
        >>> signature(Waves("train"), ways=5)
        Signature(shape=(1,), outputs=1, regression=True)
    """
    if isinstance(tasks_of, Split):
        return Signature(tuple(tasks_of.examples.shape[1:]), ways, False)
    if isinstance(tasks_of, TableView):
        table = tasks_of.table
        width = table.features.shape[1] * (8 if table.packed else 1)
        return Signature((width,), len(table.classes) or 1, table.kind == "regression")
    batch = sampler_of(tasks_of, tasks=1).batch(0)
    y = batch.support_y
    regression = y.is_floating_point()
    outputs = (y.shape[2] if y.dim() > 2 else 1) if regression else cast(int, batch.ways)
    return Signature(tuple(tree_leaves(batch.examples)[0].shape[1:]), outputs, regression)


def described(sampler: Sampler) -> dict[str, Any]:
    """The part of a protocol that says which episodes these are."""
    if isinstance(sampler, Episodes):
        own: dict[str, Any] = {"ways": sampler.ways, "shots": sampler.shots, "queries": sampler.queries, "seed": sampler.seed}
        own = {k: list(v) if isinstance(v, tuple) else v for k, v in own.items()}  # as it comes back from JSON
        return {**own, "split": sampler.split.name, "classes": len(sampler.split.classes)}
    if isinstance(sampler, TableEpisodes):
        what = f"{len(sampler.ranges)} {sampler.view.split} tasks"
        return {"shots": sampler.support, "queries": sampler.queries, "seed": sampler.seed, "tasks": what}
    if isinstance(sampler, Sinusoid):
        return {"shots": sampler.shots, "queries": sampler.queries, "seed": sampler.seed, "tasks": "sine waves"}
    if isinstance(sampler, EpisodeList):
        return {"tasks": f"the list {sampler.digest()} of {len(sampler)}"}
    return {"tasks": type(sampler).__name__}
