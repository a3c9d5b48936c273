"""Tasks whose shared part has run: problems are made of them, some tasks at a time, in contexts that are entered once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headstart.inner.leaves import leaves
from headstart.inner.problem import InnerProblem
from headstart.inner.runner import HeadRunner, LiveRunner, Runner
from headstart.inner.shared import Shared
from headstart.inner.solver import Solver
from headstart.inner.start import Start
from headstart.loss import Loss
from headstart.program.description import FEATURES, Program
from headstart.program.modes import Kept
from headstart.program.precision import products
from headstart.program.run import Live, Record
from headstart.tasks import Tasks
from headstart.types import Params, Tree

LOOP_ABOVE = 5e7
"""Work of one inner step of one task, in FLOP forward, above which a loop over tasks beats vmap on a CPU (docs/benchmarks.md)."""


@dataclass(frozen=True)
class Embedded:
    """Examples that the shared part has run on, for evaluating many tasks over them."""

    program: Program
    record: Record
    examples: Tree | None = None

    @property
    def features(self) -> Tensor:
        """(P, D) the inputs of the linear head."""
        return self.record.rows[FEATURES]


def runs_together(program: Program, tasks: Tasks) -> bool:
    """Whether tasks run under ``vmap`` by default: where it is possible, gives the same numbers, and was measured to be faster."""
    if program.vmap_refusal or (program.mixes and (tasks.support.padded or tasks.query.padded)):
        return False  # padding must not enter batch statistics, and only a loop can leave it out
    if program.precision == "bf16" and program.reason:
        return False  # under vmap torch casts no convolutions, and here everything runs per step
    on_cpu = tasks.support.index.device.type == "cpu"
    return not on_cpu or program.step_flops * tasks.support.index.shape[1] < LOOP_ABOVE


@dataclass
class Opened:
    """A context manager around a group of problems; afterwards the model has its own tensors and attributes.

    Args:
        program, record: how the model runs, and what was recorded of the pool.
        examples: the pool itself; None where only a linear head runs.
        loss, start, step_weights, support_chunk, theta: of the learner.
        vectorised: whether tasks run under ``vmap``.
        moves: whether buffers move on, as in training.
        hold: whether the model stays set up for such runs inside the context; else it is set up for each run, and may be used
            otherwise in between.
        gradient: whether φ asks for a gradient.
    """

    program: Program
    record: Record
    examples: Tree | None
    loss: Loss
    start: Start
    theta: Params
    step_weights: Tensor | None
    support_chunk: int | None
    vectorised: bool
    moves: bool = False
    hold: bool = True
    gradient: bool = True
    _runners: list[tuple[int, LiveRunner]] = field(default_factory=list)

    def __enter__(self) -> Opened:
        self._stack = ExitStack()
        self._kept = Kept(self.program.model)
        buffers = self.moves and bool(self.program.live_buffers)
        self._live = Live(self.program, self.record.specs, buffers)
        single = "fp32" if self.program.head is not None and self.program.precision else self.program.precision
        self._stack.enter_context(products(single, next(iter(self.program.model.parameters())).device))
        if self.hold:
            self._stack.enter_context(self._live)
        phi = {k: v for k, v in self.program.partition.split()[1].items() if k in self.program.live}
        self._phi = phi if self.gradient else {k: v.detach() for k, v in phi.items()}
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._stack.__exit__(*error)
        finally:
            self._kept.put_back(state=self.moves)
        if error[0] is None and self.moves:
            self._move_buffers()

    def problem(self, tasks: Tasks, w: Params, inner: Solver, seed: int = 0) -> tuple[InnerProblem, Params]:
        """The inner problem of some tasks, and w_0 as a function of w and recorded rows."""
        shared = Shared.of(self.record, tasks, self._phi)
        with torch.enable_grad():
            w_0 = self.start.begin(w, self.program.partition, self.program, tasks, shared)
        runner: Runner
        if self.program.head is not None:
            runner = HeadRunner(self.program, tasks, self.examples)
        else:
            live = LiveRunner(self._live, tasks, self.examples, self.vectorised, seed, self.hold)
            self._runners.append((len(tasks), live))
            runner = live
        problem = InnerProblem(
            program=self.program,
            runner=runner,
            tasks=tasks,
            loss=self.loss,
            start=leaves(w_0),
            shared=shared,
            regulariser=inner.regulariser,
            theta=self.theta,
            step_weights=self.step_weights,
            support_chunk=self.support_chunk,
        )
        return problem, w_0

    def settle(self) -> None:
        """Lets go of what the last problem gathered, but for what its buffers became."""
        for _, runner in self._runners:
            runner.forget()

    def _move_buffers(self) -> None:
        """In training, what runs per step moves its running averages on once: to the mean, over tasks, of its first run."""
        moved = [(size, r.moved) for size, r in self._runners if r.moved is not None]
        own = dict(self.program.model.named_buffers())
        total = sum(size for size, _ in moved)
        with torch.no_grad():
            for name in self.program.live_buffers if moved else ():
                first: Sequence[Tensor] = [after[name] for _, after in moved if name in after]
                if not first:
                    continue
                value = first[0]
                if value.is_floating_point():
                    value = torch.stack([v * (size / total) for v, (size, _) in zip(first, moved, strict=True)]).sum(0)
                own[name].copy_(value)
