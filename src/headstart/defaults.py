"""What a learner chooses where its user did not, by measurements (docs/performance.md)."""

from __future__ import annotations

from torch.utils._pytree import tree_leaves

from headstart.errors import ConfigError
from headstart.hypergradient.base import Hypergradient
from headstart.hypergradient.recursive import Recursive
from headstart.hypergradient.sample_space import SampleSpace
from headstart.hypergradient.unrolled import Unrolled
from headstart.inner.problem import InnerProblem
from headstart.inner.solver import Solver
from headstart.program.description import Program
from headstart.types import Tree

UNROLL_UP_TO = 10
"""Inner steps up to which to unroll, where the body is replayed and a step is cheap."""


def hypergradient_of(problem: InnerProblem, inner: Solver) -> Hypergradient:
    """Sample space for a linear head; unrolled where steps are few and cheap; else recursive, in flat memory."""
    if not inner.sample_space_refusal(problem):
        return SampleSpace()
    if problem.program.marks_inputs:
        return Unrolled()
    return Unrolled() if problem.program.recorded and inner.steps <= UNROLL_UP_TO else Recursive()


def examples_at_a_time(examples: Tree) -> int | None:
    """Examples that the shared part runs on at a time: what fits a CPU's cache (benchmarks/replay.py); None for all."""
    return 100 if tree_leaves(examples)[0].device.type == "cpu" else None


def tasks_at_a_time(program: Program, vectorised: bool) -> int:
    """Tasks that are handled together."""
    if program.head is not None:
        return 1024
    return 16 if vectorised else 1


def check_chunks(**chunks: int | None) -> None:
    """Refuses sizes of chunks below one.

    Raises:
        ConfigError: it says which.
    """
    for name, value in chunks.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: it must be at least 1, or None for the default")
