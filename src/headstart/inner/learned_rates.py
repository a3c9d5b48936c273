"""Inner step sizes that are meta-learned with the start: Meta-SGD and per-layer, per-step rates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.errors import ConfigError, refuses
from headstart.inner.descent import GradientDescent
from headstart.inner.rates import AUTO
from headstart.inner.solver import SOLVERS
from headstart.types import Params, ParamsLike


@dataclass(frozen=True)
class LearnedRates(GradientDescent):
    """Gradient descent whose step sizes are meta-learned, all from the same ``lr`` on."""

    @refuses
    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.lr, int | float) and self.lr != AUTO:
            raise ConfigError(f"lr={self.lr!r}: {type(self).__name__} learns its step sizes from one number on; give one")

    @property
    def first(self) -> float:
        """The step size that all start from."""
        return 1.0 if self.lr == AUTO else float(self.lr)  # type: ignore[arg-type]  # without steps there is none, and none is measured

    def scales(self) -> dict[str, float]:
        """Step sizes move by steps of their own size: Adam's would be far too large for them."""
        return {"lr.": self.first}


@SOLVERS.register("metasgd")
@dataclass(frozen=True)
class MetaSGD(LearnedRates):
    """Gradient descent whose step size is learned for every single adapted number (Li et al., 2017, arXiv 1707.09835).

    ``lr`` is the value they all start from.

    Example:
        >>> MetaSGD(steps=1, lr=0.1).parameters({"w": torch.zeros(2, 3)})["lr.w"].shape
        torch.Size([2, 3])
        >>> MetaSGD(steps=1, lr=0.1).first
        0.1
    """

    def parameters(self, w: ParamsLike) -> Params:
        """One step size for every number in w."""
        return {f"lr.{k}": torch.full_like(v, self.first, requires_grad=True) for k, v in w.items()}

    def rate(self, m: int, name: str, theta: ParamsLike) -> Tensor:
        """The learned step sizes of one parameter, in its shape."""
        return theta[f"lr.{name}"]


@SOLVERS.register("lslr")
@dataclass(frozen=True)
class LSLR(LearnedRates):
    """Gradient descent with one learned step size per parameter tensor and per step (MAML++; Antoniou et al., ICLR 2019, section 4).

    ``lr`` is the value they all start from. Steps beyond those trained, at test, use the last one.

    Example:
        >>> LSLR(steps=5, lr=0.1).parameters({"w": torch.zeros(2, 3)})["lr.w"].shape
        torch.Size([5])
        >>> LSLR(steps=2, lr=0.1).first, LSLR(steps=2, lr=0.1).rate(5, "w", {"lr.w": torch.tensor([0.1, 0.2])}).item() < 0.21
        (0.1, True)
    """

    def parameters(self, w: ParamsLike) -> Params:
        """One step size for every parameter tensor and step."""
        return {f"lr.{k}": v.new_full((max(self.steps, 1),), self.first, requires_grad=True) for k, v in w.items()}

    def rate(self, m: int, name: str, theta: ParamsLike) -> Tensor:
        """The learned step size of one parameter in step m."""
        rates = theta[f"lr.{name}"]
        return rates[min(m, len(rates) - 1)]
