"""``python -m headstart.reproduction.memory FOLDER SETTING``: the MiB that a step of a setting takes, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from headstart.measuring.cost import peak_memory
from headstart.reproduction.costs import Bench
from headstart.reproduction.plan import Work


def memory(out: Path, name: str) -> float | None:
    """What one step takes beyond what was taken before; None where the system does not tell."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    work = Work.load(out)
    setting = next(cell.setting for cell in work.cells if cell.setting.name() == name)
    bench = Bench.of(setting, work.source)
    Bench(bench.learner, bench.tasks[:1].own_pool()).step()  # what a first call sets up is not of the step
    return peak_memory(bench.step, next(bench.learner.model.parameters()).device)


if __name__ == "__main__":
    print(memory(Path(sys.argv[1]), sys.argv[2]))
