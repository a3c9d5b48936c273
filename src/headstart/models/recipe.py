"""How a network was built, remembered beside it, so that a file can say so and it can be built again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from headstart.errors import CheckpointError, ConfigError
from headstart.registry import Registry

P = ParamSpec("P")
M = TypeVar("M", bound=nn.Module)
OURS = "headstart.models:"
NAMES = ("conv4", "mlp", "on_features", "projection", "resnet12")
ATTRIBUTE = "_headstart_recipe"
NESTED = "network of a recipe"
MODELS: Registry[nn.Module] = Registry("model")
"""The networks by name, for examples of a shape."""


def remembered(build: Callable[P, M]) -> Callable[P, M]:
    """A decorator for a function of :mod:`headstart.models`: what it builds remembers how."""

    @functools.wraps(build)
    def made(*args: P.args, **kwargs: P.kwargs) -> M:
        module = build(*args, **kwargs)
        remember(module, OURS + build.__name__, inspect.signature(build).bind(*args, **kwargs).arguments)
        return module

    return made


def remember(module: nn.Module, name: str, arguments: Mapping[str, Any]) -> None:
    """Notes that a factory of a name makes such a module of some arguments."""
    module.__dict__[ATTRIBUTE] = {"name": name, "arguments": dict(arguments)}


def nested(module: nn.Module) -> dict[str, Any] | None:
    """The recipe of a module as an argument of another one's; None if it is not known."""
    own = module.__dict__.get(ATTRIBUTE)
    return None if own is None else {NESTED: own}


def _names(recipe: Mapping[str, Any]) -> list[str]:
    """The names of a recipe and of those among its arguments."""
    inner = [v[NESTED] for v in recipe["arguments"].values() if _is_nested(v)]
    return [str(recipe["name"]), *(name for own in inner for name in _names(own))]


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {NESTED}


def recipe_of(module: nn.Module, name: str = "", arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The recipe of a module, for a file: the one that was given, or the one that is remembered.

    Args:
        module: the network.
        name: ``module:name`` of a function or class that makes one like it.
        arguments: that it is called with.

    Raises:
        ConfigError: there is none, or it makes another network.
    """
    found: dict[str, Any] | None = {"name": name, "arguments": dict(arguments or {})} if name else module.__dict__.get(ATTRIBUTE)
    if found is None:
        raise ConfigError(
            f"it is not known how this {type(module).__name__} was built, and a file holds no code: give model='module:name' of a"
            " function or class that makes one, and arguments={…} for it"
        )
    with torch.random.fork_rng(devices=[]):
        again = rebuilt(found, _names(found))
    if shape_of(again) != shape_of(module):
        raise ConfigError(
            f"{found['name']} with {found['arguments']} makes another network than this one, which was changed after it was built; give"
            " model='module:name' of a function that makes it as it is"
        )
    return {**found, "shape": shape_of(module)}


def rebuilt(recipe: Mapping[str, Any], trust: Collection[str] = ()) -> nn.Module:
    """The network of a recipe, with weights of its own.

    Args:
        recipe: what :func:`recipe_of` gave.
        trust: names of one's own that may be imported; a file can name anything, and importing runs code.

    Raises:
        CheckpointError: it names something that is not trusted.
        ConfigError: it cannot be built.
    """
    name = str(recipe["name"])
    arguments = {k: rebuilt(v[NESTED], trust) if _is_nested(v) else _tuples(v) for k, v in recipe["arguments"].items()}
    own = name.removeprefix(OURS)
    if name not in MODELS and not (name.startswith(OURS) and own in NAMES) and name not in trust:
        raise CheckpointError(f"its network is made by {name}, and importing runs code: if that is yours, load with trust=[{name!r}]")
    try:
        found = MODELS.build(name, **arguments)
    except TypeError as error:
        raise ConfigError(f"{name} cannot be made of {arguments}: {error}") from error
    if not isinstance(found, nn.Module):
        raise ConfigError(f"{name} gave a {type(found).__name__}; it must give a torch.nn.Module")
    remember(found, name, recipe["arguments"])  # so that it can be kept again
    return found


def shape_of(module: nn.Module) -> list[str]:
    """What two networks of one recipe have alike: their modules, in order; the last layer may have any number of outputs."""
    rows = [f"{name} {type(m).__name__} {'' if isinstance(m, nn.Linear) else m.extra_repr()}" for name, m in module.named_modules()]
    return [*rows, *(name for name, _ in module.named_parameters())]


def alike(shape: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two shapes are of the same modules and parameters, whatever else a version of torch says of a module."""
    return [row.split(" ")[:2] for row in shape] == [row.split(" ")[:2] for row in other]


def _tuples(value: Any) -> Any:
    """Lists, which JSON made of tuples, as tuples."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
