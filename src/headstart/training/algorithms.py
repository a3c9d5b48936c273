"""Algorithms by name: each is a choice of parts, as in :mod:`headstart.presets`, in the settings of a run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headstart.errors import ConfigError
from headstart.training.config import RunConfig

ALGORITHMS: dict[str, dict[str, Any]] = {
    "anil": {"adapt": "head", "start": "model"},
    "maml": {"adapt": "all"},
    "fomaml": {"adapt": "all", "hypergradient": "first-order"},
    "boil": {"adapt": "body"},
    "imaml": {"adapt": "all", "steps": 16, "hypergradient": "implicit", "solver_options": "prox=2.0"},
    "metasgd": {"adapt": "all", "solver": "metasgd", "steps": 1},
    "mamlpp": {"adapt": "all", "solver": "lslr"},
    "protonet": {"adapt": "head", "steps": 0, "start": "prototypes"},
    "protomaml": {"adapt": "head", "start": "prototypes"},
    "r2d2": {"adapt": "head", "solver": "ridge", "l2": 1.0, "solver_options": "scale=10.0"},
}
"""``mamlpp`` is without the query loss after every step, which the Python preset has."""


def with_algorithm(config: RunConfig, name: str, given: Collection[str]) -> RunConfig:
    """A config with the parts of an algorithm; what was given stays.

    Args:
        config: the run.
        name: one of :data:`ALGORITHMS`, or "" for none.
        given: names of settings that the user gave.

    Raises:
        ConfigError: the name is not known.

    Example:
        >>> with_algorithm(RunConfig(), "protonet", ()).learner.start
        'prototypes'
    """
    if not name:
        return config
    if name not in ALGORITHMS:
        raise ConfigError(f"algorithm={name!r} is not known; use one of {', '.join(ALGORITHMS)}")
    return replace(config, learner=replace(config.learner, **{k: v for k, v in ALGORITHMS[name].items() if k not in given}))
