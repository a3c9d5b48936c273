"""The parts of a learner by name: what a config says as text, made into solvers, starts, hypergradients, losses and models."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from headstart.errors import ConfigError
from headstart.hypergradient import HYPERGRADIENTS, Hypergradient
from headstart.inner import SOLVERS, STARTS, Start
from headstart.losses import LOSSES
from headstart.models import by_name as _networks  # noqa: F401  (they enter themselves)
from headstart.models.recipe import MODELS, remember
from headstart.registry import Registry, parse_options
from headstart.training.step_sizes import StepSizes

__all__ = ["HYPERGRADIENTS", "LOSSES", "MODELS", "SOLVERS", "STARTS", "hypergradient", "loss", "model", "solver", "start"]

T = TypeVar("T")
TRANSFORMERS = "transformers"


def solver(name: str, options: str, steps: int, lr: StepSizes, l2: float) -> Any:
    """The inner solver of a name: it gets those of ``steps`` and ``lr`` that it has, ``l2`` where that is not 0, and its options.

    One whose ``closed_form`` is true has no use for ``steps``.

    Raises:
        ConfigError: the name, an option or a value is not known to work.

    Example:
        >>> solver("descent", "momentum=0.9", 5, 0.4, 0.0)
        GradientDescent(steps=5, lr=0.4, l2=0.0, momentum=0.9, prox=0.0, clip=None)
    """
    given = parse_options(options, "solver_options")
    factory = SOLVERS.find(name)
    offered = _taken(factory, {"lr": lr} if getattr(factory, "closed_form", False) else {"steps": steps, "lr": lr})
    return _built(SOLVERS, name, {**offered, **({"l2": l2} if l2 else {}), **given})


def start(name: str, options: str = "") -> Start:
    """The start of a name.

    Raises:
        ConfigError: the name or an option is not known.
    """
    return _built(STARTS, name, parse_options(options, "start_options"))


def hypergradient(name: str, options: str = "") -> Hypergradient | None:
    """The hypergradient of a name; None for ``"auto"``, which the learner chooses itself.

    Raises:
        ConfigError: the name or an option is not known.
    """
    given = parse_options(options, "hypergradient_options")
    if name == "auto" and not given:
        return None
    return _built(HYPERGRADIENTS, name, given)


def loss(name: str, options: str = "") -> Any:
    """The loss of a name, or a function or criterion of one's own as ``module:name``; None for ``"auto"``, which goes by the targets.

    A criterion of torch's does not reduce, unless the options say so.

    Raises:
        ConfigError: the name or an option is not known.

    Example:
        >>> own = loss("torch.nn:CrossEntropyLoss", "label_smoothing=0.1")
        >>> own.label_smoothing, own.reduction
        (0.1, 'none')
    """
    given = parse_options(options, "loss_options")
    if name == "auto" and not given:
        return None
    if name in LOSSES:
        return _built(LOSSES, name, given)
    own = LOSSES.find(name)
    if isinstance(own, type):
        return _built(LOSSES, name, {**_taken(own, {"reduction": "none"}), **given})
    return functools.partial(own, **given) if given else own


def model(name: str, options: str, shape: tuple[int, ...], outputs: int, **usual: Any) -> nn.Module:
    """The network of a name, for examples of a shape.

    Args:
        name: one of :data:`MODELS`, or your own as ``module:name``: a class or function.
        options: its options as text.
        shape: of one example. The factory gets it if it has a parameter of that name.
        outputs: how many. The factory gets them if it has a parameter of that name.
        usual: settings that several networks share; a factory gets those that it has a parameter for.

    Raises:
        ConfigError: the name or an option is not known, or what came is no module.

    Example:
        >>> model("mlp", "hidden=[8]", (4,), 2)[0]
        Linear(in_features=4, out_features=8, bias=True)
    """
    name, own = model_name(name)
    offered = _taken(MODELS.find(name), {"shape": shape, "outputs": outputs, **usual})
    arguments = {**offered, **own, **parse_options(options, "model_options")}
    found = _built(MODELS, name, arguments)
    if not isinstance(found, nn.Module):
        raise ConfigError(f"model={name!r} gave a {type(found).__name__}; it must give a torch.nn.Module")
    remember(found, name, arguments)
    return found


def model_name(name: str) -> tuple[str, dict[str, Any]]:
    """The registered name of a network, and what stands behind it: ``transformers:FOLDER`` is the network of that name.

    Raises:
        ConfigError: it is not known.

    Example:
        >>> model_name("transformers:my/vit"), model_name("mlp")
        (('transformers', {'name': 'my/vit'}), ('mlp', {}))
    """
    kind, _, own = name.partition(":")
    if kind == TRANSFORMERS:
        if not own:
            raise ConfigError(f"model={name!r}: name the network behind it, transformers:FOLDER_OR_NAME")
        return kind, {"name": own}
    MODELS.find(name)
    return name, {}


def _taken(factory: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """Those of the offered arguments that a factory has a parameter for."""
    known = inspect.signature(factory).parameters
    return {name: value for name, value in offered.items() if name in known}


def _built(registry: Registry[T], name: str, options: dict[str, Any]) -> T:
    try:
        return registry.build(name, **options)
    except TypeError as error:
        given = ", ".join(f"{k}={v!r}" for k, v in options.items())
        raise ConfigError(f"{registry.what} {name!r} cannot be made of {given or 'nothing'}: {error}") from error
