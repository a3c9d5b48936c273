"""Kills processes that write a file over and over, at random moments, and looks whether a whole file is there: the old one or the new.

python benchmarks/kill_writers.py 100
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

import headstart as hs
from headstart.container import write_json
from headstart.data import Split
from headstart.data.files import cache
from headstart.data.samplers.classes import Episodes
from headstart.data.samplers.fixed import EpisodeList
from headstart.training import checkpoint
from headstart.training.holding import LEFTOVER
from headstart.using import Preprocessing

FORK = multiprocessing.get_context("fork")
STATE: dict[str, Any] = {"iteration": 1, "best": None, "metric": "accuracy", "seconds": 0.0}
Write = Callable[[Path, int], Any]


def writers() -> dict[str, Write]:
    """Functions that write version 0 or 1 of something at a path."""
    learners = []
    for seed in range(2):
        torch.manual_seed(seed)
        learners.append(hs.metasgd(hs.models.mlp(2, 2, (300, 300)), 1, 0.1))
    x, y = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    adapted = [own.adapt(x, y) for own in learners]
    predictors = [hs.Predictor.of(hs.TrainedStart(own, Preprocessing("vectors", (2,))), x, y.tolist(), 1) for own in learners]
    classes = Split(torch.zeros(40, 1, 2, 2, dtype=torch.uint8), list("abcde"), [8] * 5, "test")
    listed = [EpisodeList.of(Episodes(classes, ways=2, shots=1, queries=1, tasks=4, seed=seed), 400) for seed in range(2)]
    return {
        "learner": lambda path, i: learners[i].save(path),
        "adapted": lambda path, i: adapted[i].save(path),
        "predictor": lambda path, i: predictors[i].save(path),
        "checkpoint": lambda path, i: checkpoint.save(path, learners[i], None, STATE),
        "episodes": lambda path, i: listed[i].save(path),
        "json": lambda path, i: write_json(path, [i] * 20_000),
        "cache": lambda path, i: cache._write(path, {"a": np.full(2**18, i)}),
    }


def found(path: Path) -> bytes | None:
    """What is at a path; of an entry of the cache, what is read of it; None for nothing."""
    if path.is_dir():
        arrays = cache._read(path)
        return None if arrays is None else arrays["a"].tobytes()
    return path.read_bytes() if path.exists() else None


def forever(write: Write, path: Path) -> None:
    torch.set_num_threads(1)
    for version in cycle((0, 1)):
        write(path, version)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=100, help="how often to kill each writer")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, faults, moments = random.Random(options.seed), 0, Counter[str]()
    with tempfile.TemporaryDirectory() as home:
        for name, write in writers().items():
            folder = Path(home, name)
            folder.mkdir()
            versions = []
            for version in (0, 1):
                write(folder / "file", version)
                versions.append(found(folder / "file"))
            assert versions[0] != versions[1]
            for _ in range(options.count):
                process = FORK.Process(target=forever, args=(write, folder / "file"))
                process.start()
                time.sleep(rng.random() * 0.1)
                process.kill()
                process.join()
                whole = found(folder / "file")
                moments["half-written" if any(LEFTOVER.fullmatch(p.name) for p in folder.iterdir()) else "between"] += 1
                # An entry of the cache is away for a moment while a new one takes its place, and is made again by whoever asks for it.
                if whole not in versions and not (name == "cache" and whole is None):
                    faults += 1
                    print(f"{name}: {'nothing' if whole is None else f'{len(whole)} bytes of neither version'}", file=sys.stderr)
                for left in folder.glob(".*.tmp"):
                    left.unlink()
    total = sum(moments.values())
    print(
        f"{total - faults} of {total} killed writers left a whole file (at the kill: {', '.join(f'{n} {m}' for m, n in moments.items())})"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
