"""What the meta-objective is like where the model stands: its smoothness in w and in φ, and the noise of meta-gradients.

A planner can choose outer step sizes and the number of tasks from these, without constants that hold everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from headstart.errors import ConfigError, TaskError
from headstart.learner import MetaLearner
from headstart.measuring.lanczos import operator_norm
from headstart.measuring.surface import at_rest, task_gradients
from headstart.tasks import TaskBatch
from headstart.types import Params

Block = Literal["w", "phi"]


@dataclass(frozen=True)
class Smoothness:
    """How fast the meta-gradient of a block changes with that block, here.

    Args:
        value: the norm of the block's Hessian of the meta-objective, estimated from below.
        block: ``"w"`` or ``"phi"``.
        distance: how far the parameters were moved to each side.
        gradients: meta-gradients that were taken.
        without_influence: names of the block's parameters whose meta-gradient is zero.
    """

    value: float
    block: Block
    distance: float
    gradients: int
    without_influence: tuple[str, ...] = ()


def meta_smoothness(
    learner: MetaLearner, tasks: TaskBatch, block: Block, *, iterations: int = 8, distance: float | None = None, seed: int = 0
) -> Smoothness | None:
    """Estimates the smoothness of F in one block of parameters, on fixed tasks.

    Products with the Hessian are differences of meta-gradients, ``(F'(x + hv) − F'(x − hv)) / 2h``, and the norm comes from the
    Krylov space of a few of them. The model runs in evaluation mode; its parameters are moved and put back exactly. For a
    first-order hypergradient this is the smoothness of the map that the outer loop follows, which is no gradient.

    Args:
        learner: any learner.
        tasks: the tasks whose mean is F.
        block: ``"w"``, the adapted parameters, or ``"phi"``, the shared ones.
        iterations: products, of two meta-gradients each.
        distance: h; None for the third root of the rounding unit times the norm of the block.
        seed: of the first direction.

    Returns:
        The estimate; None for ``"phi"`` where everything adapts.

    Raises:
        ConfigError: the block, the iterations or the distance make no sense.

    Example:
        >>> import headstart as hs
        >>> learner = hs.anil(hs.models.mlp(features=4, ways=2), steps=2)
        >>> x, y = torch.randn(8, 6, 4), torch.randint(2, (8, 6))
        >>> meta_smoothness(learner, TaskBatch(x, y, x, y), "phi", iterations=3).gradients
        7
    """
    if block not in ("w", "phi"):
        raise ConfigError(f'block={block!r}: use "w" or "phi"')
    if iterations < 1 or (distance is not None and not (math.isfinite(distance) and distance > 0)):
        raise ConfigError(f"iterations={iterations}, distance={distance}: take at least one, over a distance above 0")
    params = learner.partition.split()[0 if block == "w" else 1]
    if not params:
        return None
    x = torch.cat([p.detach().reshape(-1) for p in params.values()])
    h = distance or torch.finfo(x.dtype).eps ** (1 / 3) * (float(x.norm()) or 1.0)
    tasks, taken = tasks.own_pool(), 0

    def gradient() -> Params:
        nonlocal taken
        taken += 1
        found, _ = learner.meta_gradient(tasks)
        return {n: found[n].detach() for n in params}

    def product(v: Tensor) -> Tensor:
        sides = []
        for sign in (1, -1):
            move(params, x + sign * h * v)
            sides.append(torch.cat([g.reshape(-1) for g in gradient().values()]))
        return (sides[0] - sides[1]) / (2 * h)

    with at_rest(learner, tasks), put_back(params):
        at_x = gradient()
        start = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(x)
        value, _ = operator_norm(product, start, iterations)
    return Smoothness(value, block, h, taken, tuple(n for n, g in at_x.items() if not bool(g.any())))


@contextmanager
def put_back(params: Params) -> Iterator[None]:
    """Parameters may be changed in place; afterwards they are, bit by bit, what they were."""
    saved = {n: p.detach().clone() for n, p in params.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for n, p in params.items():
                p.copy_(saved[n])


def move(params: Params, x: Tensor) -> None:
    """Sets parameters, in place, to the values of a flat vector."""
    with torch.no_grad():
        for p, v in zip(params.values(), x.split([p.numel() for p in params.values()]), strict=True):
            p.copy_(v.view(p.shape))


@dataclass(frozen=True)
class Noise:
    """The meta-gradient of one block over tasks.

    Args:
        square: unbiased estimate of ``‖E g‖²``; below 0 when noise hides the mean.
        variance: unbiased estimate of ``E ‖g − E g‖²``, g being the meta-gradient of one task.
        tasks: how many were seen.

    Example:
        >>> Noise(square=4.0, variance=20.0, tasks=100).scale
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


def meta_gradient_noise(learner: MetaLearner, batches: Iterable[TaskBatch]) -> dict[Block, Noise | None]:
    """Estimates the mean square and the variance over tasks of the meta-gradient, per block.

    Tasks are taken one at a time, in evaluation mode, and must be drawn independently.

    Args:
        learner: any learner.
        batches: batches of tasks, two tasks at least in all.

    Returns:
        For ``"w"`` and ``"phi"``; None for ``"phi"`` where everything adapts.

    Raises:
        TaskError: there are fewer than two tasks.

    Example:
        >>> import headstart as hs
        >>> learner = hs.maml(hs.models.mlp(features=4, ways=2), steps=1)
        >>> x, y = torch.randn(8, 6, 4), torch.randint(2, (8, 6))
        >>> found = meta_gradient_noise(learner, [TaskBatch(x, y, x, y)])
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
    found: dict[Block, Noise | None] = dict.fromkeys(blocks)
    for block, own in mean.items():
        variance = max(spread[block], 0.0) / (n - 1)
        found[block] = Noise(float(own @ own) - variance / n, variance, n)  # E‖ḡ‖² = ‖E g‖² + variance/n
    return found
