"""The algorithms of the field, each as the composition of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from headstart.hypergradient.base import Hypergradient
from headstart.hypergradient.first_order import FirstOrder
from headstart.hypergradient.implicit import Implicit
from headstart.inner.descent import GradientDescent
from headstart.inner.learned_rates import LSLR, MetaSGD
from headstart.inner.rates import AUTO, Rates
from headstart.inner.ridge import Ridge
from headstart.inner.start import Prototypes
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
    """MAML++ without its schedules: learned rates per layer and step, and a query loss after every step (Antoniou et al., ICLR 2019).

    Arguments as for :func:`anil`. The weights of the steps are equal; pass ``step_weights`` for others.

    Example:
        >>> import headstart as hs
        >>> hs.mamlpp(hs.models.mlp(features=4, ways=2), steps=4, lr=0.1).step_weights.tolist()
        [0.0, 0.25, 0.25, 0.25, 0.25]
    """
    weights = options.pop("step_weights", [0.0] + [1 / steps] * steps if steps else None)
    return MetaLearner(Partition(model, adapt), LSLR(steps, lr, l2), step_weights=weights, **options)


def protonet(model: nn.Module, **options: Any) -> MetaLearner:
    """ProtoNet: nearest class mean in feature space, no inner steps (Snell et al., NeurIPS 2017).

    Example:
        >>> import headstart as hs
        >>> hs.protonet(hs.models.mlp(features=4, ways=2)).inner.steps
        0
    """
    return MetaLearner(Partition(model, "head"), GradientDescent(steps=0, lr=1.0), start=Prototypes(), **options)


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
