"""The meta-objective where a model stands, for one way to adapt: its loss, its meta-gradient with its noise, and its smoothness."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch

from headstart.data.drawing import Sampler
from headstart.learner import MetaLearner
from headstart.measuring.noise import batch_noise
from headstart.measuring.smoothness import meta_smoothness
from headstart.measuring.surface import at_rest
from headstart.theory.descent import joint_decrease


@dataclass(frozen=True)
class Objective:
    """The meta-objective at the model's present weights, for one way to adapt.

    Args:
        loss: F, the mean query loss after adaptation, by the weights of tasks and examples; infinite where adaptation diverges.
        accuracy: of the query examples after adaptation; None for real targets.
        square, variance, smoothness: by block, "w" and "phi": squared norm of the mean meta-gradient, variance of the
            meta-gradient of a meta-batch, and norm of the block of the Hessian of F. "phi" is missing where everything adapts.
    """

    loss: float
    accuracy: float | None
    square: dict[str, float]
    variance: dict[str, float]
    smoothness: dict[str, float]

    @property
    def decrease(self) -> float:
        """The decrease of F that one outer step is worth by the descent inequality; 0 where adaptation diverges."""
        if not math.isfinite(self.loss):
            return 0.0
        blocks = {k: (self.square[k], self.variance[k], self.smoothness[k]) for k in self.square}
        return joint_decrease(blocks["w"], blocks.get("phi"))


def measure_objective(learner: MetaLearner, sampler: Sampler, device: torch.device, *, batches: int = 4, iterations: int = 4) -> Objective:
    """Measures the meta-objective around the present weights, in evaluation mode; nothing is changed.

    Args:
        learner: one way to adapt.
        sampler: the meta-batches of training.
        device: of the model.
        batches: meta-batches for the mean and the variance of the meta-gradient, at least 2.
        iterations: products with the Hessian of F per block, of two meta-gradients each.
    """
    blocks = {"w": learner.partition.adapted, "phi": learner.partition.shared}
    kept: dict[str, list[torch.Tensor]] = {block: [] for block, names in blocks.items() if names}
    losses, hits = [], []
    for i in range(batches):
        tasks = sampler.batch(i, device)
        with at_rest(learner, tasks):
            grads, stats = learner.meta_gradient(tasks)
        losses.append(stats.loss)
        hits.append(stats.accuracy)
        for block, own in kept.items():
            own.append(torch.cat([grads[n].detach().reshape(-1) for n in blocks[block]]).double())
    noise = {block: batch_noise(own) for block, own in kept.items()}
    found: dict[str, float] = {}
    for block in kept:
        smooth = meta_smoothness(learner, sampler.batch(0, device), block, iterations=iterations)  # type: ignore[arg-type]
        found[block] = 0.0 if smooth is None else smooth.value
    accuracies = [h for h in hits if h is not None]
    numbers = [*losses, *found.values(), *(n.variance for n in noise.values())]
    if not all(map(math.isfinite, numbers)):
        nothing = dict.fromkeys(kept, 0.0)
        return Objective(math.inf, None, nothing, nothing, nothing)
    return Objective(
        statistics.fmean(losses),
        statistics.fmean(accuracies) if accuracies else None,
        {block: n.square for block, n in noise.items()},
        {block: n.variance for block, n in noise.items()},
        found,
    )
