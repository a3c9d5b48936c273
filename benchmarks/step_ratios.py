"""An ANIL step over a supervised step on the same pictures, and over itself with one inner step: medians of interleaved rounds.

python benchmarks/step_ratios.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import headstart as hs
from common import machine

STEPS = (1, 5, 20, 100)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return hs.models.conv4(ways=5, size=32, filters=64)


def tasks(count: int) -> hs.TaskBatch:
    """5-way 5-shot tasks of noise with 5 queries of each class."""
    x, y = torch.randn(count, 50, 3, 32, 32), torch.arange(5).repeat(10).repeat(count, 1)
    return hs.TaskBatch(x[:, :25], y[:, :25], x[:, 25:], y[:, 25:])


def supervised(batch: hs.TaskBatch, chunk: int = 100) -> Callable[[], None]:
    """A gradient of the same network on the same pictures, a hundred at a time."""
    model = network()
    x = torch.cat([batch.support_x, batch.query_x], 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    y = torch.cat([batch.support_y, batch.query_y], 1).flatten()

    def step() -> None:
        model.zero_grad()
        for i in range(0, len(x), chunk):
            torch.nn.functional.cross_entropy(model(x[i : i + chunk]), y[i : i + chunk]).backward()

    return step


def anil(batch: hs.TaskBatch, steps: int = 5, **options: Any) -> Callable[[], object]:
    """A meta-gradient."""
    learner = hs.anil(network(), steps, 0.05, **options)
    return lambda: learner.meta_gradient(batch)


def over_first(contestants: dict[str, Callable[[], object]], rounds: int) -> str:
    """Medians over that of the first, after two rounds that do not count."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 2):
        for name, step in contestants.items():
            begin = time.perf_counter()
            step()
            if number > 1:
                taken[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    first = next(iter(medians.values()))
    return ", ".join(f"{name} {value / first:.3f}" for name, value in medians.items()) + f" (the first: {first:.3f} s, {rounds} rounds)"


def main() -> None:
    hs.tune_process()
    print(machine())
    for count, rounds in ((8, 21), (32, 9)):
        batch = tasks(count)
        ways = {"supervised": supervised(batch), "anil": anil(batch), "chunk_examples=50": anil(batch, chunk_examples=50)}
        ways |= {"chunk_examples=200": anil(batch, chunk_examples=200), "chunk_tasks=8": anil(batch, chunk_tasks=8)}
        print(f"{count} tasks: {over_first(ways, rounds)}", flush=True)
    batch = tasks(8)
    print(f"inner steps: {over_first({f'N = {n}': anil(batch, n) for n in STEPS}, 25)}")


if __name__ == "__main__":
    main()
