"""What is timed: tasks, network and inner loop, the same for everybody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from headstart.errors import ConfigError
from headstart.models import conv4
from headstart.tasks import TaskBatch

Kind = Literal["anil", "maml", "fomaml", "head"]


@dataclass(frozen=True)
class Setting:
    """One step of meta-training: T tasks of ways × (shots + queries) random images, conv4, N inner steps.

    Args:
        kind: what adapts, and how it is differentiated; ``"head"`` is a linear head on features of ``size`` numbers, without a body.
        tasks: T.
        ways, shots, queries: of each task, the last two per class.
        size: side of the images in pixels.
        filters: channels of every block.
        steps: N.
        lr: α.
        seed: of images, labels and weights.
        device: where everything is, as torch names it.
    """

    kind: Kind = "anil"
    tasks: int = 8
    ways: int = 5
    shots: int = 5
    queries: int = 5
    size: int = 32
    filters: int = 64
    steps: int = 5
    lr: float = 0.05
    seed: int = 0
    device: str = "cpu"

    def batch(self) -> TaskBatch:
        """The tasks."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.size,) if self.kind == "head" else (3, self.size, self.size)

        def side(each: int) -> tuple[Tensor, Tensor]:
            x = torch.randn(self.tasks, self.ways * each, *shape, generator=generator)
            return x, torch.arange(self.ways).repeat(self.tasks, each)

        return TaskBatch(*side(self.shots), *side(self.queries)).to(self.device)

    def network(self, name: str) -> nn.Module:
        """``"usual"``, as few-shot code has it (contiguous, ReLU before pooling), or ``"ours"``: the same weights, and the same function.

        Raises:
            ConfigError: the name is neither.
        """
        if name not in ("usual", "ours"):
            raise ConfigError(f"network={name!r}: use 'usual' or 'ours'")
        torch.manual_seed(self.seed)
        if self.kind == "head":
            return nn.Linear(self.size, self.ways).to(self.device)
        ours = conv4(ways=self.ways, size=self.size, filters=self.filters)
        if name == "ours":
            return ours.to(self.device)
        usual = _usual(self.filters, self.ways, ours.head.in_features)  # type: ignore[union-attr, arg-type]
        usual.load_state_dict(ours.state_dict())
        return usual.to(memory_format=torch.contiguous_format).to(self.device)  # type: ignore[call-overload, no-any-return]


def _usual(filters: int, ways: int, features: int) -> nn.Sequential:
    blocks = [
        nn.Sequential(nn.Conv2d(3 if i == 0 else filters, filters, 3, padding=1), nn.BatchNorm2d(filters), nn.ReLU(), nn.MaxPool2d(2))
        for i in range(4)
    ]
    model = nn.Sequential()
    model.add_module("body", nn.Sequential(*blocks, nn.Flatten()))
    model.add_module("head", nn.Linear(features, ways))
    return model
