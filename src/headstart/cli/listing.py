"""What there is to choose from, as the help of a command lists it."""

from __future__ import annotations

import inspect

from headstart.registry import Registry
from headstart.training import choices, loggers, outer

CHOICES: dict[str, tuple[Registry, tuple[str, ...]]] = {  # type: ignore[type-arg]
    "--model": (choices.MODELS, ()),
    "--solver": (choices.SOLVERS, ()),
    "--start": (choices.STARTS, ()),
    "--hypergradient": (choices.HYPERGRADIENTS, ("auto",)),
    "--loss": (choices.LOSSES, ("auto",)),
    "--optimizer": (outer.OPTIMIZERS, ()),
    "--schedule": (outer.SCHEDULES, ()),
    "--log": (loggers.CALLBACKS, ()),
}


def with_choices(command: type) -> str:
    """The description of a command, and the names that its options take."""
    lines = [f"{option}: {', '.join([*more, *registry.names()])}" for option, (registry, more) in CHOICES.items()]
    return f"{inspect.getdoc(command)}\n\nBy name, or your own as module:name:\n" + "\n".join(f"- {line}" for line in lines)
