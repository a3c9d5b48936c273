"""Two versions of headstart side by side, interleaved in one process; prints a table for docs/benchmarks.md.

python benchmarks/against.py OTHER/src   (the folder that holds the other version's package, such as a git worktree's)
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from common import interleaved, machine


def version_in(folder: Path) -> ModuleType:
    """The package in a folder, beside whatever other version is loaded."""
    for name in [n for n in sys.modules if n == "headstart" or n.startswith("headstart.")]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        found = importlib.import_module("headstart")
        for module in ("theory", "training.loop", "experiments"):  # nothing is to be imported later, from the wrong place
            importlib.import_module(f"headstart.{module}")
        return found
    finally:
        sys.path.pop(0)


def tasks(hs: Any, count: int, support: int = 25, query: int = 25, shape: tuple[int, ...] = (3, 32, 32)) -> Any:
    torch.manual_seed(0)
    y = torch.arange(5).repeat(count, support // 5), torch.arange(5).repeat(count, query // 5)
    return hs.TaskBatch(torch.randn(count, support, *shape), y[0], torch.randn(count, query, *shape), y[1])


def cases_of(hs: Any) -> dict[str, Any]:
    def step(make: Any, batch: Any) -> Any:
        torch.manual_seed(0)
        learner = make()
        return lambda: learner.meta_gradient(batch)

    conv, small = tasks(hs, 8), tasks(hs, 32, shape=(1600,))
    four, waves = tasks(hs, 4), tasks(hs, 25, 5, 10, (20,))
    mlp = lambda: hs.models.mlp(20, 5, (40, 40))  # noqa: E731
    return {
        "ANIL, conv4, 8 tasks, N = 5": step(lambda: hs.anil(hs.models.conv4(), 5, 0.1), conv),
        "ANIL, conv4, 8 tasks, N = 20": step(lambda: hs.anil(hs.models.conv4(), 20, 0.1), conv),
        "head alone, D = 1600, 32 tasks, N = 5": step(lambda: hs.anil(torch.nn.Linear(1600, 5), 5, 0.01), small),
        "head alone, D = 1600, 32 tasks, N = 100": step(lambda: hs.anil(torch.nn.Linear(1600, 5), 100, 0.01), small),
        "last:2, conv4, 4 tasks, N = 5": step(lambda: hs.anil(hs.models.conv4(), 5, 0.01, adapt="last:2"), four),
        "MAML, conv4, 4 tasks, N = 5": step(lambda: hs.maml(hs.models.conv4(), 5, 0.01), four),
        "FOMAML, conv4, 4 tasks, N = 5": step(lambda: hs.fomaml(hs.models.conv4(), 5, 0.01), four),
        "MAML, mlp, 25 tasks, N = 5": step(lambda: hs.maml(mlp(), 5, 0.01), waves),
        "FOMAML, mlp, 25 tasks, N = 5": step(lambda: hs.fomaml(mlp(), 5, 0.01), waves),
        "FOMAML, mlp, 25 tasks, N = 5, loop": step(lambda: hs.fomaml(mlp(), 5, 0.01, vectorise=False), waves),
    }


def main() -> None:
    torch.set_flush_denormal(True)
    here = Path(__file__).resolve().parent.parent / "src"
    old, new = cases_of(version_in(Path(sys.argv[1]).resolve())), cases_of(version_in(here))
    print(f"{machine()}\n\n| step | before, s | now, s | now over before |\n|---|---|---|---|")
    for name in new:
        found = interleaved({"old": old[name], "new": new[name]}, rounds=15)
        print(f"| {name} | {found['old']:.4f} | {found['new']:.4f} | {found['new'] / found['old']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
