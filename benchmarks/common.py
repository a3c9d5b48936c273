"""What the benchmarks share: interleaved timing, and a description of the machine."""

from __future__ import annotations

import datetime
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def interleaved(cases: dict[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """Median seconds of each case, the cases taking turns in one process, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for i in range(rounds + 1):
        for name, run in cases.items():
            begin = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine() -> str:
    """Machine, date and versions, for the head of a table."""
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?")
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{cpu}, {torch.get_num_threads()} threads{gpu}; {datetime.date.today()}; {versions}"
