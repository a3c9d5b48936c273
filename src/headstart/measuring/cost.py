"""What an outer step takes: seconds, memory, oracle calls and multiplications."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headstart.counting import ledger
from headstart.learner import MetaLearner
from headstart.process import give_back
from headstart.program.modes import evaluating, undisturbed
from headstart.tasks import TaskBatch

MB = 2**20


@dataclass(frozen=True)
class Cost:
    """What one outer step takes, as measured.

    Args:
        seconds: median of a few steps, forward and backward, without the optimizer.
        memory: most memory in MiB that a step took beyond what was taken before; None where it cannot be measured.
        calls: oracle calls, by the names of the ledger.
        multiply_adds: of all matrix products and convolutions.
    """

    seconds: float
    memory: float | None
    calls: dict[str, int]
    multiply_adds: int


def measure_cost(learner: MetaLearner, tasks: TaskBatch, calls: dict[str, int], rounds: int = 3) -> Cost:
    """Times outer steps in training mode, after one that does not count; batch statistics are put back."""
    with evaluating(learner.model), undisturbed(learner.model, tasks.examples):  # both put back what they find
        learner.model.train()
        with ledger(multiply_adds=True) as book:
            learner.meta_gradient(tasks)
        memory = peak_memory(lambda: learner.meta_gradient(tasks), _device(learner))
        seconds: list[float] = []
        for _ in range(rounds):
            begin = time.perf_counter()
            learner.meta_gradient(tasks)
            _synchronise(learner)
            seconds.append(time.perf_counter() - begin)
            if sum(seconds) > 4:  # one slow step says enough
                break
    return Cost(statistics.median(seconds), memory, calls, book.multiply_adds or 0)


def peak_memory(run: Callable[[], Any], device: torch.device) -> float | None:
    """MiB that a call takes at most beyond what was taken before: of the GPU's memory, or of the process on Linux; else None.

    On a CPU it is what the process holds, so what is kept without use is given back first, and the call gets it anew.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before: float = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / MB
    give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # starts a new high-water mark
        before = _status("VmRSS")
        run()
        return max(0.0, _status("VmHWM") - before) / 1024
    except (OSError, StopIteration, ValueError):
        run()
        return None


def _status(name: str) -> float:
    """A size of this process in KiB."""
    return float(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)).split()[1])


def _device(learner: MetaLearner) -> torch.device:
    return next(learner.model.parameters()).device


def _synchronise(learner: MetaLearner) -> None:
    if _device(learner).type == "cuda":
        torch.cuda.synchronize()
