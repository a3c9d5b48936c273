"""From a config to a trained and evaluated model, and back from a run folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headstart import data as sources
from headstart import models
from headstart.data.sampling import Data, Signature, signature
from headstart.errors import CheckpointError, ConfigError
from headstart.hypergradient.base import Hypergradient
from headstart.hypergradient.first_order import FirstOrder
from headstart.hypergradient.recursive import Recursive
from headstart.hypergradient.unrolled import Unrolled
from headstart.inner.start import Prototypes, SharedVector
from headstart.learner import MetaLearner
from headstart.presets import anil
from headstart.training import checkpoint
from headstart.training.config import LearnerConfig, RunConfig
from headstart.training.loop import BEST, LAST, METRICS, Run, train

STARTS = {"model": None, "shared": SharedVector(), "prototypes": Prototypes()}
CONFIG, EVALUATION, REPORT = "config.json", "evaluation.json", "report.html"


def build(config: RunConfig) -> tuple[MetaLearner, Any]:
    """The learner and the data that a config describes; the model's first weights come from its seed."""
    source = sources.load(config.data, config.data_path or None, **config.source_options())
    return learner_for(config, source), source


def learner_for(config: RunConfig, source: Data) -> MetaLearner:
    """The learner that a config describes, for the tasks of a source.

    Raises:
        ConfigError: the model does not take such examples.
    """
    own, tasks = config.learner, signature(source.train, config.train.ways)
    torch.manual_seed(config.train.seed)
    chosen: dict[str, Hypergradient | None] = {"auto": None, "unrolled": Unrolled(), "recursive": Recursive(), "first-order": FirstOrder()}
    return anil(
        _model(own, tasks),
        own.steps,
        own.lr,
        own.l2,
        adapt=own.adapt,
        start=STARTS[own.start],
        hypergradient=chosen[own.hypergradient],
        loss="squared_error" if tasks.regression else "cross_entropy",
    )


def _model(own: LearnerConfig, tasks: Signature) -> nn.Module:
    pictures = len(tasks.shape) == 3
    name = own.model if own.model != "auto" else "conv4" if pictures else "mlp"
    if name == "mlp":
        flat = models.mlp(math.prod(tasks.shape), tasks.outputs, own.hidden)
        return flat if len(tasks.shape) == 1 else nn.Sequential(nn.Flatten(), *flat)
    if not pictures:
        raise ConfigError(f"model={own.model!r} takes pictures, but these examples are {tasks.shape}; use --model mlp")
    channels, size, _ = tasks.shape
    return models.conv4(channels, tasks.outputs, size, own.filters) if name == "conv4" else models.resnet12(channels, tasks.outputs)


def start(
    config: RunConfig, out: str | Path, *, resume: bool = False, overwrite: bool = False, quiet: bool = False
) -> tuple[Run, MetaLearner, Any]:
    """Trains what a config describes in a run folder; ``overwrite`` first removes what an earlier run left there."""
    learner, source = build(config)
    folder = Path(out)
    checkpoint.prepare_folder(folder)
    if overwrite and not resume:
        for name in (LAST, BEST):
            (folder / name).unlink(missing_ok=True)
            (folder / name).with_suffix(".json").unlink(missing_ok=True)
        for name in (METRICS, CONFIG, EVALUATION, REPORT):
            (folder / name).unlink(missing_ok=True)
    if resume and (folder / CONFIG).exists():
        _check_resumed(RunConfig.load(folder / CONFIG), config)
    if resume or not (folder / LAST).exists():
        checkpoint.write_atomically(folder / CONFIG, config.save)
    return train(learner, source, config.train, out=folder, resume=resume, quiet=quiet), learner, source


MAY_CHANGE = ("data_path", "iterations", "validate_every", "validation_episodes")


def _check_resumed(before: RunConfig, now: RunConfig) -> None:
    """Refuses to go on with other settings, which would be another run under the same name."""
    old, new = before.flat(), now.flat()
    for name in old:
        if name not in MAY_CHANGE and old[name] != new[name]:
            raise ConfigError(f"the run was made with {name}={old[name]!r}, and not {new[name]!r}; only {', '.join(MAY_CHANGE)} may change")


def open_run(folder: str | Path) -> tuple[RunConfig, MetaLearner, Any]:
    """The config, the trained learner (its best weights) and the data of a run folder.

    Raises:
        CheckpointError: it is no run folder, or its checkpoint is damaged.
    """
    path = Path(folder)
    if not (path / CONFIG).exists():
        raise CheckpointError(f"{str(folder)!r} is no run folder: it has no {CONFIG}; give the folder that `headstart train --out` wrote")
    config = RunConfig.load(path / CONFIG)
    learner, source = build(config)
    checkpoint.load(path / (BEST if (path / BEST).exists() else LAST), learner)
    return config, learner, source
