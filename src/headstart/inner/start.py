"""Where the inner loop starts: the model's own weights, or a start that does not depend on the order of the labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headstart.errors import MethodError
from headstart.inner.shared import Shared
from headstart.partition import Partition
from headstart.program.description import Key, Program
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
        >>> learner.start.check_inductive()  # nothing to refuse: it does not look at the query examples
    """

    transductive: ClassVar[bool] = False
    """Whether it sees the query examples, without their labels, so that a prediction depends on the others asked with it."""
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

    def begin(self, w: ParamsLike, partition: Partition, program: Program, tasks: Tasks, shared: Shared) -> Params:
        """w_0 of every task, where the recorded rows of both sides are at hand; a transductive start overrides this.

        Example:
            >>> import headstart as hs
            >>> from headstart.program.description import FEATURES
            >>> class Middle(hs.Prototypes):  # classes begin where the query examples are, on average
            ...     transductive = True
            ...     def begin(self, w, partition, program, tasks, shared):
            ...         weight, bias = program.head_names
            ...         z_TD = shared.query[FEATURES].mean(1)
            ...         return {**super().begin(w, partition, program, tasks, shared), bias: -(z_TD @ w[weight].mT)}
            >>> learner = hs.anil(hs.models.mlp(features=4, ways=2), steps=1, lr=0.1, start=Middle())
            >>> x, y = torch.randn(4, 6, 4), torch.randint(2, (4, 6))
            >>> learner.trajectory(hs.TaskBatch(x, y, x, y))[0].shape
            torch.Size([4, 6, 2])
        """
        return self(w, partition, program, tasks, shared.support)

    def check_inductive(self) -> None:
        """Refuses to start where no query examples are at hand.

        Raises:
            MethodError: it needs them.
        """
        if self.transductive:
            raise MethodError(f"{self!r} needs the query examples, which adapt() has not: use trajectory(tasks), or another start")

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


@STARTS.register("zeros")
@dataclass(frozen=True)
class Zeros(Start):
    """Every task starts from zeros, whatever the model holds: context parameters (CAVIA; Zintgraf et al., ICML 2019, section 3.1).

    Nothing flows back to w, so what is meta-learned is all the rest.

    Example:
        >>> import headstart as hs
        >>> learner = hs.cavia(hs.models.mlp(features=1, ways=1, context=4), loss="squared_error", lr=0.1)
        >>> learner.partition.adapted, learner.start
        (('1.context',), Zeros())
    """

    def __call__(self, w: ParamsLike, partition: Partition, program: Program, tasks: Tasks, support: Mapping[Key, Tensor]) -> Params:
        """w_0 of every task."""
        return {k: v.new_zeros((len(tasks), *v.shape)) for k, v in w.items()}


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
