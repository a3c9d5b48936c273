"""Learners on the zoo of models, and their inner Hessians as dense matrices, for the tests of what is measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import headstart as hs
from truth import Truth
from zoo import make


def zoo_learner(name: str, adapt: str, loss: Any = "cross_entropy", l2: float = 0.0, steps: int = 2) -> hs.MetaLearner:
    return hs.MetaLearner(hs.Partition(make(name), adapt), hs.GradientDescent(steps, 0.3, l2), loss=loss)


def dense_hessians(learner: hs.MetaLearner, tasks: hs.TaskBatch, loss: str = "cross_entropy", l2: float = 0.0) -> list[list[Tensor]]:
    """∇²_w L_S at every iterate of every task, from losses and paths written out again."""
    truth = Truth(learner.model, learner.partition.adapted, tasks, loss, l2)
    found = []
    for t in range(len(tasks)):
        L_S = truth.side(t, "support")
        path = truth.path(t, learner.inner.steps, learner.inner.lr, truth.w, truth.phi)
        found.append([torch.autograd.functional.hessian(lambda w, L_S=L_S: L_S(w, truth.phi), w.detach()) for w in path])
    return found


def ends(hessians: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    values = [[torch.linalg.eigvalsh(H) for H in row] for row in hessians]
    return torch.tensor([[v[0] for v in row] for row in values]), torch.tensor([[v[-1] for v in row] for row in values])
