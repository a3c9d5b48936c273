"""A fixed list of episodes that can be kept in a file, so that others compare on the very same ones."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart.container import read_json, write_json
from headstart.data.samplers.classes import Episodes
from headstart.data.samplers.draws import Draw, OfClasses, tasks_of
from headstart.data.store import ClassExamples
from headstart.errors import DataError
from headstart.tasks import TaskBatch, Tasks

Pairs = list[tuple[int, int]]  # (label, example of its class)


@dataclass(frozen=True)
class Listed:
    """One episode: the class of each label, and for support and query pairs (label, which example of that class)."""

    classes: list[str]
    support: Pairs
    query: Pairs


@dataclass(frozen=True, eq=False)
class EpisodeList(OfClasses):
    """Episodes of a split, written down.

    Args:
        split: what the examples are of.
        episodes: the list; sizes may differ.
        tasks: episodes of a batch.

    Raises:
        DataError: a class or an example is not in the split, or an episode has no support or no query.

    Example:
        >>> from headstart.data import Split
        >>> split = Split(torch.zeros(60, 1, 8, 8, dtype=torch.uint8), [f"c{i}" for i in range(6)], [10] * 6)
        >>> chosen = EpisodeList.of(Episodes(split, ways=5, shots=1, queries=3, tasks=4), count=10)
        >>> len(chosen), chosen.batch(2)
        (10, TaskBatch(2 tasks, 5 support and 15 query examples each, 5 ways))
        >>> import tempfile
        >>> chosen.save(path := tempfile.mkdtemp() + "/episodes.json")
        >>> EpisodeList.load(path, split).digest() == chosen.digest(), chosen.size, len(chosen.rows(0))
        (True, 10, 4)
        >>> list(chosen.description())
        ['tasks']
        >>> chosen.pool[0], list(chosen.names)[:2]
        (60, ['c0', 'c1'])
    """

    split: ClassExamples
    episodes: list[Listed]
    tasks: int = 100

    def __post_init__(self) -> None:
        place = {name: c for c, name in enumerate(self.split.classes)}
        for i, episode in enumerate(self.episodes):
            unknown = [name for name in episode.classes if name not in place]
            if unknown:
                raise DataError(f"episode {i} has the class {unknown[0]!r}, which {self.split.name} lacks; use the list's own split")
            if not episode.support or not episode.query:
                raise DataError(f"episode {i} has no {'query' if episode.support else 'support'} examples; leave it out")
            for label, example in episode.support + episode.query:
                if not 0 <= label < len(episode.classes) or not 0 <= example < self.split.counts[place[episode.classes[label]]]:
                    raise DataError(f"episode {i} has example {example} of label {label}, which is not there; use the list's own split")

    @classmethod
    def of(cls, episodes: Episodes, count: int) -> EpisodeList:
        """The first ``count`` of the independent episodes that are drawn."""
        split, listed = episodes.split, list[Listed]()
        labels = split.labels
        for index in range(-(-count // episodes.tasks)):
            tasks = episodes.rows(index)
            for t in range(len(tasks)):
                both = []
                for rows, y, weight in (
                    (tasks.support.index[t], tasks.support_y[t], tasks.support.weight),
                    (tasks.query.index[t], tasks.query_y[t], tasks.query.weight),
                ):
                    there = slice(None) if weight is None else weight[t] > 0
                    both.append((rows[there], y[there]))
                class_of = {int(label): int(labels[row]) for rows, y in both for row, label in zip(rows, y, strict=True)}
                pairs = [[(int(label), int(row - split.starts[labels[row]])) for row, label in zip(*side, strict=True)] for side in both]
                listed.append(Listed([split.classes[class_of[label]] for label in sorted(class_of)], *pairs))
        return cls(split, listed[:count], episodes.tasks)

    def __len__(self) -> int:
        return len(self.episodes)

    def batch(self, index: int, device: torch.device | str = "cpu") -> TaskBatch:
        """The batch with this index; the last may be smaller."""
        return self.rows(index).own_pool(self.split.batch).to(device)

    def rows(self, index: int, device: torch.device | str = "cpu") -> Tasks:
        """The tasks of :meth:`batch`, as rows of the whole split."""
        return tasks_of(self._draw(index), device)

    @property
    def size(self) -> int:  # type: ignore[override]
        """How many episodes there are."""
        return len(self.episodes)

    def description(self) -> dict[str, Any]:
        """Which list."""
        return {"tasks": f"the list {self.digest()} of {len(self)}"}

    def _draw(self, index: int) -> Draw:
        chosen = self.episodes[index * self.tasks : (index + 1) * self.tasks]
        if not chosen:
            raise DataError(f"the list has {len(self)} episodes in batches of {self.tasks}; there is no batch {index}")
        place = {name: c for c, name in enumerate(self.split.classes)}

        def side(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            width = max(len(getattr(e, name)) for e in chosen)
            rows, y = np.zeros((2, len(chosen), width), np.int64)
            there = np.zeros((len(chosen), width), bool)
            for t, episode in enumerate(chosen):
                pairs = getattr(episode, name)
                y[t, : len(pairs)] = [label for label, _ in pairs]
                rows[t, : len(pairs)] = [self.split.starts[place[episode.classes[label]]] + example for label, example in pairs]
                rows[t, len(pairs) :] = rows[t, 0]
                there[t, : len(pairs)] = True
            return rows, y, there

        (support, support_y, support_there), (query, query_y, query_there) = side("support"), side("query")
        return Draw(support, support_y, query, query_y, support_there, query_there)

    def digest(self) -> str:
        """A short name of the list's content."""
        return hashlib.sha256(json.dumps(self._plain()).encode()).hexdigest()[:12]

    def save(self, path: str | Path) -> None:
        """Writes the list as JSON: class names, and numbers of examples within their class."""
        write_json(path, {"split": self.split.name, "episodes": self._plain()}, indent=None)

    @classmethod
    def load(cls, path: str | Path, split: ClassExamples, tasks: int = 100) -> EpisodeList:
        """Reads what :meth:`save` wrote.

        Raises:
            DataError: the file is missing or damaged, or does not fit the split.
        """
        try:
            found = read_json(Path(path))["episodes"]
            pairs = lambda side: [(int(a), int(b)) for a, b in side]  # noqa: E731
            listed = [Listed([str(c) for c in e["classes"]], pairs(e["support"]), pairs(e["query"])) for e in found]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{str(path)!r} is no list of episodes ({error}); write one with EpisodeList.save") from error
        return cls(split, listed, tasks)

    def _plain(self) -> list[dict[str, Any]]:
        return [{"classes": e.classes, "support": [list(p) for p in e.support], "query": [list(p) for p in e.query]} for e in self.episodes]
