"""What one outer step of every setting takes: interleaved in one process, after all cells are finished, so that nothing runs beside it."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headstart.container import write_text
from headstart.counting import ledger
from headstart.data.drawing import Data
from headstart.evaluation.batch_norm import training_mode
from headstart.learner import MetaLearner
from headstart.measuring.predicted import predicted_calls
from headstart.program.modes import undisturbed
from headstart.reproduction.grid import Cell, Setting
from headstart.reproduction.scales import Scale, changed
from headstart.tasks import TaskBatch
from headstart.training.loop import training_sampler
from headstart.training.run import learner_for, some_classes
from headstart.version import __version__

COSTS = "costs.json"
OVERHEAD = 1.2
"""Seconds of a cell, or of a measurement of memory, that do not depend on its size: building, analysing, importing, files."""


@dataclass
class Bench:
    """One setting, ready to be timed on a batch of its tasks."""

    learner: MetaLearner
    tasks: TaskBatch

    @classmethod
    def of(cls, setting: Setting, source: Data) -> Bench:
        """A setting's learner at its start, and its first batch."""
        own = some_classes(setting.config, source)
        learner = learner_for(setting.config, own)
        training_mode(learner)
        return cls(learner, training_sampler(own, setting.config.train).batch(0, next(learner.model.parameters()).device))

    def step(self) -> Any:
        """A meta-gradient: what an outer step consists of, but for the optimizer."""
        _, stats = self.learner.meta_gradient(self.tasks)
        float(stats.loss)  # waits for a GPU
        return stats


def measure_costs(cells: Sequence[Cell], source: Data, scale: Scale, path: Path) -> None:
    """Measures every setting and writes the file.

    Kept for each: ``seconds``, the median of interleaved steps; ``seconds_unrolled``, the same where the inner loop of the head is
    unrolled, as other implementations do it; ``calls`` by oracle, as the paper counts them, and their sum; ``multiply_adds`` as the
    dispatcher sees them, so those of headstart's own solver; ``memory``, the most MiB beyond what was taken before a step, in a process
    of its own (None where the system does not tell).
    """
    settings = {cell.setting.name(): cell.setting for cell in cells}
    benches = {name: Bench.of(setting, source) for name, setting in settings.items()}
    plain = {name: Bench.of(_unrolled(setting), source) for name, setting in settings.items() if _may_unroll(setting)}
    found: dict[str, dict[str, Any]] = {}
    for name, bench in benches.items():
        bench.step()  # the first sets things up
        with ledger(multiply_adds=True) as book, undisturbed(bench.learner.model, bench.tasks.examples):
            stats = bench.step()
        book_of = predicted_calls(bench.learner, bench.tasks, int(stats.info["iterations"]) if "iterations" in stats.info else None)
        calls = {oracle: entry.calls for oracle, entry in book_of.entries.items()}
        numbers = sum(entry.numbers for entry in book_of.entries.values())
        found[name] = {"calls": calls, "all_calls": sum(calls.values()), "numbers": numbers, "multiply_adds": book.multiply_adds}
    taken: dict[tuple[str, str], list[float]] = {}
    for _ in range(scale.rounds):
        for key, group in (("seconds", benches), ("seconds_unrolled", plain)):
            for name, bench in group.items():
                bench.step()  # finds caches and memory as the setting before left them, so it does not count
                begin = time.perf_counter()
                bench.step()
                taken.setdefault((name, key), []).append(time.perf_counter() - begin)
    for (name, key), own in taken.items():
        found[name][key] = statistics.median(own)
    out = path.parent
    # A process for each takes seconds, so the smallest scale weighs what is compared by weight alone.
    weighed = {c.setting.name() for c in cells if c.setting.geometry and (scale.name != "smoke" or "F3" in c.figures)}
    for name in settings:
        found[name]["memory"] = _memory(out, name) if name in weighed else None
    text = json.dumps({"machine": machine(), "settings": found}, indent=1) + "\n"
    write_text(path, text)


def _may_unroll(setting: Setting) -> bool:
    return setting.config.learner.adapt == "head" and setting.config.learner.hypergradient == "auto"


def _unrolled(setting: Setting) -> Setting:
    return replace(setting, config=changed(setting.config, hypergradient="unrolled"))


def machine() -> dict[str, Any]:
    """Machine, date and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor() or platform.machine())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads per process": torch.get_num_threads(),
        "gpu": gpu,
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "headstart": __version__,
    }


def _memory(out: Path, setting: str) -> float | None:
    """MiB of one step, in a process that has not run anything before: what an allocator keeps does not show again."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-m", "headstart.reproduction.memory", str(out), setting],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    return float(found.stdout) if found.returncode == 0 and found.stdout.strip() not in ("", "None") else None


def estimate(cells: Sequence[Cell], source: Data, scale: Scale) -> float:
    """Seconds that some cells take one process, from a step or two of what is cheap and dear among them, each on two tasks."""
    kinds: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        kinds.setdefault((cell.config.learner.adapt, cell.config.learner.model_options), []).append(cell)
    total = 0.0
    settings: dict[str, float] = {}
    for own in kinds.values():
        steps = sorted({c.config.learner.steps for c in own})
        ends = {N: _per_image(next(c for c in own if c.config.learner.steps == N).setting, source) for N in {steps[0], steps[-1]}}
        low, high = (ends[steps[0]], ends[steps[-1]])
        slope = (high - low) / max(1, steps[-1] - steps[0])
        for cell in own:
            train = cell.config.train
            size = train.ways * (train.shots + train.queries)
            images = train.pool_classes * train.pool_examples if train.sampling == "dense" else train.tasks * size
            each = low + slope * (cell.config.learner.steps - steps[0])
            looked = len(scale.looks) * scale.objective_tasks * size
            tested = (scale.last_episodes + scale.test_episodes * (len(scale.looks) - 1)) * (size + 10 * train.ways) / 3
            total += each * (train.iterations * images + looked + min(tested, 12_000 * len(scale.looks)) / 2) + OVERHEAD
            settings[cell.setting.name()] = 4 * scale.rounds * each * images + (OVERHEAD if cell.setting.geometry else 0.0)
    return total + sum(settings.values())


def _per_image(setting: Setting, source: Data) -> float:
    bench = Bench.of(setting, source)
    bench.tasks = bench.tasks[:2].own_pool()
    bench.step()
    begin = time.perf_counter()
    bench.step()
    return (time.perf_counter() - begin) / bench.tasks.pool_size
