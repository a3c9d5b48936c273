"""Sizes of tasks that fit the data there is, and changes to pictures where there are few."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch

from headstart.data.drawing import Data, fitted, signature
from headstart.training.config import RunConfig

SIZES = ("ways", "shots", "queries", "tasks")
OF_TASKS = {"shots": 10, "queries": 10}
"""The usual sizes where tasks come as they are, as those of tables: one support example says little of a whole task."""

FEW_PICTURES = 5000
"""Training pictures below which a network learns them by heart: small affine maps gave 8 to 10 points to characters in 8 and 32
classes, and cost photographs nothing (docs/choosing.md)."""


def fit_sizes(config: RunConfig, source: Data, given: Collection[str]) -> tuple[RunConfig, list[str]]:
    """Lowers ways, shots, queries and tasks to what the data holds; what was given is kept.

    Args:
        config: the run.
        source: its data.
        given: names of settings that the user gave.

    Returns:
        The config, and a sentence for each setting that was lowered.
    """
    usual = {name: getattr(config.train, name) for name in SIZES}
    if not signature(source.train, config.train.ways).by_class:
        usual |= {name: value for name, value in OF_TASKS.items() if name not in given}
    sizes = dict(usual)
    for split in ("test", "validation", "train"):
        lowered = fitted(getattr(source, split), sizes)
        if split != "train":
            lowered["tasks"] = sizes["tasks"]  # a test takes the tasks there are
        sizes = {name: usual[name] if name in given else lowered[name] for name in SIZES}
    before = {name: value for name, value in usual.items() if value != getattr(config.train, name) and sizes[name] == value}
    notes = [f"{name}={value}, as the tasks come as they are" for name, value in before.items()]
    notes += [
        f"{name}={size}, as the data holds no more for the usual {usual[name]}" for name, size in sizes.items() if size != usual[name]
    ]
    return replace(config, train=replace(config.train, **sizes)), notes


def fit_augment(config: RunConfig, source: Data, given: Collection[str]) -> tuple[RunConfig, list[str]]:
    """Small affine maps of training pictures where there are few, unless something was given.

    Args:
        config: the run.
        source: its data.
        given: names of settings that the user gave.

    Returns:
        The config, and a sentence if that was decided.
    """
    array, counts = (getattr(source.train, name, None) for name in ("array", "counts"))
    if "augment" in given or config.freeze or array is None or array.dtype != torch.uint8 or counts is None:
        return config, []
    if (pictures := int(sum(counts))) >= FEW_PICTURES:
        return config, []
    changed = replace(config, train=replace(config.train, augment="affine"))
    return changed, [
        f"augment=affine, as {pictures} training pictures are few: each is turned, scaled and shifted a little whenever it is drawn"
    ]
