"""Steps a second of training with several processes of one thread each, against one process with as many threads.

Each measurement is a training of its own under torchrun, by hs.train; the ways take turns, and medians over rounds are kept.

python benchmarks/ranks.py --ranks 2 --rounds 5 --out ranks.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import headstart as hs
from common import machine
from headstart.data import Source, Split

BEGIN = 3
"""Steps that do not count, in which the model is analysed and memory is got."""


def source(size: int = 28) -> Source:
    """Classes of noisy copies of one random picture."""
    generator = torch.Generator().manual_seed(0)

    def split(name: str, classes: int) -> Split:
        pictures = torch.randint(0, 215, (classes, 1, size, size), generator=generator).repeat_interleave(20, 0)
        pictures += torch.randint(0, 40, pictures.shape, generator=generator)
        return Split(pictures.to(torch.uint8), [f"{name} {i}" for i in range(classes)], [20] * classes, name)

    return Source("noise", split("train", 100), split("validation", 10), split("test", 10))


CONFIG = hs.TrainConfig(queries=5, validation_episodes=2, validate_every=100_000)
WORKLOADS: dict[str, Callable[[int], tuple[hs.MetaLearner, Any, hs.TrainConfig]]] = {
    "ANIL, conv4-64, dense, 128 tasks": lambda pools: (
        hs.anil(hs.models.conv4(1, 5, 28), 5, 0.1),
        source(),
        replace(CONFIG, sampling="dense", tasks=128, pools=pools),
    ),
    "MAML, conv4-16, 1 step, 8 tasks": lambda pools: (
        hs.maml(hs.models.conv4(1, 5, 28, filters=16), 1, 0.01),
        source(),
        replace(CONFIG, tasks=8, pools=pools),
    ),
    "MAML, mlp 40-40, 1 step, 32 sine waves": lambda pools: (
        hs.maml(hs.models.mlp(1, 1), 1, 0.01, loss="squared_error"),
        hs.data.load("sinusoid"),
        replace(CONFIG, shots=10, queries=10, tasks=32, pools=pools),
    ),
}


def measured(workload: str, steps: int, pools: int, threads: int, out: Path) -> None:
    """Trains, and writes what a step took, and the weights in short."""
    from headstart.ranks import joined
    from headstart.training.divided import digest

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with joined() as ranks:
        learner, data, config = WORKLOADS[workload](pools)
        run = hs.train(learner, data, replace(config, iterations=BEGIN + steps), quiet=True)
        if ranks.is_first:
            ends = [entry["seconds"] for entry in run.history if "loss" in entry]
            each = [b - a for a, b in zip(ends[BEGIN - 1 :], ends[BEGIN:], strict=False)]
            losses = [entry["loss"] for entry in run.history if "loss" in entry]
            out.write_text(json.dumps({"seconds": statistics.median(each), "losses": losses, "weights": digest(learner.parameters())}))


def launched(workload: str, steps: int, pools: int, processes: int, threads: int) -> dict[str, Any]:
    """One measurement in processes of its own."""
    with tempfile.TemporaryDirectory() as home:
        out = Path(home) / "found.json"
        many = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        own = [__file__, "--measure", workload, "--steps", str(steps), "--pools", str(pools), "--threads", str(threads), "--out", str(out)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
        done = subprocess.run([sys.executable, *many, *own], capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"{workload} with {processes} processes failed:\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pools", type=int, default=0, help="parts of a meta-batch; as many as ranks by default")
    parser.add_argument("--only", default="", help="workloads whose name has this in it")
    parser.add_argument("--out", type=Path, help="a JSON file of all that was measured")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    pools = options.pools or options.ranks
    if options.measure:
        measured(options.measure, options.steps, pools, options.threads, options.out)
        return
    ways = {f"1 process, {options.ranks} threads": (1, options.ranks), f"{options.ranks} ranks, 1 thread each": (options.ranks, 1)}
    ways["1 process, 1 thread"] = (1, 1)
    names = [name for name in WORKLOADS if options.only in name]
    found: dict[str, dict[str, list[dict[str, Any]]]] = {name: {way: [] for way in ways} for name in names}
    for _ in range(options.rounds):
        for name in names:
            for way, (processes, threads) in ways.items():
                found[name][way].append(launched(name, options.steps, pools, processes, threads))
    print(f"{machine()}; {pools} pools, medians of {options.rounds} rounds of {options.steps} steps, steps a second\n")
    print(f"| | {' | '.join(ways)} | ranks / threads | same weights as with 1 thread |\n|---|{'---|' * (len(ways) + 2)}")
    table = {}
    for name, by_way in found.items():
        rates = {way: 1 / statistics.median(one["seconds"] for one in own) for way, own in by_way.items()}
        threads, ranks, _ = ways
        same = {one["weights"] for way in (ranks, "1 process, 1 thread") for one in by_way[way]}
        table[name] = {"rates": rates, "same weights": len(same) == 1, "all": by_way}
        shown = " | ".join(f"{rate:.3g}" for rate in rates.values())
        print(f"| {name} | {shown} | {rates[ranks] / rates[threads]:.2f} | {'yes' if len(same) == 1 else 'no'} |")
    if options.out:
        options.out.write_text(json.dumps({"machine": machine(), "pools": pools, "workloads": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
