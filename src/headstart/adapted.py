"""What adapting to one task gives: a model for that task."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headstart.replay import Replay
from headstart.running import evaluating
from headstart.types import Params, Tree


@dataclass(frozen=True, eq=False)
class Adapted:
    """A model adapted to one task.

    Args:
        replay: how the model is run.
        w: its adapted parameters, by name.
        classification: whether its output are class logits.

    Example:
        >>> import headstart as hs
        >>> learner = hs.anil(hs.models.mlp(features=4, ways=2), steps=3, lr=0.5)
        >>> adapted = learner.adapt(torch.randn(6, 4), torch.tensor([0, 1] * 3))
        >>> adapted.predict(torch.randn(3, 4)).shape
        torch.Size([3])
    """

    replay: Replay
    w: Params
    classification: bool = True

    def logits(self, x: Tree) -> Tensor:
        """(n, C) outputs for (n, …) examples; the model runs in evaluation mode."""
        with evaluating(self.replay.model), torch.no_grad():
            return self.replay.output(self.replay.call(self.w, x))

    def predict(self, x: Tree) -> Tensor:
        """(n,) class indices for (n, …) examples; for a regression, the (n, k) outputs themselves."""
        logits = self.logits(x)
        return logits.argmax(-1) if self.classification else logits

    def predict_proba(self, x: Tree) -> Tensor:
        """(n, C) class probabilities for (n, …) examples."""
        return self.logits(x).softmax(-1)

    def to_module(self) -> nn.Module:
        """An ordinary, independent module with the adapted weights, in evaluation mode."""
        model = copy.deepcopy(self.replay.model).eval()
        own = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in self.w.items():
                own[name].copy_(value)
        return model
