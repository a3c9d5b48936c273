"""A meta-batch in parts: which part is whose, and the meta-gradient of the whole."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from headstart.data.drawing import TaskSampler
from headstart.keeping import tensors_of
from headstart.learner import MetaLearner
from headstart.meta_stats import MetaStats
from headstart.ranks import Ranks
from headstart.tasks import TaskBatch
from headstart.training.config import EpisodeConfig
from headstart.types import Params

ODD = 0x9E3779B97F4A7C15
"""Keeps the seeds of the parts of a step apart."""


@dataclass(frozen=True)
class Division:
    """How meta-batches are divided into parts, and these over ranks.

    What a part gives depends on the step and its own number alone, and sums go by these numbers. So with a given number of parts, the
    weights are the same, bit for bit, whatever the number of ranks.

    Args:
        ranks: who shares the work.
        parts: into how many a meta-batch is divided.

    Example:
        >>> Division.of(EpisodeConfig(tasks=4, pools=2), 4, Ranks(0, 3)).parts, Division.of(EpisodeConfig(tasks=4), 4, Ranks(0, 3)).parts
        (2, 3)
    """

    ranks: Ranks
    parts: int

    @classmethod
    def of(cls, config: EpisodeConfig, tasks: int, ranks: Ranks) -> Division:
        """As many parts as the config has pools; where it leaves that open and tasks are independent, one for each rank that gets one."""
        pools = config.pools if config.pools > 1 or config.sampling == "dense" else ranks.world
        return cls(ranks, min(pools, tasks))

    def idle(self) -> str:
        """What to say where some rank has nothing to do; "" where all have."""
        idle = self.ranks.world - self.parts
        if idle <= 0:
            return ""
        return (
            f"{self.ranks.world} ranks, but a meta-batch has {self.parts} parts, so {idle} do nothing; more tasks and pools give them work"
        )

    def drawn(self, sampler: TaskSampler, device: torch.device) -> Callable[[int], dict[int, TaskBatch]]:
        """A function that draws this rank's parts of the batch with an index, by their numbers."""
        return lambda index: sampler.parts(index, self.ranks.own(self.parts), self.parts, device)

    def meta_gradient(
        self, learner: MetaLearner, draw: Callable[[], Mapping[int, TaskBatch]], seed: int, stop: Callable[[], bool] = lambda: False
    ) -> tuple[Params, MetaStats, bool]:
        """The meta-gradient of the whole meta-batch, on every rank; an error on one is an error on all.

        The sums over a part's tasks, by their weights, and the number of its tasks are added over the parts, and divided once. In
        training mode every part starts from the same running averages, which then move on by the mean of what the parts moved them by.

        Args:
            learner: whose.
            draw: gives this rank's parts.
            seed: of what is random in this step.
            stop: whether this rank was asked to stop, which is asked when its parts are done.

        Returns:
            The gradients by name, the statistics, and whether some rank was asked to stop.
        """
        torch.manual_seed(seed)
        if self.parts == self.ranks.world == 1:
            return *learner.meta_gradient(draw()[0]), stop()
        parameters, moving = learner.parameters(), _Moving(learner, self.parts)
        some = next(iter(parameters.values()))
        exact = torch.float32 if some.device.type == "mps" else torch.float64

        def computed() -> Iterator[tuple[int, list[Tensor]]]:
            for part, tasks in draw().items():
                torch.manual_seed((seed + part * ODD) % 2**63)
                moving.put_back()
                gradients, stats = learner.meta_gradient(tasks)
                count = len(tasks) if self.parts > 1 else 1
                none = torch.zeros((), dtype=exact, device=some.device)
                numbers = (count * stats.mean_loss, *(stats.answers or (none, none)), none + count)
                sums = torch.stack([v.detach().to(some.device, exact) for v in numbers])
                yield part, [*(count * gradients[name] for name in parameters), sums, *moving.moved(part, count)]

        like = [*parameters.values(), torch.zeros(4, dtype=exact, device=some.device), *moving.like()]
        total, stopped = self.ranks.total(computed(), self.parts, [v.detach() for v in like], stop)
        loss, hits, seen, count = total[len(parameters)].unbind()
        moving.move(total[len(parameters) + 1 :], count)
        gradients = {name: g if self.parts == 1 else g / count.to(_real(g)) for name, g in zip(parameters, total, strict=False)}
        mean = loss / count
        return gradients, MetaStats(mean[None], mean, (hits, seen)), stopped


