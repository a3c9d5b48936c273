"""A data source: training, validation and test classes, each of which draws its own tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headstart.data.drawing import Range, Signature, Wanted
from headstart.data.samplers.classes import Episodes
from headstart.data.samplers.draws import STREAMS, Keys
from headstart.data.store import ClassExamples
from headstart.errors import DataError


class Split(ClassExamples):
    """The examples of one split of a source, ordered by class, which draws episodes of them.

    Args:
        array, classes, counts, name, mean, std, rows: as in :class:`~headstart.data.store.ClassExamples`.

    Example:
        >>> split = Split(torch.zeros(12, 1, 8, 8, dtype=torch.uint8), ["a", "b"], [6, 6])
        >>> split.sampler(Wanted(ways=2, shots=1, queries=3, tasks=4)).batch(0)
        TaskBatch(4 tasks, 2 support and 6 query examples each, 2 ways)
        >>> split.usual_queries(shots=1), split.some(1).classes, split.signature(ways=2).outputs, next(split.chunks(6, 6, "cpu")).shape
        (5, ['b'], 2, torch.Size([6, 1, 8, 8]))
        >>> split.fitted({"ways": 5, "shots": 1, "queries": 15, "tasks": 8})
        {'ways': 2, 'shots': 1, 'queries': 5, 'tasks': 8}
    """

    def sampler(self, wanted: Wanted) -> Episodes:
        """Episodes of these classes."""
        w = wanted
        return Episodes(
            self,
            w.ways,
            w.shots,
            w.queries,
            w.tasks,
            w.seed,
            w.stream,
            w.kind,  # type: ignore[arg-type]
            w.pool_classes,
            w.pool_examples,
            w.augment,
        )

    def usual_queries(self, shots: Range) -> int:
        """15 query examples per class, or as many as the smallest class leaves beside its shots."""
        return max(1, min(15, min(self.counts) - (shots if isinstance(shots, int) else shots[1])))

    def some(self, count: int, seed: int = 0) -> Split:
        """The split with only so many of its classes, chosen by a seed; a smaller choice is part of a larger one.

        Raises:
            DataError: there are fewer.
        """
        if not 1 <= count <= len(self.classes):
            raise DataError(f"{self.name} has {len(self.classes)} classes, and not {count}; ask for 1 to {len(self.classes)}")
        order = Keys(seed, STREAMS["classes"], 0).smallest((), len(self.classes), len(self.classes))
        chosen = sorted(int(c) for c in order[:count])
        rows = torch.cat([torch.arange(self.counts[c]) + self.starts[c] for c in chosen])
        rows = rows if self.rows is None else self.rows[rows]
        return replace(self, classes=[self.classes[c] for c in chosen], counts=[self.counts[c] for c in chosen], rows=rows)

    def fitted(self, sizes: dict[str, int]) -> dict[str, int]:
        """Ways, shots and queries lowered to what these classes hold: shots leave one example to query, queries what is left."""
        smallest = min(self.counts)
        shots = max(1, min(sizes["shots"], smallest - 1))
        queries = max(1, min(sizes["queries"], smallest - shots))
        return {**sizes, "ways": min(sizes["ways"], len(self.classes)), "shots": shots, "queries": queries}

    def signature(self, ways: int) -> Signature:
        """One output for each way."""
        return Signature(tuple(self.shape), ways, False, by_class=True)

    def chunks(self, examples: int, chunk: int, device: torch.device | str) -> Iterator[Tensor]:
        """Some of the examples, always the same ones, in chunks: what running averages are taken from."""
        keys = Keys(0, STREAMS["statistics"], 0)
        rows = torch.from_numpy(keys.smallest((), len(self), min(examples, len(self))).astype("int64"))
        for part in rows.chunk(max(1, len(rows) // chunk)):
            yield self.batch(part, device)


@dataclass(frozen=True, eq=False)
class Source:
    """A data source: training, validation and test classes, disjoint.

    Example:
        >>> splits = [Split(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), [c], [6], name=c) for c in ("train", "validation", "test")]
        >>> print(Source("mine", *splits))
        mine: 1 train classes (6 examples), 1 validation classes (6 examples), 1 test classes (6 examples)
    """

    name: str
    train: Split
    validation: Split
    test: Split

    def __post_init__(self) -> None:
        for a, b in ((self.train, self.validation), (self.train, self.test), (self.validation, self.test)):
            both = set(a.classes) & set(b.classes)
            if both:
                raise DataError(f"{self.name}: class {min(both)!r} is in both {a.name} and {b.name}; the splits must be disjoint")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"  # the pictures themselves are not for reading

    def __str__(self) -> str:
        parts = ", ".join(f"{len(s.classes)} {s.name} classes ({len(s)} examples)" for s in (self.train, self.validation, self.test))
        return f"{self.name}: {parts}"
