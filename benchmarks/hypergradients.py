"""What a meta-gradient costs by hypergradient, number of steps and way over tasks; prints the tables of docs/benchmarks.md.

python benchmarks/hypergradients.py [time|memory|steps]
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import torch

import headstart as hs
from common import interleaved, machine

MODES = {
    "unrolled": hs.Unrolled(),
    "recursive": hs.Recursive("double-backward"),
    "recursive, forward-over-reverse": hs.Recursive("forward-over-reverse"),
    "first order": hs.FirstOrder(),
}


def tasks(count: int, support: int = 25, query: int = 25, size: int = 32) -> hs.TaskBatch:
    torch.manual_seed(0)
    y = torch.arange(5).repeat(count, support // 5), torch.arange(5).repeat(count, query // 5)
    return hs.TaskBatch(torch.randn(count, support, 3, size, size), y[0], torch.randn(count, query, 3, size, size), y[1])


def time_table() -> None:
    """Seconds of a meta-gradient of 4 tasks, 25 support and 25 query images of 32 px, conv4-64."""
    torch.set_flush_denormal(True)
    model, batch = hs.models.conv4(), tasks(4)
    for adapt in ("all", "last:2"):
        print(f"\nadapt={adapt}, seconds per meta-gradient (relative to unrolled, loop)\n\n| N | way | " + " | ".join(MODES) + " |")
        print("|---|---|" + "---|" * len(MODES))
        for steps in (1, 5, 10, 20):
            cases = {}
            for vectorise in (False, True):
                for name, mode in MODES.items():
                    learner = hs.anil(model, steps, 0.01, adapt=adapt, hypergradient=mode, vectorise=vectorise)
                    cases[f"{vectorise} {name}"] = lambda learner=learner: learner.meta_gradient(batch)
            found = interleaved(cases, rounds=3)
            base = found["False unrolled"]
            for vectorise in (False, True):
                cells = [f"{found[f'{vectorise} {n}']:.2f} ({found[f'{vectorise} {n}'] / base:.2f})" for n in MODES]
                print(f"| {steps} | {'vmap' if vectorise else 'loop'} | " + " | ".join(cells) + " |", flush=True)


def memory_table() -> None:
    """Peak resident memory of a MAML step of one task, each in a fresh process."""
    print("\nadapt=all, peak resident MiB of a meta-gradient, one task of 25 + 25 images, each in a fresh process\n")
    print("| hypergradient | allocator | N = 1 | 5 | 20 | 20 over 1 |\n|---|---|---|---|---|---|")
    # glibc keeps freed blocks of changing sizes; with a fixed threshold it returns them, and the peak is what is in use.
    for allocator, extra in (("as it is", {}), ("returns freed blocks", {"MALLOC_MMAP_THRESHOLD_": "65536"})):
        for name in ("recursive", "recursive, forward-over-reverse", "unrolled"):
            peaks = {}
            for steps in (1, 5, 20):
                command = [sys.executable, __file__, "peak", name, str(steps)]
                done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **extra})
                peaks[steps] = float(done.stdout)
            cells = " | ".join(f"{v:.0f}" for v in peaks.values())
            print(f"| {name} | {allocator} | {cells} | {peaks[20] / peaks[1]:.2f} |", flush=True)


def peak(name: str, steps: int) -> None:
    learner = hs.maml(hs.models.conv4(), steps, 0.01, hypergradient=MODES[name])
    batch = tasks(1)
    for _ in range(2):
        learner.meta_gradient(batch)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def steps_table() -> None:
    """Seconds of a step with an adapted head, by N: 8 tasks of 25 + 25 images, conv4-64."""
    torch.set_flush_denormal(True)
    model, batch = hs.models.conv4(), tasks(8)
    print("\nadapt=head, sample space, seconds per meta-gradient of 8 tasks, each N in turns with N = 1\n")
    print("| N | seconds | over N = 1 |\n|---|---|---|")
    for steps in (5, 20, 100, 1000):
        pair = {n: hs.anil(model, n, 0.1) for n in (1, steps)}
        found = interleaved({str(n): lambda own=own: own.meta_gradient(batch) for n, own in pair.items()}, rounds=31)
        print(f"| {steps} | {found[str(steps)]:.3f} | {found[str(steps)] / found['1']:.3f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        peak(sys.argv[2], int(sys.argv[3]))
    else:
        print(machine())
        for name, table in (("memory", memory_table), ("steps", steps_table), ("time", time_table)):
            if len(sys.argv) == 1 or name in sys.argv[1:]:
                table()
