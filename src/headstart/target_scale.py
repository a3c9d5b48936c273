"""The unit of real targets: learners work on standardised ones, and predict in the user's unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from headstart.errors import ConfigError, refuses
from headstart.tasks import Side, Tasks

T = TypeVar("T", bound=Tasks)


@dataclass(frozen=True)
class TargetScale:
    """Mean and standard deviation of the training targets; one number for all, or one for each.

    Inside, a target y is ``(y − mean) / std``, so that a step size which suits numbers of about one also suits dollars.

    Args:
        mean, std: of each target.

    Raises:
        ConfigError: a number is not finite, or a standard deviation is not above 0.

    Example:
        >>> scale = TargetScale.of(torch.tensor([100.0, 300.0]))
        >>> scale.mean, scale.back(torch.tensor([[0.0], [1.0]])).flatten().tolist()
        ((200.0,), [200.0, 300.0])
        >>> TargetScale.load(scale.saved()) == scale, scale.there(torch.tensor([[300.0]]), 1).item()
        (True, 1.0)
        >>> import headstart as hs
        >>> x, y = torch.zeros(1, 2, 3), torch.tensor([[100.0, 300.0]])
        >>> scale.tasks(hs.TaskBatch(x, y, x, y)).support_y.tolist()
        [[-1.0, 1.0]]
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @refuses
    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(math.isfinite(v) for v in self.mean) or not all(0 < v < math.inf for v in self.std):
            raise ConfigError(f"mean={self.mean}, std={self.std}: give a finite mean and a standard deviation above 0 for each target")

    @classmethod
    def of(cls, targets: Tensor) -> TargetScale:
        """The scale of (n,) or (n, k) training targets; one that does not vary keeps its size."""
        flat = targets.double().reshape(len(targets), -1)
        mean, std = flat.mean(0), flat.std(0, unbiased=False)
        std = torch.where(std > 1e-12 * mean.abs(), std, torch.ones_like(std))
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    @classmethod
    def load(cls, pair: Sequence[Sequence[float]] | None) -> TargetScale | None:
        """The scale that :meth:`saved` gave, or None."""
        return None if pair is None else cls(tuple(pair[0]), tuple(pair[1]))

    def saved(self) -> list[list[float]]:
        """Plain numbers, for JSON."""
        return [list(self.mean), list(self.std)]

    def tasks(self, tasks: T) -> T:
        """The same tasks with standardised targets."""
        if not tasks.support.y.is_floating_point():
            return tasks
        moved = tasks[:]
        for name in ("support", "query"):
            side: Side = getattr(moved, name)
            object.__setattr__(moved, name, replace(side, y=self.there(side.y, 2)))
        return moved

    def there(self, y: Tensor, leading: int) -> Tensor:
        """Standardised targets, with so many leading dimensions before those of the targets."""
        mean, std = self._like(y, leading)
        return (y - mean) / std

    def back(self, outputs: Tensor, leading: int = 1) -> Tensor:
        """Outputs in the user's unit."""
        mean, std = self._like(outputs, leading)
        return outputs * std + mean

    def _like(self, v: Tensor, leading: int) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(own, dtype=v.dtype, device=v.device) for own in (self.mean, self.std))
        if len(self.mean) == 1:
            return mean[0], std[0]
        shape = v.shape[leading:]
        if math.prod(shape) != len(self.mean):
            raise ConfigError(
                f"targets or outputs have shape {tuple(shape)}, but the target scale has {len(self.mean)} numbers; give one each"
            )
        return mean.reshape(shape), std.reshape(shape)


class InUnit(nn.Module):
    """A module whose outputs are put into the user's unit."""

    def __init__(self, module: nn.Module, scale: TargetScale) -> None:
        super().__init__()
        self.module, self.scale = module, scale

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """The outputs in the user's unit."""
        return self.scale.back(self.module(*args, **kwargs))
