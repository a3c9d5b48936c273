"""Where the inner loop starts: the model's own weights, or a start that does not depend on the order of the labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.errors import MethodError
from headstart.partition import Partition
from headstart.program.description import FEATURES, Key, Program
from headstart.registry import Registry
from headstart.tasks import Tasks
from headstart.types import Params, ParamsLike

STARTS: Registry[Start] = Registry("start")


class Start:
    """Maps the meta-learned ``w`` to w_0 of every task; the meta-gradient flows back through it.

    Example:
        >>> import headstart as hs
        >>> class Zero(Start):
        ...     def __call__(self, w, partition, program, tasks, support):
        ...         return {k: torch.zeros_like(v).expand(len(tasks), *v.shape) for k, v in w.items()}
        >>> learner = hs.anil(hs.models.mlp(features=4, ways=2), steps=0, lr=0.1, start=Zero())
        >>> x, y = torch.randn(4, 6, 4), torch.randint(2, (4, 6))
        >>> tasks = hs.TaskBatch(x, y, x, y)
        >>> float(learner.trajectory(tasks)[0].detach().abs().max()), learner.start.shape(learner.program(tasks), tasks)[-1]
        (0.0, 2)
    """

    head: ClassVar[str] = ""
    """How a linear head starts, for what adapts one without torch: "own" rows, their "mean", or "prototypes"; "" for another way."""

    def __call__(self, w: ParamsLike, partition: Partition, program: Program, tasks: Tasks, support: Mapping[Key, Tensor]) -> Params:
        """w_0 of every task, name to (T, …).

        Args:
            w: the meta-learned adapted parameters.
            partition: which parameters those are.
            program: how the model runs; ``program.head_names`` names a linear head.
            tasks: T tasks.
            support: (T, S, …) recorded rows of the support examples; ``support[FEATURES]`` are a linear head's.
        """
        raise NotImplementedError  # pragma: no cover

    def shape(self, program: Program, tasks: Tasks) -> torch.Size:
        """The shape of the outputs of a few examples, where the start changes it."""
        return program.shape


def repeated(w: ParamsLike, tasks: Tasks) -> Params:
    """The same w_0 for every task."""
    return {k: v.expand(len(tasks), *v.shape) for k, v in w.items()}


@STARTS.register("model")
@dataclass(frozen=True)
class ModelStart(Start):
    """Every task starts from the model's own ``w`` (Algorithm 1, line 5).

    Example:
        >>> import headstart as hs
        >>> hs.maml(hs.models.mlp(features=4, ways=2), lr=0.1).start
        ModelStart()
    """

    head: ClassVar[str] = "own"

    def __call__(self, w: ParamsLike, partition: Partition, program: Program, tasks: Tasks, support: Mapping[Key, Tensor]) -> Params:
        """w_0 of every task."""
        return repeated(w, tasks)


@STARTS.register("shared")
@dataclass(frozen=True)
class SharedVector(Start):
    """Every class starts from the same vector, the mean of the head's rows, so that no label is special.

    Which class is given which number then has no influence on the result (Ye and Chao, ICLR 2022, UNICORN-MAML). A linear head that
    adapts alone gets more rows than the model has outputs where the tasks have more classes.

    Example:
        >>> import headstart as hs
        >>> x, y = torch.randn(10, 4), torch.arange(5).repeat(2)
        >>> learner = hs.anil(hs.models.mlp(features=4, ways=2), lr=0.1, start=SharedVector())
        >>> learner.adapt(x, y).predict_proba(x).shape  # five classes, though the model has two outputs
        torch.Size([10, 5])
    """

    head: ClassVar[str] = "mean"

    def __call__(self, w: ParamsLike, partition: Partition, program: Program, tasks: Tasks, support: Mapping[Key, Tensor]) -> Params:
        """w_0 of every task."""
        head = [name for name in partition.head if name in w]
        if not head:
            raise MethodError("SharedVector() starts the last layer, but the last layer does not adapt; adapt the head too")
        more = self.shape(program, tasks)[-1] - program.shape[-1]
        same = {k: w[k].mean(0, keepdim=True).expand(len(w[k]) + more, *w[k].shape[1:]) for k in head}
        return repeated({**w, **same}, tasks)

    def shape(self, program: Program, tasks: Tasks) -> torch.Size:
        """Where a linear head is all that adapts, a score for each class of the tasks, if the model has fewer outputs."""
        adapts = program.head_names and set(program.head_names) <= set(program.partition.adapted)
        if not adapts or tasks.ways is None or program.shape[-1] == 1:  # one output answers yes or no
            return program.shape
        return torch.Size((*program.shape[:-1], max(program.shape[-1], tasks.ways)))


@STARTS.register("prototypes")
@dataclass(frozen=True)
class Prototypes(Start):
    """The head starts as the nearest-prototype classifier of the task: rows ``2 c_k``, biases ``−‖c_k‖²``.

    With the (weighted) mean support feature c_k of each class these are, up to a constant, the negative squared distances to the
    prototypes (Snell et al., 2017; ProtoMAML: Triantafillou et al., ICLR 2020). Without inner steps this is ProtoNet. The head
    has a row for each class of the tasks, whatever the model has, and is in single precision or better.

    Example:
        >>> import headstart as hs
        >>> x, y = torch.randn(10, 4), torch.arange(5).repeat(2)
        >>> learner = hs.anil(hs.models.mlp(features=4, ways=2), lr=0.1, start=Prototypes())
        >>> learner.adapt(x, y).predict_proba(x).shape  # five classes, though the model has two outputs
        torch.Size([10, 5])
    """

    head: ClassVar[str] = "prototypes"

    def __call__(self, w: ParamsLike, partition: Partition, program: Program, tasks: Tasks, support: Mapping[Key, Tensor]) -> Params:
        """w_0 of every task."""
        ways = self._ways(program, tasks)
        weight, bias = program.head_names
        z_TSD = support[FEATURES]
        z_TSD = z_TSD.to(torch.promote_types(z_TSD.dtype, torch.float32))
        labelled = tasks.support.y >= 0
        member = F.one_hot(tasks.support.y.clamp_min(0), ways).to(z_TSD.dtype) * labelled.unsqueeze(-1)
        if tasks.support.weight is not None:
            member = member * tasks.support.weight.to(z_TSD.dtype).unsqueeze(-1)
        total = member.sum(1)
        present = (total > 0).to(z_TSD.dtype)
        c_TCD = member.mT @ z_TSD / (total + 1 - present).unsqueeze(-1)
        # A class without support examples is left with a prototype infinitely far away in effect, not at the origin.
        missing = torch.finfo(z_TSD.dtype).max ** 0.25 * (1 - present)
        return {weight: 2 * c_TCD, bias: -c_TCD.square().sum(-1) - missing}

    def shape(self, program: Program, tasks: Tasks) -> torch.Size:
        """A score for each class of the tasks."""
        return torch.Size((program.shape[0], self._ways(program, tasks)))

    @staticmethod
    def _ways(program: Program, tasks: Tasks) -> int:
        if len(program.head_names) != 2:
            raise MethodError('Prototypes() needs a linear layer with a bias as the only adapted layer: use adapt="head"')
        if tasks.ways is None:
            raise MethodError("Prototypes() needs class labels, but the tasks have real targets")
        return max(tasks.ways, 2)
