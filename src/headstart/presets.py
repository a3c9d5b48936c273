"""The algorithms of the field, each as the composition of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from headstart.hypergradient.base import Hypergradient
from headstart.hypergradient.first_order import FirstOrder
from headstart.hypergradient.implicit import Implicit
from headstart.hypergradient.reptile import Reptile
from headstart.inner.curvature import MetaCurvature
from headstart.inner.descent import GradientDescent
from headstart.inner.learned_rates import LSLR, MetaSGD
from headstart.inner.prototypes import Centroids, Encoded, Prototypes, RefinedPrototypes
from headstart.inner.rates import AUTO, Rates
from headstart.inner.ridge import Ridge
from headstart.inner.start import Zeros
from headstart.inner.support_vectors import SVM
from headstart.learner import MetaLearner
from headstart.partition import Partition


def anil(
    model: nn.Module,
    steps: int = 5,
    lr: Rates = AUTO,
    l2: float = 0.0,
    *,
    adapt: str | Sequence[str] = "head",
    hypergradient: Hypergradient | None = None,
    **options: Any,
) -> MetaLearner:
    """ANIL: the head adapts, the body is shared (Raghu et al., ICLR 2020; Ji et al., NeurIPS 2020, Algorithm 1).

    Args:
        model: any module.
        steps, lr, l2: the inner loop's N, α and λ; α is measured by :func:`train` before it begins, or a number.
        adapt: another choice of adapted parameters.
        hypergradient: how to differentiate; None chooses the fastest exact way.
        options: further arguments of :class:`MetaLearner`.

    Example:
        >>> import headstart as hs
        >>> hs.anil(hs.models.mlp(features=4, ways=2, hidden=[8]), steps=5, lr=0.1).partition.adapted
        ('2.weight', '2.bias')
    """
    return MetaLearner(Partition(model, adapt), GradientDescent(steps, lr, l2), hypergradient, **options)


def maml(model: nn.Module, steps: int = 5, lr: Rates = AUTO, l2: float = 0.0, **options: Any) -> MetaLearner:
    """MAML: everything adapts (Finn et al., ICML 2017). Arguments as for :func:`anil`.

    Example:
        >>> import headstart as hs
        >>> hs.maml(hs.models.mlp(features=4, ways=2), steps=5, lr=0.1).partition.shared
        ()
    """
    return anil(model, steps, lr, l2, adapt="all", **options)


def boil(model: nn.Module, steps: int = 1, lr: Rates = AUTO, l2: float = 0.0, **options: Any) -> MetaLearner:
    """BOIL: the body adapts, the head is shared (Oh et al., ICLR 2021). Arguments as for :func:`anil`.

    Example:
        >>> import headstart as hs
        >>> hs.boil(hs.models.mlp(features=4, ways=2, hidden=[8]), lr=0.1).partition.adapted
        ('0.weight', '0.bias')
    """
    return anil(model, steps, lr, l2, adapt="body", **options)


def fomaml(model: nn.Module, steps: int = 5, lr: Rates = AUTO, l2: float = 0.0, **options: Any) -> MetaLearner:
    """First-order MAML (Finn et al., ICML 2017, section 5.2). Arguments as for :func:`anil`.

    Example:
        >>> import headstart as hs
        >>> hs.fomaml(hs.models.mlp(features=4, ways=2), lr=0.1).hypergradient
        FirstOrder()
    """
    return maml(model, steps, lr, l2, hypergradient=FirstOrder(), **options)


def imaml(model: nn.Module, steps: int = 16, lr: Rates = AUTO, prox: float = 2.0, **options: Any) -> MetaLearner:
    """iMAML: everything adapts, held near the start by a proximal term, with implicit gradients (Rajeswaran et al., NeurIPS 2019).

    Args:
        model: any module.
        steps, lr: the inner loop; it should converge, or :class:`Implicit` says that it has not.
        prox: λ of (λ/2)‖w − w_0‖².
        options: further arguments of :class:`MetaLearner`.

    Example:
        >>> import headstart as hs
        >>> hs.imaml(hs.models.mlp(features=4, ways=2), lr=0.1).inner.prox
        2.0
    """
    return MetaLearner(Partition(model, "all"), GradientDescent(steps, lr, prox=prox), options.pop("hypergradient", Implicit()), **options)


def metasgd(
    model: nn.Module, steps: int = 1, lr: Rates = AUTO, l2: float = 0.0, *, adapt: str | Sequence[str] = "all", **options: Any
) -> MetaLearner:
    """Meta-SGD: a learned step size for every adapted number (Li et al., 2017). Arguments as for :func:`anil`.

    Example:
        >>> import headstart as hs
        >>> hs.metasgd(hs.models.mlp(features=4, ways=2, hidden=[8]), lr=0.1, adapt="head").theta["lr.2.weight"].shape
        torch.Size([2, 8])
    """
    return MetaLearner(Partition(model, adapt), MetaSGD(steps, lr, l2), **options)


def mamlpp(
    model: nn.Module, steps: int = 5, lr: Rates = AUTO, l2: float = 0.0, *, adapt: str | Sequence[str] = "all", **options: Any
) -> MetaLearner:
    """MAML++: learned rates per layer and step, and a query loss after every step (Antoniou et al., ICLR 2019).

    Arguments as for :func:`anil`. The weights of the steps are equal; pass ``step_weights`` for others. Its schedules belong to training:
    ``TrainConfig(first_order=0.5, multi_step=0.15, schedule="cosine")``.

    Example:
        >>> import headstart as hs
        >>> hs.mamlpp(hs.models.mlp(features=4, ways=2), steps=4, lr=0.1).step_weights.tolist()
        [0.0, 0.25, 0.25, 0.25, 0.25]
    """
    weights = options.pop("step_weights", [0.0] + [1 / steps] * steps if isinstance(steps, int) and 0 < steps < 2**20 else None)
    return MetaLearner(Partition(model, adapt), LSLR(steps, lr, l2), step_weights=weights, **options)


def protonet(model: nn.Module, **options: Any) -> MetaLearner:
    """ProtoNet: nearest class mean in feature space, no inner steps (Snell et al., NeurIPS 2017).

    Example:
        >>> import headstart as hs
        >>> hs.protonet(hs.models.mlp(features=4, ways=2)).inner.steps
        0
    """
    start = options.pop("start", Prototypes())
    return MetaLearner(Partition(model, "head"), GradientDescent(steps=0, lr=1.0), start=start, **options)


def protomaml(model: nn.Module, steps: int = 5, lr: Rates = AUTO, l2: float = 0.0, **options: Any) -> MetaLearner:
    """Prototypes as the head's start, then inner steps on the head (Triantafillou et al., ICLR 2020). Arguments as for :func:`anil`.

    Example:
        >>> import headstart as hs
        >>> hs.protomaml(hs.models.mlp(features=4, ways=2), steps=5, lr=0.1).start
        Prototypes()
    """
    return anil(model, steps, lr, l2, start=Prototypes(), **options)


def r2d2(model: nn.Module, l2: float = 1.0, scale: float = 10.0, **options: Any) -> MetaLearner:
    """R2D2: a ridge-regression head in closed form, its regularisation learned (Bertinetto et al., ICLR 2019).

    Example:
        >>> import headstart as hs
        >>> sorted(hs.r2d2(hs.models.mlp(features=4, ways=2)).theta)
        ['log_l2', 'log_scale']
    """
    return MetaLearner(Partition(model, "head"), Ridge(l2=l2, scale=scale), **options)


def reptile(model: nn.Module, steps: int = 5, lr: Rates = AUTO, l2: float = 0.0, **options: Any) -> MetaLearner:
    """Reptile: the start moves towards where adaptation of everything ends (Nichol et al., 2018). Arguments as for :func:`anil`.

    Example:
        >>> import headstart as hs
        >>> hs.reptile(hs.models.mlp(features=4, ways=2), lr=0.1).hypergradient
        Reptile()
    """
    return maml(model, steps, lr, l2, hypergradient=Reptile(), **options)


def metacurvature(
    model: nn.Module, steps: int = 5, lr: Rates = AUTO, l2: float = 0.0, *, adapt: str | Sequence[str] = "all", **options: Any
) -> MetaLearner:
    """Meta-Curvature: gradients are transformed by learned matrices (Park and Oliva, NeurIPS 2019). Arguments as for :func:`anil`.

    Example:
        >>> import headstart as hs
        >>> len(hs.metacurvature(hs.models.mlp(features=4, ways=2, hidden=[3]), lr=0.1).theta) > 0  # what it learns beside the start
        True
    """
    return MetaLearner(Partition(model, adapt), MetaCurvature(steps, lr, l2), **options)


def metaoptnet(model: nn.Module, C: float = 0.1, scale: float = 10.0, **options: Any) -> MetaLearner:
    """MetaOptNet: a multi-class support-vector head, solved and differentiated exactly (Lee et al., CVPR 2019).

    Example:
        >>> import headstart as hs
        >>> sorted(hs.metaoptnet(hs.models.mlp(features=4, ways=2)).theta)
        ['log_scale']
    """
    return MetaLearner(Partition(model, "head"), SVM(C=C, scale=scale), **options)


def cavia(
    model: nn.Module, steps: int = 5, lr: Rates = AUTO, l2: float = 0.0, *, adapt: str | Sequence[str] = "*context", **options: Any
) -> MetaLearner:
    """CAVIA: context parameters adapt from zero, all weights are shared (Zintgraf et al., ICML 2019).

    Args:
        model: a network with context parameters, such as ``hs.models.conv4(context=100)``.
        steps, lr, l2: as for :func:`anil`.
        adapt: a pattern of their names.
        options: further arguments of :class:`MetaLearner`.

    Example:
        >>> import headstart as hs
        >>> learner = hs.cavia(hs.models.mlp(features=4, ways=2, context=3), lr=0.1)
        >>> [name.rpartition('.')[2] for name in learner.partition.adapted][:1]
        ['context']
    """
    return anil(model, steps, lr, l2, adapt=adapt, start=Zeros(), **options)


def anil_cosine(
    model: nn.Module, steps: int = 5, lr: Rates = AUTO, l2: float = 0.0, *, adapt: str | Sequence[str] = "head.weight", **options: Any
) -> MetaLearner:
    """ANIL with a cosine head: its class vectors adapt, body and scale are shared.

    Args:
        model: a network with a cosine head, such as ``hs.models.conv4(head="cosine")``.
        steps, lr, l2: as for :func:`anil`.
        adapt: the name of the head's weight.
        options: further arguments of :class:`MetaLearner`.

    Example:
        >>> import headstart as hs
        >>> hs.anil_cosine(hs.models.mlp(features=4, ways=2, head='cosine'), lr=0.1).partition.adapted
        ('head.weight',)
    """
    return anil(model, steps, lr, l2, adapt=adapt, **options)


def anil_latent(
    model: nn.Module, steps: int = 5, lr: Rates = AUTO, l2: float = 0.0, *, adapt: str | Sequence[str] = "head.code", **options: Any
) -> MetaLearner:
    """ANIL in a latent space: the short codes adapt of which a shared decoder makes the class vectors, from codes of the class means.

    Args:
        model: a network with a latent head, such as ``hs.models.conv4(head="latent")``.
        steps, lr, l2: as for :func:`anil`.
        adapt: the name of the head's code.
        options: further arguments of :class:`MetaLearner`.

    Example:
        >>> import headstart as hs
        >>> hs.anil_latent(hs.models.mlp(features=4, ways=2, head='latent'), lr=0.1).partition.shared[-1]
        'head.decode.weight'
    """
    return anil(model, steps, lr, l2, adapt=adapt, start=Encoded(), **options)


def metabaseline(model: nn.Module, *, adapt: str | Sequence[str] = "head.weight", **options: Any) -> MetaLearner:
    """Meta-Baseline's second stage: the nearest centroid by angle, with a learned temperature (Chen et al., ICCV 2021).

    Its first stage, classification of all training classes, belongs to training: ``TrainConfig(pretrain=500)``.

    Args:
        model: a network with a cosine head, such as ``hs.models.conv4(head="cosine")``.
        adapt: the name of the head's weight.
        options: further arguments of :class:`MetaLearner`.

    Example:
        >>> import headstart as hs
        >>> learner = hs.metabaseline(hs.models.mlp(features=4, ways=2, head='cosine'))
        >>> learner.start, learner.inner.steps
        (Centroids(), 0)
    """
    return MetaLearner(Partition(model, adapt), GradientDescent(steps=0, lr=1.0), start=Centroids(), **options)


def soft_kmeans(model: nn.Module, iterations: int = 1, **options: Any) -> MetaLearner:
    """ProtoNet whose prototypes are refined by soft k-means over the query examples: transductive (Ren et al., ICLR 2018).

    Example:
        >>> import headstart as hs
        >>> hs.soft_kmeans(hs.models.mlp(features=4, ways=2), iterations=2).start
        RefinedPrototypes(iterations=2)
    """
    return protonet(model, start=RefinedPrototypes(iterations), **options)
