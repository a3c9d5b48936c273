"""A run against the same network without meta-learning, on the same test episodes.

    python benchmarks/without_meta_learning.py runs/fsmol --shots 16 --queries 100 --episodes 1000

Without meta-learning means: the network as it was before training, (a) adapting what the run adapts, in the same way, and
(b) adapting everything from scratch by gradient descent, with the number of steps and the step size that do best on the
validation tasks. Prints every evaluation, and the paired differences.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

import headstart as hs
from headstart.training import run as runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--shots", type=int)
    parser.add_argument("--queries", type=int)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--steps", type=int, help="inner steps of the run at test")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    config, learner, source = runs.open_run(arguments.run)
    sizes: dict[str, Any] = {"ways": config.train.ways, "shots": arguments.shots or config.train.shots, "queries": arguments.queries}
    test = {**sizes, "episodes": arguments.episodes}
    meta_learned = hs.evaluate(learner, source.test, **test, steps=arguments.steps)
    print(f"meta-learned\n{meta_learned}\n", flush=True)

    untrained = runs.learner_for(config, source)
    hs.estimate_batch_norm(untrained, source.train)
    found = {"the same adaptation, untrained": hs.evaluate(untrained, source.test, **test, steps=arguments.steps)}
    options: dict[str, Any] = {"loss": untrained.loss}
    tried = {}
    for lr in (0.03, 0.1, 0.3):
        scratch = hs.maml(untrained.model, 20, lr, **options)
        result = hs.evaluate(scratch, source.validation, **sizes, episodes=39)
        sign = 1 if result.higher_is_better else -1
        for steps in (5, 10, 20):
            tried[lr, steps] = sign * result.per_step[steps][0]
    lr, steps = max(tried, key=lambda key: tried[key])
    scratch = hs.maml(untrained.model, steps, lr, **options)
    found[f"everything from scratch, {steps} steps of {lr:g}"] = hs.evaluate(scratch, source.test, **test)
    for name, result in found.items():
        print(f"{name}\n{result}\nmeta-learned less this: {hs.compare(meta_learned, result)}\n", flush=True)


if __name__ == "__main__":
    main()
