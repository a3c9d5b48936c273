"""What of a step is waiting for data: sampling, gathering, changing and normalising pictures, one batch ahead in a thread of its own.

python benchmarks/pipeline.py SHARED_DATA [--steps 30]

SHARED_DATA holds the folders cifar100, omniglot and fsmol. Glyphs are drawn on the spot.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

import headstart as hs
from common import machine
from headstart.training.batches import Batches
from headstart.training.config import RunConfig
from headstart.training.loop import training_sampler
from headstart.training.run import learner_for, load

CONFIGS = {"fc100-5shot": "cifar100", "cifar-fs-5shot": "cifar100", "omniglot-20way-1shot": "omniglot", "fsmol": "fsmol", "quickstart": ""}


def waiting(config: RunConfig, steps: int) -> tuple[float, float, float]:
    """Seconds of a step, of waiting for its batch, and of drawing one without a thread."""
    source = load(config)
    learner, sampler = learner_for(config, source), training_sampler(source, config.train)
    if learner.inner.undecided:
        learner.use_lr(0.1)
    learner.model.train()
    device = torch.device("cpu")
    begin = time.perf_counter()
    for i in range(3):
        learner.meta_gradient(sampler.batch(i, device))
    drawn = time.perf_counter()
    for i in range(3):
        sampler.batch(i, device)
    alone = (time.perf_counter() - drawn) / 3
    waited = 0.0
    with Batches(lambda i: sampler.batch(i, device), steps, ahead=True) as batches:
        batches[0]
        begin = time.perf_counter()
        for i in range(1, steps):
            asked = time.perf_counter()
            batch = batches[i]
            waited += time.perf_counter() - asked
            learner.meta_gradient(batch)
        whole = time.perf_counter() - begin
    return whole / (steps - 1), waited / (steps - 1), alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    asked = parser.parse_args()
    hs.tune_process()
    print(machine())
    print("\n| configs/ | a step, s | waiting for data | drawing a batch alone, s |\n|---|---|---|---|")
    for name, folder in CONFIGS.items():
        config = RunConfig.load(Path(__file__).parent.parent / f"configs/{name}.json")
        config = replace(config, data_path=str(asked.data / folder) if folder else "")
        step, waited, alone = waiting(config, asked.steps)
        print(f"| {name} | {step:.3f} | {100 * waited / step:.1f} % | {alone:.3f} |", flush=True)


if __name__ == "__main__":
    main()
