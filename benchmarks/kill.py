"""Kills a small training run at random moments, lets it resume, and compares with the run that nobody killed, bit for bit.

python benchmarks/kill.py 200
python benchmarks/kill.py 20 --ranks 2    kills one of several processes under torchrun, which starts them again; every second
                                          run goes on with another number of processes instead: 2, then 1, then 2
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import headstart as hs
from headstart.training import run as runs
from headstart.training.config import LearnerConfig, RunConfig, TrainConfig

SETTINGS = TrainConfig(shots=5, queries=5, tasks=2, iterations=30, validate_every=2, validation_episodes=4, outer_lr=0.01)
CONFIG = RunConfig(data="sinusoid", learner=LearnerConfig(adapt="all", steps=1, lr=0.01, hidden=(8,), solver="metasgd"), train=SETTINGS)
KINDS = ("safetensors", "previous.safetensors", "json")
KEPT = {".lock", "config.json", "metrics.jsonl", *(f"{name}.{kind}" for name in ("last", "best") for kind in KINDS)}
DIVIDED = replace(CONFIG, train=replace(SETTINGS, tasks=4, pools=2, iterations=300, validate_every=10))
FORK = multiprocessing.get_context("fork")  # torch is imported once, by a parent that never computes anything


def as_python(folder: Path) -> None:
    """A user's own program, which always says resume=True."""
    torch.manual_seed(0)
    learner = hs.metasgd(hs.models.mlp(1, 1, (8,)), 1, 0.01, loss="squared_error")
    hs.train(learner, hs.data.load("sinusoid"), SETTINGS, out=folder, resume=True, quiet=True)


def as_command(folder: Path) -> None:
    """What ``headstart train --resume`` does."""
    runs.start(CONFIG, folder, resume=True, quiet=True)


def begin(way: Any, folder: Path, log: Path) -> Any:
    """A process that trains in a folder, which is there already."""

    def work() -> None:
        torch.set_num_threads(1)
        try:
            way(folder)
        except BaseException:
            log.write_text(traceback.format_exc())
            raise

    process = FORK.Process(target=work)
    process.start()
    return process


