"""How noisy meta-gradients are, where the model stands: from one task to the next, and from one meta-batch to the next.

Neither is the ``noise_floor`` of :mod:`headstart.theory.bounds`, which is what the worst case leaves of a convergence bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.errors import TaskError
from headstart.learner import MetaLearner
from headstart.measuring.smoothness import Block
from headstart.measuring.surface import task_gradients
from headstart.tasks import TaskBatch


@dataclass(frozen=True)
class TaskNoise:
    """The meta-gradient of one block over single tasks, each counted by its weight.

    Args:
        square: unbiased estimate of ``‖E g‖²``; below 0 when noise hides the mean.
        variance: unbiased estimate of ``E ‖g − E g‖²``, g being the meta-gradient of one task.
        tasks: how many were seen.

    Example:
        >>> TaskNoise(square=4.0, variance=20.0, tasks=100).scale
        5.0
    """

    square: float
    variance: float
    tasks: int

    @property
    def scale(self) -> float:
        """``variance / square``: the number of tasks at which noise and signal of a meta-batch are equally large.

        Infinite when the mean cannot be told from zero; 0 without noise. The simple noise scale of McCandlish et al. (2018,
        arXiv 1812.06162), with tasks for examples.
        """
        if self.variance == 0:
            return 0.0
        return self.variance / self.square if self.square > 0 else math.inf


def task_noise(learner: MetaLearner, batches: Iterable[TaskBatch]) -> dict[Block, TaskNoise | None]:
    """Estimates the mean square and the variance over tasks of the meta-gradient, per block.

    Tasks are taken one at a time, in evaluation mode, and must be drawn independently. What a task adds to the gradient of its batch
    is looked at, so weights of tasks are part of it.

    Args:
        learner: any learner.
        batches: batches of tasks, two tasks at least in all.

    Returns:
        For ``"w"`` and ``"phi"``; None for ``"phi"`` where everything adapts.

    Raises:
        TaskError: there are fewer than two tasks.

    Example:
        >>> import headstart as hs
        >>> learner = hs.maml(hs.models.mlp(features=4, ways=2), steps=1, lr=0.01)
        >>> x, y = torch.randn(8, 6, 4), torch.randint(2, (8, 6))
        >>> found = task_noise(learner, [TaskBatch(x, y, x, y)])
        >>> found["w"].tasks, found["phi"]
        (8, None)
    """
    blocks: dict[Block, tuple[str, ...]] = {"w": learner.partition.adapted, "phi": learner.partition.shared}
    mean: dict[Block, Tensor] = {}
    spread: dict[Block, float] = dict.fromkeys(blocks, 0.0)
    n = 0
    for tasks in batches:
        for grads in task_gradients(learner, tasks):
            n += 1
            for block, names in blocks.items():
                if not names:
                    continue
                g = torch.cat([grads[k].detach().reshape(-1) for k in names]).double()
                away = g - mean.get(block, torch.zeros_like(g))
                mean[block] = mean.get(block, torch.zeros_like(g)) + away / n
                spread[block] += float(away @ (g - mean[block]))  # Welford's sum of squared distances from the mean
    if n < 2:
        raise TaskError(f"a variance over tasks needs two tasks or more; got {n}")
    found: dict[Block, TaskNoise | None] = dict.fromkeys(blocks)
    for block, own in mean.items():
        variance = max(spread[block], 0.0) / (n - 1)
        found[block] = TaskNoise(float(own @ own) - variance / n, variance, n)  # E‖ḡ‖² = ‖E g‖² + variance/n
    return found


@dataclass(frozen=True)
class BatchNoise:
    """The meta-gradient of one block over whole meta-batches.

    Args:
        square: unbiased estimate of ``‖E g‖²``; below 0 when noise hides the mean.
        variance: unbiased estimate of ``E ‖g − E g‖²``, g being the meta-gradient of a meta-batch.
        batches: how many were seen.
    """

    square: float
    variance: float
    batches: int


def batch_noise(gradients: Sequence[Tensor]) -> BatchNoise:
    """From the flat meta-gradients of two or more meta-batches.

    Example:
        >>> batch_noise([torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0])])
        BatchNoise(square=3.0, variance=2.0, batches=2)
    """
    stacked = torch.stack(list(gradients))
    mean, n = stacked.mean(0), len(stacked)
    variance = float((stacked - mean).square().sum() / (n - 1))
    return BatchNoise(float(mean @ mean) - variance / n, variance, n)
