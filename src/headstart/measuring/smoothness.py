"""How smooth the meta-objective is in w and in φ, where the model stands: outer step sizes follow, without constants for everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from headstart.errors import ConfigError
from headstart.learner import MetaLearner
from headstart.measuring.lanczos import operator_norm
from headstart.measuring.surface import at_rest
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
        >>> learner = hs.anil(hs.models.mlp(features=4, ways=2), steps=2, lr=0.1)
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
