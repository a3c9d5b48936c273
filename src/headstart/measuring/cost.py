"""Measures one way to meta-train where a model stands: loss, meta-gradient and smoothness, seconds and memory of a step."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headstart.counting import ledger
from headstart.data.episodes import Sampler
from headstart.learner import MetaLearner
from headstart.measuring.smoothness import Noise, meta_smoothness
from headstart.measuring.surface import at_rest
from headstart.program.modes import evaluating, undisturbed
from headstart.tasks import TaskBatch
from headstart.theory.descent import joint_decrease

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


@dataclass(frozen=True)
class Local:
    """The meta-objective at the model's present weights, for one way to adapt.

    Args:
        loss: F, the mean query loss after adaptation; infinite where adaptation diverges.
        accuracy: of the query examples after adaptation; None for real targets.
        square, variance, smoothness: by block, "w" and "phi": squared norm of the mean meta-gradient, variance of the
            meta-gradient of a meta-batch, and norm of the block of the Hessian of F. "phi" is missing where everything adapts.
    """

    loss: float
    accuracy: float | None
    square: dict[str, float]
    variance: dict[str, float]
    smoothness: dict[str, float]

    @property
    def decrease(self) -> float:
        """The decrease of F that one outer step is worth by the descent inequality; 0 where adaptation diverges."""
        if not math.isfinite(self.loss):
            return 0.0
        blocks = {k: (self.square[k], self.variance[k], self.smoothness[k]) for k in self.square}
        return joint_decrease(blocks["w"], blocks.get("phi"))


def measure_local(learner: MetaLearner, sampler: Sampler, device: torch.device, *, batches: int = 4, iterations: int = 4) -> Local:
    """Measures the meta-objective around the present weights, in evaluation mode; nothing is changed.

    Args:
        learner: one way to adapt.
        sampler: the meta-batches of training.
        device: of the model.
        batches: meta-batches for the mean and the variance of the meta-gradient, at least 2.
        iterations: products with the Hessian of F per block, of two meta-gradients each.
    """
    blocks = {"w": learner.partition.adapted, "phi": learner.partition.shared}
    kept: dict[str, list[torch.Tensor]] = {block: [] for block, names in blocks.items() if names}
    losses, hits = [], []
    for i in range(batches):
        tasks = sampler.batch(i, device)
        with at_rest(learner, tasks):
            grads, stats = learner.meta_gradient(tasks)
        losses.append(stats.loss)
        hits.append(stats.accuracy)
        for block, own in kept.items():
            own.append(torch.cat([grads[n].detach().reshape(-1) for n in blocks[block]]).double())
    noise = {block: _noise(own) for block, own in kept.items()}
    found: dict[str, float] = {}
    for block in kept:
        smooth = meta_smoothness(learner, sampler.batch(0, device), block, iterations=iterations)  # type: ignore[arg-type]
        found[block] = 0.0 if smooth is None else smooth.value
    accuracies = [h for h in hits if h is not None]
    numbers = [*losses, *found.values(), *(n.variance for n in noise.values())]
    if not all(map(math.isfinite, numbers)):
        nothing = dict.fromkeys(kept, 0.0)
        return Local(math.inf, None, nothing, nothing, nothing)
    return Local(
        statistics.fmean(losses),
        statistics.fmean(accuracies) if accuracies else None,
        {block: n.square for block, n in noise.items()},
        {block: n.variance for block, n in noise.items()},
        found,
    )


def _noise(gradients: list[torch.Tensor]) -> Noise:
    """Unbiased squared mean and variance of a few meta-gradients."""
    stacked = torch.stack(gradients)
    mean, n = stacked.mean(0), len(stacked)
    variance = float((stacked - mean).square().sum() / (n - 1))
    return Noise(float(mean @ mean) - variance / n, variance, n)


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

    On a CPU it is what the process holds, so memory that an earlier call left with the allocator does not show again.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before: float = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / MB
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
