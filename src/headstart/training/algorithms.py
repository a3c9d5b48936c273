"""Algorithms by name: each is a choice of parts, as in :mod:`headstart.presets`, in the settings of a run."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from headstart.errors import ConfigError
from headstart.training.config import RunConfig

PRETRAIN = 500
"""Outer steps of the first stage of Meta-Baseline, where none are given."""

ALGORITHMS: dict[str, dict[str, Any]] = {
    "anil": {"adapt": "head", "start": "model"},
    "anil_cosine": {"adapt": "head.weight", "start": "model", "model_options": "head=cosine"},
    "anil_latent": {"adapt": "head.code", "start": "encoded", "model_options": "head=latent"},
    "maml": {"adapt": "all"},
    "fomaml": {"adapt": "all", "hypergradient": "first-order"},
    "reptile": {"adapt": "all", "hypergradient": "reptile"},
    "boil": {"adapt": "body"},
    "imaml": {"adapt": "all", "steps": 16, "hypergradient": "implicit", "solver_options": "prox=2.0"},
    "metasgd": {"adapt": "all", "solver": "metasgd", "steps": 1},
    "metacurvature": {"adapt": "all", "solver": "metacurvature"},
    "mamlpp": {"adapt": "all", "solver": "lslr", "first_order": 0.5, "multi_step": 0.15, "schedule": "cosine"},
    "cavia": {"adapt": "*context", "start": "zeros", "model_options": "context=100"},
    "protonet": {"adapt": "head", "steps": 0, "start": "prototypes"},
    "soft_kmeans": {"adapt": "head", "steps": 0, "start": "refined-prototypes"},
    "protomaml": {"adapt": "head", "start": "prototypes"},
    "metabaseline": {"adapt": "head.weight", "steps": 0, "start": "centroids", "model_options": "head=cosine", "pretrain": PRETRAIN},
    "r2d2": {"adapt": "head", "solver": "ridge", "l2": 1.0, "solver_options": "scale=10.0"},
    "metaoptnet": {"adapt": "head", "solver": "svm", "solver_options": "C=0.1,scale=10.0"},
}


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
    return RunConfig.from_flat({**config.flat(), **{k: v for k, v in ALGORITHMS[name].items() if k not in given}})
