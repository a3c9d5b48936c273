"""The inner step size that a run decides itself against a grid of eight, from a sixteenth to eight times 1/L̂, at equal outer steps.

    python benchmarks/step_sizes.py --data cifar-fs --data-path PATH --adapt all --iterations 60 --out runs/step-sizes

Each run is short, and is evaluated on the same test episodes. What is done is kept in OUT, and not done again. The last line is a row
of the table in docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from pathlib import Path

import headstart as hs
from common import machine
from headstart.measuring.rate import largest_curvature
from headstart.training import run as runs
from headstart.training.config import RunConfig

GRID = tuple(2.0**k for k in range(-4, 4))
"""Of 1/L̂."""


def result(config: RunConfig, source: object, out: Path, episodes: int, queries: int) -> tuple[float, float]:
    """The mean and its interval after training, from the file of this step size if it was run before."""
    file = out / f"{config.learner.lr:.4g}.json"
    if file.exists():
        kept = json.loads(file.read_text())
        return kept["mean"], kept["ci95"]
    learner = runs.learner_for(config, source)  # type: ignore[arg-type]
    try:
        hs.train(learner, source, config.train, quiet=True)  # type: ignore[arg-type]
        sizes = {"ways": config.train.ways, "shots": config.train.shots, "queries": queries, "episodes": episodes}
        found = hs.evaluate(learner, source.test, **sizes)  # type: ignore[attr-defined, arg-type]
        mean, ci95 = found.mean, found.ci95
    except hs.errors.DivergenceError:
        mean, ci95 = math.nan, math.nan
    file.write_text(json.dumps({"lr": config.learner.lr, "mean": mean, "ci95": ci95, "machine": machine()}) + "\n")
    return mean, ci95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-path", default="")
    parser.add_argument("--data-options", default="")
    parser.add_argument("--adapt", default="head")
    parser.add_argument("--ways", type=int, default=5)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--filters", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--queries", type=int, default=5, help="of each class, in training and test episodes")
    parser.add_argument("--out", type=Path, default=Path("runs/step-sizes"))
    own = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    hs.tune_process()
    sizes = {
        k: getattr(own, k)
        for k in ("data", "data_path", "data_options", "adapt", "ways", "shots", "tasks", "filters", "iterations", "queries")
    }
    settings = {**sizes, "sampling": "independent", "start": "model", "steps": 5, "lr": "auto", "outer_lr": 0.002, "minutes": 0.0}
    config = RunConfig.from_flat({**settings, "validate_every": own.iterations, "validation_episodes": 20})
    source = runs.load(config)
    default, _ = runs.decided(config, source, given=[*sizes, "sampling", "start", "steps", "outer_lr"])
    first = RunConfig.from_flat({**default.flat(), "lr": 1.0})
    L = largest_curvature(runs.learner_for(first, source), source.train, **first.train.probe())
    out = own.out / f"{own.data}-{own.adapt.replace(':', '')}"
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for lr in [default.learner.lr, *(scale / L for scale in GRID)]:
        found[lr] = result(RunConfig.from_flat({**default.flat(), "lr": lr}), source, out, own.episodes, own.queries)
        print(f"α = {lr:.4g} ({lr * L:.3g}/L̂): {100 * found[lr][0]:.2f} ± {100 * found[lr][1]:.2f}", flush=True)
    chosen = default.learner.lr
    best = max(found, key=lambda lr: -math.inf if math.isnan(found[lr][0]) else found[lr][0])
    short = 100 * (found[best][0] - found[chosen][0])
    within = "yes" if short <= 1 else f"**no**, by {short:.1f}"
    row = [own.data, own.adapt, own.iterations, f"{chosen:.2g}: {100 * found[chosen][0]:.1f}", f"{best:.2g}: {100 * found[best][0]:.1f}"]
    print(f"| {' | '.join(map(str, row))} | {100 * found[best][1]:.1f} | {within} |")


if __name__ == "__main__":
    main()
