"""Seconds of training until FC100's accuracy is what the usual loop over tasks has after a time: 5-way 5-shot, conv4-64.

python benchmarks/time_to_accuracy.py DATA_PATH [--seconds 150] [--seeds 0 1 2] [--out found.json]

The loop: eight independent tasks a step, task after task, its usual network, Adam with 1e-3, N = 5, α = 0.1 (learn2learn's settings, a
quarter of its tasks). Ours: configs/fc100-5shot.json with as many steps as are asked for, after which the outer step size is nothing.
Both are evaluated alike, on the same episodes: running statistics estimated again, nothing of a query set used. Evaluation is off the
clock.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import headstart as hs
from common import machine
from headstart.benching.setting import Setting
from headstart.training.config import RunConfig
from headstart.training.observer import Observer

EPISODES = 1000
STEPS, LR = 5, 0.1


def accuracy(learner: hs.MetaLearner, source: Any) -> tuple[float, float]:
    """Of the test classes, and half the width of its interval."""
    hs.estimate_batch_norm(learner, source.train)
    found = hs.evaluate(learner, source.test, ways=5, shots=5, queries=15, episodes=EPISODES)
    learner.model.train()
    return found.mean, found.ci95


def loop(source: Any, seconds: float, seed: int) -> dict[str, Any]:
    """The usual loop for so many seconds."""
    model = Setting(seed=seed).network("usual").train()
    body, head = model.body, model.head
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    sampler = hs.data.Episodes(source.train, ways=5, shots=5, queries=5, tasks=8, seed=seed)
    spent, steps = 0.0, 0
    while spent < seconds:
        begin = time.perf_counter()
        batch = sampler.batch(steps)
        optimizer.zero_grad()
        for t in range(8):
            s, q = batch.support.index[t], batch.query.index[t]
            z = body(batch.examples[torch.cat([s, q])])
            zs, zq, w, b = z[: len(s)], z[len(s) :], head.weight, head.bias
            for _ in range(STEPS):
                loss = F.cross_entropy(F.linear(zs, w, b), batch.support.y[t])
                gw, gb = torch.autograd.grad(loss, (w, b), create_graph=True)
                w, b = w - LR * gw, b - LR * gb
            (F.cross_entropy(F.linear(zq, w, b), batch.query.y[t]) / 8).backward()
        optimizer.step()
        spent, steps = spent + time.perf_counter() - begin, steps + 1
    mean, ci = accuracy(hs.anil(model, STEPS, LR), source)
    return {"seconds": spent, "steps": steps, "accuracy": mean, "ci95": ci}


def ours(source: Any, iterations: int, every: int, seed: int, precision: Any) -> list[dict[str, Any]]:
    """Ours, looked at now and then."""
    config = replace(RunConfig.load(Path(__file__).parent.parent / "configs/fc100-5shot.json").train, iterations=iterations, seed=seed)
    config = replace(config, validate_every=iterations, validation_episodes=100)
    torch.manual_seed(seed)
    learner = hs.anil(hs.models.conv4(), STEPS, LR, precision=precision)
    looks: list[dict[str, Any]] = []

    def look(own: hs.MetaLearner, step: int) -> dict[str, Any]:
        mean, ci = accuracy(own, source)
        looks.append({"step": step, "accuracy": mean, "ci95": ci})
        return {"accuracy": mean}

    run = hs.train(learner, source, config, quiet=True, callbacks=[Observer(at=tuple(range(every, iterations + 1, every)), look=look)])
    seconds = {e["step"]: e["seconds"] for e in run.history if "loss" in e}
    return [{**e, "seconds": seconds[e["step"]]} for e in looks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_path")
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--iterations", type=int, default=80)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    source = hs.data.load("fc100", path=asked.data_path)
    print(machine())
    found = []
    for seed in asked.seeds:
        mine = {name: ours(source, asked.iterations, asked.every, seed, name) for name in ("fp32", "bf16")}
        base = loop(source, asked.seconds, seed)
        reached = {k: next((e["seconds"] for e in own if e["accuracy"] >= base["accuracy"]), None) for k, own in mine.items()}
        found.append({"seed": seed, "loop": base, "ours": mine, "reached": reached})
        shown = f"{100 * base['accuracy']:.2f} ± {100 * base['ci95']:.2f}"
        print(f"seed {seed}: the loop {shown} after {base['seconds']:.0f} s, {base['steps']} steps")
        for name, own in mine.items():
            for e in own:
                shown = f"{100 * e['accuracy']:.2f} ± {100 * e['ci95']:.2f}"
                print(f"  ours, {name}: {shown} after {e['seconds']:.1f} s, {e['step']} steps")
        print(f"  reached after {reached} s", flush=True)
    if asked.out:
        asked.out.write_text(json.dumps({"machine": machine(), "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
