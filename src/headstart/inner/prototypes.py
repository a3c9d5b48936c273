"""Heads that start from the class means of the task's features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.errors import ConfigError, MethodError, refuses
from headstart.inner.shared import Shared
from headstart.inner.start import STARTS, Start, repeated
from headstart.partition import Partition
from headstart.program.description import FEATURES, Key, Program
from headstart.tasks import Tasks
from headstart.types import Params, ParamsLike


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
        total, count = _sums(support[FEATURES], tasks, self._ways(program, tasks))
        return _nearest(program, _means(total, count), count > 0)

    def shape(self, program: Program, tasks: Tasks) -> torch.Size:
        """A score for each class of the tasks."""
        return torch.Size((program.shape[0], self._ways(program, tasks)))

    def _ways(self, program: Program, tasks: Tasks) -> int:
        if len(program.head_names) != 2:
            raise MethodError(f'{type(self).__name__}() needs a linear layer with a bias as the only adapted layer: use adapt="head"')
        return _ways(self, tasks)


@STARTS.register("refined-prototypes")
@dataclass(frozen=True)
class RefinedPrototypes(Prototypes):
    """Prototypes moved by soft k-means over the query examples: transductive (Ren et al., ICLR 2018, section 3.1.1).

    In each iteration a query example belongs to class k by the softmax of its negative squared distances to the prototypes, and a
    prototype becomes the mean of its support examples and of the query examples, each counted by how far it belongs to it. The query's
    labels are not used, but a prediction depends on the other examples that are asked with it, which evaluations say.

    Args:
        iterations: of k-means, 0 or more; 0 are plain prototypes.

    Raises:
        ConfigError: iterations is no such number.

    Example:
        >>> import headstart as hs
        >>> hs.soft_kmeans(hs.models.mlp(features=4, ways=2)).start
        RefinedPrototypes(iterations=1)
    """

    transductive: ClassVar[bool] = True
    head: ClassVar[str] = ""
    iterations: int = 1

    @refuses
    def __post_init__(self) -> None:
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 0:
            raise ConfigError(f"iterations={self.iterations!r}: give the number of k-means iterations, 0 or more")

    def begin(self, w: ParamsLike, partition: Partition, program: Program, tasks: Tasks, shared: Shared) -> Params:
        """w_0 of every task."""
        total, count = _sums(shared.support[FEATURES], tasks, self._ways(program, tasks))
        if tasks.support.weight is not None:  # only relative ones are given, but a query example counts as one example
            weight = tasks.support.weight.to(total.dtype) * (tasks.support.y >= 0)
            each = (weight > 0).sum(1) / weight.sum(1)
            total, count = each[:, None, None] * total, each[:, None] * count
        z_TQD, there = shared.query[FEATURES].to(total.dtype), count > 0
        c_TCD = _means(total, count)
        for _ in range(self.iterations):
            distance = (z_TQD.unsqueeze(2) - c_TCD.unsqueeze(1)).square().sum(-1).masked_fill(~there.unsqueeze(1), torch.inf)
            belongs = (-distance).softmax(-1)
            if tasks.query.weight is not None:  # padding, and what does not count
                belongs = belongs * (tasks.query.weight > 0).unsqueeze(-1)
            c_TCD = _means(total + belongs.mT @ z_TQD, count + belongs.sum(1))
        return _nearest(program, c_TCD, there)


@STARTS.register("centroids")
@dataclass(frozen=True)
class Centroids(Start):
    """The rows of a head start as the class means of its support features: with a cosine head the nearest centroid by angle.

    Without inner steps this is the classifier of Meta-Baseline (Chen et al., ICCV 2021, equations 1 and 2), whose temperature is the head's
    scale. The head has a row for each class of the tasks. Only the head's weight may adapt.

    Example:
        >>> import headstart as hs
        >>> learner = hs.metabaseline(hs.models.mlp(features=4, ways=2, head="cosine"))
        >>> learner.adapt(torch.randn(6, 4), torch.tensor([0, 1, 2] * 2)).logits(torch.randn(5, 4)).shape
        torch.Size([5, 3])
    """

    def __call__(self, w: ParamsLike, partition: Partition, program: Program, tasks: Tasks, support: Mapping[Key, Tensor]) -> Params:
        """w_0 of every task."""
        (name, weight), *others = w.items()
        z_TSD = None if program.features is None else support[program.features]
        if others or z_TSD is None or z_TSD.dim() != 3 or weight.shape[1:] != z_TSD.shape[2:]:
            raise MethodError(
                "Centroids() needs a head whose weight, (classes, features), is all that adapts, on features that are computed once:"
                ' use adapt="head.weight" with a model that has head="cosine"'
            )
        total, count = _sums(z_TSD, tasks, _ways(self, tasks))
        return {**repeated(w, tasks), name: _means(total, count)}

    def shape(self, program: Program, tasks: Tasks) -> torch.Size:
        """A score for each class of the tasks."""
        return torch.Size((program.shape[0], _ways(self, tasks)))


@STARTS.register("encoded")
@dataclass(frozen=True)
class Encoded(Start):
    """The codes of a latent head start where they decode to what is nearest to the class means of the support features.

    The encoder is the decoder's own least squares, ``code_k = (UᵀU)⁻¹ Uᵀ c_k`` with the decoder U and the mean c_k, so that U learns from
    both: a deterministic latent start, after LEO (Rusu et al., ICLR 2019, section 2.2), whose encoder is a stochastic network of its own.
    Only the code may adapt; it has a row for each class of the tasks.

    Example:
        >>> import headstart as hs
        >>> learner = hs.anil_latent(hs.models.mlp(features=4, ways=2, head="latent"), lr=0.01)
        >>> learner.start, learner.adapt(torch.randn(6, 4), torch.tensor([0, 1, 2] * 2)).logits(torch.randn(5, 4)).shape
        (Encoded(), torch.Size([5, 3]))
    """

    def begin(self, w: ParamsLike, partition: Partition, program: Program, tasks: Tasks, shared: Shared) -> Params:
        """w_0 of every task."""
        (name, _), *others = w.items()
        decoder = shared.phi.get(f"{name.rpartition('.')[0]}.decode.weight")
        z_TSD = None if program.features is None else shared.support[program.features]
        if others or decoder is None or z_TSD is None or z_TSD.dim() != 3 or len(decoder) != z_TSD.shape[-1]:
            raise MethodError(
                'Encoded() needs a head whose code is all that adapts, on features that are computed once: use adapt="head.code" with a'
                ' model that has head="latent"'
            )
        total, count = _sums(z_TSD, tasks, _ways(self, tasks))
        u_DK = decoder.to(total.dtype)
        codes = torch.linalg.solve(u_DK.mT @ u_DK, u_DK.mT @ _means(total, count).mT).mT
        return {name: codes}

    def shape(self, program: Program, tasks: Tasks) -> torch.Size:
        """A score for each class of the tasks."""
        return torch.Size((program.shape[0], _ways(self, tasks)))


def _ways(start: Start, tasks: Tasks) -> int:
    if tasks.ways is None:
        raise MethodError(f"{type(start).__name__}() needs class labels, but the tasks have real targets")
    return max(tasks.ways, 2)


def _sums(z_TSD: Tensor, tasks: Tasks, ways: int) -> tuple[Tensor, Tensor]:
    """(T, C, D) sums of the labelled support features by class, and (T, C) how many they are, by weight; in single precision or better."""
    z_TSD = z_TSD.to(torch.promote_types(z_TSD.dtype, torch.float32))
    labelled = tasks.support.y >= 0
    member = F.one_hot(tasks.support.y.clamp_min(0), ways).to(z_TSD.dtype) * labelled.unsqueeze(-1)
    if tasks.support.weight is not None:
        member = member * tasks.support.weight.to(z_TSD.dtype).unsqueeze(-1)
    return member.mT @ z_TSD, member.sum(1)


def _means(total_TCD: Tensor, count_TC: Tensor) -> Tensor:
    """(T, C, D) means; zeros for a class of which there is nothing."""
    return total_TCD / torch.where(count_TC > 0, count_TC, 1.0).unsqueeze(-1)


def _nearest(program: Program, c_TCD: Tensor, there_TC: Tensor) -> Params:
    """The linear head that chooses the nearest of some means."""
    weight, bias = program.head_names
    # A class without support examples is left with a prototype infinitely far away in effect, not at the origin.
    missing = torch.finfo(c_TCD.dtype).max ** 0.25 * (~there_TC).to(c_TCD.dtype)
    return {weight: 2 * c_TCD, bias: -c_TCD.square().sum(-1) - missing}