def left(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """All tensors of both checkpoints, and the metrics."""
    tensors = {f"{name}/{k}": v for name in ("last", "best") for k, v in load_file(folder / f"{name}.safetensors").items()}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return tensors, [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def fault(folder: Path, whole: tuple[dict[str, torch.Tensor], list[dict[str, Any]]], kept: frozenset[str] = frozenset(KEPT)) -> str:
    """What is wrong with a run that was killed and resumed; "" if nothing is."""
    others = {path.name for path in folder.iterdir()} - kept
    if others:
        return f"left over: {', '.join(sorted(others))}"
    tensors, metrics = left(folder)
    if tensors.keys() != whole[0].keys() or not all(torch.equal(tensors[k], whole[0][k]) for k in tensors):
        return "other weights"
    return "" if metrics == whole[1] else "other metrics"


def trial(way: Any, folder: Path, wait: list[float], log: Path) -> tuple[str, str]:
    """Kills a run after each of some times, and lets it resume in the end; how far it was at the first kill, and what went wrong."""
    reached = ""
    for seconds in wait:
        process = begin(way, folder, log)
        time.sleep(seconds)
        process.kill()
        process.join()
        last = folder / "last.safetensors"
        found = sorted(path.name for path in folder.iterdir())
        where = "nothing kept" if not last.exists() else "half-written" if any(n.endswith(".tmp") for n in found) else "between"
        reached = reached or ("finished" if process.exitcode == 0 else where)
    process = begin(way, folder, log)
    process.join()
    return reached, log.read_text() if process.exitcode else ""


# -- several processes ---------------------------------------------------------------------------------------------------------


def launched(ranks: int, folder: Path, config: Path, *more: str, restarts: int = 0) -> subprocess.Popen[str]:
    """``headstart train`` under torchrun."""
    log = (folder.parent / f"{folder.name}.log").open("a")
    many = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", f"--max-restarts={restarts}")
    train = ("-m", "headstart", "train", "--config", str(config), "--out", str(folder), "--test-episodes", "0", *more)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *many, *train], stdout=log, stderr=log, text=True, env=environment)


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun has started."""
    try:
        return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    except OSError:
        return []


def at(process: subprocess.Popen[str], seconds: float, rng: random.Random, last: Path, until: float) -> str:
    """Kills a random rank so many seconds after the first was started; how far the run was."""
    while not workers(process) and process.poll() is None:
        time.sleep(0.01)
    end = time.monotonic() + min(seconds, until)
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)
    found = workers(process)
    if process.poll() is not None or not found:
        return "finished"
    rank = rng.randrange(len(found))
    where = f"rank {rank}, {'going' if last.exists() else 'nothing kept'}"
    try:
        os.kill(found[rank], signal.SIGKILL)
    except ProcessLookupError:
        return "finished"
    return where


def of_ranks(count: int, ranks: int, seed: int) -> int:
    """Kills ranks at random moments; compares with the run of one process that nobody killed."""
    rng, faults, where = random.Random(seed), list[str](), Counter[str]()
    kept = frozenset(KEPT | {"report.html"})
    with tempfile.TemporaryDirectory() as home:
        config = Path(home) / "config.json"
        DIVIDED.save(config)
        one, many = Path(home) / "one", Path(home) / "many"
        assert launched(1, one, config).wait() == 0, (Path(home) / "one.log").read_text()[-2000:]
        start = time.monotonic()
        assert launched(ranks, many, config).wait() == 0, (Path(home) / "many.log").read_text()[-2000:]
        seconds, whole = 0.7 * (time.monotonic() - start), left(one)  # later, most would have ended before they are killed
        if wrong := fault(many, whole, kept):
            faults.append(f"{ranks} ranks, not killed: {wrong}")
        for i in range(count):
            folder = Path(home) / f"{i}"
            folder.mkdir()
            moments = [rng.random() * seconds for _ in range(rng.choice((1, 1, 2)))]
            if i % 2 == 0:
                process = launched(ranks, folder, config, restarts=len(moments))
                for moment in moments:
                    where[at(process, moment, rng, folder / "last.safetensors", seconds)] += 1
                code = process.wait()
            else:
                for r, moment in zip((ranks, 1), (rng.random() * seconds, rng.random() * seconds), strict=True):
                    process = launched(r, folder, config, "--resume")
                    where[at(process, moment, rng, folder / "last.safetensors", seconds)] += 1
                    process.wait()
                code = launched(ranks, folder, config, "--resume").wait()
            wrong = (Path(home) / f"{i}.log").read_text()[-1500:] if code else fault(folder, whole, kept)
            if wrong:
                faults.append(wrong)
                print(f"run {i}: {wrong}", file=sys.stderr)
    moments_ = ", ".join(f"{n} {name}" for name, n in sorted(where.items()))
    print(f"{count - len(faults)} of {count} runs of {ranks} ranks ended with the weights of one process, bit for bit (kills: {moments_})")
    return 1 if faults else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=200, help="how often to kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=0, help="processes of a run under torchrun; 0 for runs of one process, without it")
    options = parser.parse_args()
    if options.ranks:
        return of_ranks(options.count, options.ranks, options.seed)
    rng, faults, where = random.Random(options.seed), [], Counter[str]()
    with tempfile.TemporaryDirectory() as home:
        whole, seconds = {}, {}
        for way in (as_python, as_command):
            for again in range(2):  # the second is as fast as those that are killed
                folder = Path(home) / f"{way.__name__}-{again}"
                folder.mkdir()
                start = time.monotonic()
                begin(way, folder, Path(home) / "log").join()
                whole[way], seconds[way] = left(folder), time.monotonic() - start
        for i in range(options.count):
            way, folder, log = (as_python, as_command)[i % 2], Path(home) / f"{i}", Path(home) / f"{i}.log"
            folder.mkdir()
            # A third within the first milliseconds, some killed again after they had resumed.
            moment = lambda: rng.random() * (0.03 if rng.random() < 1 / 3 else seconds[way])  # noqa: B023, E731
            reached, failed = trial(way, folder, [moment() for _ in range(rng.choice((1, 1, 2, 3)))], log)
            where[reached] += 1
            wrong = failed or fault(folder, whole[way])
            if wrong:
                faults.append(wrong)
                print(f"run {i} ({way.__name__}, {reached}): {wrong}", file=sys.stderr)
    moments = ", ".join(f"{n} {name}" for name, n in sorted(where.items()))
    print(f"{options.count - len(faults)} of {options.count} killed runs resumed to the same weights, bit for bit (at the kill: {moments})")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
