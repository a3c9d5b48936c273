"""Regression to sine waves, the first toy problem of MAML."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from headstart.data.augment import NONE
from headstart.data.drawing import NO_CLASSES, Signature, TaskSampler, Wanted
from headstart.data.samplers.draws import STREAMS, Keys, check_draw
from headstart.errors import ConfigError
from headstart.tasks import TaskBatch


@dataclass(frozen=True)
class Waves:
    """The sine waves of one split: endless tasks, told apart by the stream that they are drawn from."""

    name: str

    def sampler(self, wanted: Wanted) -> Sinusoid:
        """Waves of this stream."""
        if wanted.kind != "independent" or wanted.augment != NONE or not isinstance(wanted.shots, int):
            raise ConfigError(NO_CLASSES.format("sine waves"))
        return Sinusoid(wanted.shots, wanted.queries, wanted.tasks, wanted.seed, wanted.stream)

    def signature(self, ways: int) -> Signature:
        """One number on one."""
        return Signature((1,), 1, True)


@dataclass(frozen=True)
class Sinusoid(TaskSampler):
    """Regression to sine waves (Finn et al., ICML 2017, section 5.1): amplitude U[0.1, 5], phase U[0, π], inputs U[-5, 5].

    Args:
        shots, queries: points of a support and a query set.
        tasks: tasks per batch.
        seed, stream: as in :class:`~headstart.data.Episodes`.

    Example:
        >>> Sinusoid(shots=10, queries=10, tasks=4).batch(0)
        TaskBatch(4 tasks, 10 support and 10 query examples each)
        >>> Sinusoid(shots=10, queries=10, tasks=4).description()["shots"]
        10
    """

    shots: int = 10
    queries: int = 10
    tasks: int = 25
    seed: int = 0
    stream: str = "train"

    def __post_init__(self) -> None:
        check_draw(self.stream, shots=self.shots, queries=self.queries, tasks=self.tasks)

    def batch(self, index: int, device: torch.device | str = "cpu") -> TaskBatch:
        """The batch with this index: inputs (T, S, 1), targets (T, S)."""
        size = (self.tasks, 2 + self.shots + self.queries)
        bits = Keys(self.seed, STREAMS[self.stream], index).bits(size[0] * size[1])
        uniform = torch.from_numpy((bits >> np.uint64(11)) * 2.0**-53).view(size)
        amplitude, phase = 0.1 + 4.9 * uniform[:, :1], math.pi * uniform[:, 1:2]
        x = 10 * uniform[:, 2:] - 5
        y = (amplitude * torch.sin(x - phase)).float()
        x = x.float()[..., None]
        s = self.shots
        return TaskBatch(x[:, :s], y[:, :s], x[:, s:], y[:, s:]).to(device)

    def description(self) -> dict[str, Any]:
        """Points of a support and a query set, and the seed."""
        return {"shots": self.shots, "queries": self.queries, "seed": self.seed, "tasks": "sine waves"}
