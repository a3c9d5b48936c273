"""Where the inner loop starts: the model's own weights, or a start that does not depend on the order of the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from headstart.errors import MethodError
from headstart.partition import Partition
from headstart.replay import Replay
from headstart.tasks import TaskBatch
from headstart.types import Params, ParamsLike


class Start(Protocol):
    """Maps the meta-learned ``w`` to w_0 of every task; the meta-gradient flows back through it."""

    def __call__(self, w: ParamsLike, partition: Partition, replay: Replay, tasks: TaskBatch, support: ParamsLike) -> Params: ...


def _repeat(w: ParamsLike, tasks: TaskBatch) -> Params:
    return {k: v.expand(len(tasks), *v.shape) for k, v in w.items()}


@dataclass(frozen=True)
class ModelStart:
    """Every task starts from the model's own ``w`` (Algorithm 1, line 5)."""

    def __call__(self, w: ParamsLike, partition: Partition, replay: Replay, tasks: TaskBatch, support: ParamsLike) -> Params:
        """w_0 of every task."""
        return _repeat(w, tasks)


@dataclass(frozen=True)
class SharedVector:
    """Every class starts from the same vector, the mean of the head's rows, so that no label is special.

    Which class is given which number then has no influence on the result (Ye and Chao, ICLR 2022, UNICORN-MAML).
    """

    def __call__(self, w: ParamsLike, partition: Partition, replay: Replay, tasks: TaskBatch, support: ParamsLike) -> Params:
        """w_0 of every task."""
        head = [name for name in partition.head if name in w]
        if not head:
            raise MethodError("SharedVector() starts the last layer, but the last layer does not adapt; adapt the head too")
        same = {k: w[k].mean(0, keepdim=True).expand_as(w[k]) for k in head}
        return _repeat({**w, **same}, tasks)


@dataclass(frozen=True)
class Prototypes:
    """The head starts as the nearest-prototype classifier of the task: rows ``2 c_k``, biases ``−‖c_k‖²``.

    With the mean support feature c_k of each class these are, up to a constant, the negative squared distances to the
    prototypes (Snell et al., 2017; ProtoMAML: Triantafillou et al., ICLR 2020). Without inner steps this is ProtoNet.
    """

    def __call__(self, w: ParamsLike, partition: Partition, replay: Replay, tasks: TaskBatch, support: ParamsLike) -> Params:
        """w_0 of every task."""
        if replay.head is None or replay.head.bias is None:
            raise MethodError('Prototypes() needs a linear layer with a bias as the only adapted layer: use adapt="head"')
        if tasks.support_y.is_floating_point():
            raise MethodError("Prototypes() needs class labels, but the tasks have real targets")
        weight, bias = replay.head_names
        ways = w[weight].shape[0]
        z_TSD = support["features"]
        member = F.one_hot(tasks.support_y, ways).to(z_TSD.dtype)
        if tasks.support.weight is not None:
            member = member * (tasks.support.weight > 0).unsqueeze(-1)
        c_TCD = member.mT @ z_TSD / member.sum(1).clamp_min(1).unsqueeze(-1)
        present = (member.sum(1) > 0).to(z_TSD.dtype)
        # A class without support examples is left with a prototype infinitely far away in effect, not at the origin.
        missing = torch.finfo(z_TSD.dtype).max ** 0.25 * (1 - present)
        return {weight: (2 * c_TCD).to(w[weight].dtype), bias: (-c_TCD.square().sum(-1) - missing).to(w[bias].dtype)}
