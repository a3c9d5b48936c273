"""What a learner does with a batch of tasks, in words and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from headstart.inner.leaves import leaves
from headstart.inner.problem import SUPPORT, InnerProblem
from headstart.partition import Partition
from headstart.tasks import TaskBatch


@dataclass(frozen=True)
class Explanation:
    """How a meta-gradient is computed; prints itself as a short table.

    Args:
        adapted, shared, frozen: how many numbers of the model play which part.
        replayed: names of the submodules that run once and are replayed.
        per_step: names of the shared parameters that every step uses, beside the adapted ones.
        reason: why nothing is replayed, or "".
        head: whether the adapted part is one linear layer at the end.
        inner, hypergradient: the parts, as they print.
        vectorised: whether tasks run under vmap.
        once_flops: work of one forward pass of the recorded part over the pool.
        step_flops: work of one inner step's forward pass over all tasks' support examples.
    """

    adapted: int
    shared: int
    frozen: int
    replayed: tuple[str, ...]
    per_step: tuple[str, ...]
    reason: str
    head: bool
    inner: str
    hypergradient: str
    vectorised: bool
    once_flops: float
    step_flops: float

    @classmethod
    def of(cls, partition: Partition, inner: Any, hypergradient: Any, problem: InnerProblem, tasks: TaskBatch, once: float) -> Explanation:
        """Counts the work on the tasks themselves."""
        program = problem.program
        own = dict(partition.model.named_parameters())
        size = lambda names: sum(own[n].numel() for n in names)  # noqa: E731
        with FlopCounterMode(display=False) as step, torch.no_grad():
            problem.outputs(leaves(problem.start), SUPPORT)
        return cls(
            size(partition.adapted),
            size(partition.shared),
            size(partition.frozen),
            tuple(r.name for r in program.recorded),
            program.live,
            program.reason,
            program.head is not None,
            repr(inner),
            repr(hypergradient),
            problem.runner.vectorised,
            once,
            float(step.get_total_flops()) * len(tasks) / len(problem.tasks),
        )

    def __str__(self) -> str:
        frozen = f", {self.frozen:,} frozen" if self.frozen else ""
        if self.head:
            replayed = "everything before the linear head, which is all that a step runs"
        elif self.replayed:
            replayed = _some(self.replayed)
        else:
            replayed = f"nothing: {self.reason}"
        more = f" and {len(self.per_step)} shared ones ({_some(self.per_step)})" if self.per_step else ""
        tasks = "together (vmap)" if self.vectorised else "together" if self.head else "one after the other"
        return "\n".join(
            [
                f"parameters     {self.adapted:,} adapted (w), {self.shared:,} shared (φ){frozen}",
                f"runs once      {replayed}: {_flops(self.once_flops)} forward",
                f"runs per step  the adapted parameters{more}: {_flops(self.step_flops)} forward over all support sets",
                f"inner loop     {self.inner}; tasks {tasks}",
                f"hypergradient  {self.hypergradient}",
            ]
        )


def _some(names: tuple[str, ...]) -> str:
    """The first names of a list, and how many follow."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _flops(value: float) -> str:
    for unit, size in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("kFLOP", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} FLOP"