def check_alike(division: Division, learner: MetaLearner, config: EpisodeConfig, episodes: TaskSampler) -> None:
    """Refuses ranks with other models, data or settings, before any work is done: what they gave together would mean nothing.

    Of the data the first batch is compared: all ranks look at its last part.
    """
    ranks, parts = division.ranks, division.parts
    if ranks.world == 1:
        return

    def digests() -> dict[str, str]:
        torch.manual_seed(config.seed)  # a sampler of one's own may use it
        (first,) = episodes.parts(0, [parts - 1], parts).values()  # the last is empty only where all are
        return {
            "model": digest(
                tensors_of(learner),
                learner.partition.adapt,
                learner.inner,
                learner.start,
                learner.hypergradient,
                learner.loss,
                learner.precision,
            ),
            "data": digest(tree_leaves(first.examples), first.support, first.query),
            "configuration": digest(config),
        }

    ranks.check_same(digests)


class _Moving:
    """The buffers of a model, which every part moves on from where they stood.

    Numbers that are not real, such as a count of batches, become what they are after the first part.
    """

    def __init__(self, learner: MetaLearner, parts: int) -> None:
        self.buffers, self.parts = list(learner.model.buffers()), parts
        self.begin = [b.clone() for b in self.buffers]

    def like(self) -> list[Tensor]:
        """Tensors of the shapes and types of what is summed."""
        return [self._wide(b) for b in self.begin]

    def put_back(self) -> None:
        """Back to where they stood."""
        with torch.no_grad():
            for buffer, value in zip(self.buffers, self.begin, strict=True):
                buffer.copy_(value)

    def moved(self, part: int, count: int) -> list[Tensor]:
        """By how much a part of so many tasks moved them, times that number; with one part, where to."""
        pairs = [(self._wide(b), self._wide(a)) for b, a in zip(self.buffers, self.begin, strict=True)]
        if self.parts == 1:
            return [b.clone() for b, _ in pairs]
        # What did not move is left exactly as it is, infinite values too.
        by = [torch.where(b == a, torch.zeros_like(a), b - a) for b, a in pairs]
        return [v * (count if self._averages(v) else part == 0) for v in by]

    def move(self, sums: list[Tensor], count: Tensor) -> None:
        """To where all parts together move them."""
        with torch.no_grad():
            for buffer, begin, total in zip(self.buffers, self.begin, sums, strict=True):
                if self.parts == 1:
                    buffer.copy_(total)
                    continue
                by = total / count.to(_real(total)) if self._averages(total) else total
                buffer.copy_(torch.where(by == 0, self._wide(begin), self._wide(begin) + by))

    @staticmethod
    def _averages(v: Tensor) -> bool:
        return v.is_floating_point() or v.is_complex()

    def _wide(self, v: Tensor) -> Tensor:
        return v.detach() if self._averages(v) else v.detach().long()


def digest(*things: Any) -> str:
    """A short name of tensors, in lists, tables and dataclasses, and of other things by how they print.

    Example:
        >>> digest(torch.ones(2)) == digest(torch.ones(2)), digest(torch.ones(2)) == digest(torch.zeros(2))
        (True, False)
    """
    own = hashlib.sha256()
    for thing in things:
        if isinstance(thing, Tensor):
            own.update(f"{thing.dtype} {tuple(thing.shape)}".encode())
            own.update(thing.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(thing, Mapping):
            own.update(digest(*thing, *thing.values()).encode())
        elif isinstance(thing, list | tuple):
            own.update(digest(*thing).encode())
        elif is_dataclass(thing) and not isinstance(thing, type):
            own.update(digest(type(thing).__name__, {f.name: getattr(thing, f.name, None) for f in fields(thing)}).encode())
        else:  # of functions and modules the name, and not the place in memory
            own.update(getattr(thing, "__qualname__", None or re.sub(r" at 0x\w+", "", repr(thing))).encode())
    return own.hexdigest()[:16]


def _real(v: Tensor) -> torch.dtype:
    return v.real.dtype if v.is_complex() else v.dtype
