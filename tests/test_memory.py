"""What a meta-gradient holds in memory: bytes of all tensors that are alive, looked at after every operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import headstart as hs


class Alive(TorchDispatchMode):
    """Notes the most bytes that tensors made within it took at once, whoever held them."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self.there = 0, dict[int, tuple[StorageWeakRef, int]]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self.there = {k: v for k, v in self.there.items() if not v[0].expired()}
        for storage in (t.untyped_storage() for t in tree_leaves(out) if isinstance(t, Tensor)):
            self.there[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.most = max(self.most, sum(size for _, size in self.there.values()))
        return out


def most(hypergradient: hs.Hypergradient, steps: int) -> int:
    torch.manual_seed(0)
    x, y = torch.randn(2, 200, 4), torch.randint(3, (2, 200))  # many examples and few weights: activations are what counts
    learner = hs.maml(hs.models.mlp(features=4, ways=3, hidden=(8, 8)), steps, 0.1, hypergradient=hypergradient, vectorise=False)
    tasks = hs.TaskBatch(x, y, x, y)
    learner.meta_gradient(tasks)  # the model is analysed once
    with Alive() as alive:
        learner.meta_gradient(tasks)
    return alive.most


def test_what_is_held_does_not_grow_with_the_steps() -> None:
    few, many = (most(hs.Recursive("double-backward"), n) for n in (2, 20))
    assert many <= 1.15 * few, "beside the iterates, which are a few numbers"
    few, many = (most(hs.Unrolled(), n) for n in (2, 20))
    assert many > 5 * few, "a graph of every step: so that the count sees one"
