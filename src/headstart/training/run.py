"""From a config to a trained and evaluated model, and back from a run folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from headstart import data as sources
from headstart.data.drawing import Data, signature
from headstart.data.sources.splitting import folded
from headstart.errors import CheckpointError, ConfigError, HeadstartError
from headstart.learner import MetaLearner
from headstart.measuring.rate import largest_curvature
from headstart.models.pretrained import taken_by
from headstart.partition import Partition
from headstart.ranks import ALONE, Ranks
from headstart.training import checkpoint, choices
from headstart.training.automatic import SIZES, fit_augment, fit_sizes
from headstart.training.budget import fit_time
from headstart.training.config import AUTO, RunConfig
from headstart.training.frozen import features, whole
from headstart.training.holding import held
from headstart.training.loggers import callbacks_of
from headstart.training.loop import train
from headstart.training.run_folder import BEST, CONFIG, LAST, LOGS, METRICS, PRETRAINED, Run, check_free
from headstart.training.trials import Trials

log = logging.getLogger("headstart")
BEYOND = 16.0
"""α L̂ from which a given step size is warned of: cross-entropy flattens along the path, and up to 7 has trained well."""
SMALLER = (64, 48, 32)
"""Sides of pictures, in pixels, where there is little time."""
EVALUATION, BASELINES, REPORT = "evaluation.json", "baselines.json", "report.html"
CALIBRATION, START = "calibration.json", "start.safetensors"


def build(config: RunConfig) -> tuple[MetaLearner, Any]:
    """The learner and the data that a config describes; the model's first weights come from its seed."""
    source = load(config)
    return learner_for(config, source), source


def load(config: RunConfig) -> Any:
    """The data that a config describes.

    Raises:
        ConfigError: a number of training classes is asked of a source that has no classes.
    """
    source = _examples(config)
    if not config.freeze:
        return source
    if not isinstance(source, sources.Source):
        raise ConfigError(f"freeze={config.freeze!r}: {config.data} has no classes of pictures; leave it out")
    return features(_body(config, source), source)


def on_examples(config: RunConfig, learner: MetaLearner, source: Any) -> tuple[MetaLearner, Any]:
    """The learner and the source of a run as they are for examples: of a frozen body, body included; else as they are.

    Args:
        config, learner, source: of the run.
    """
    if not config.freeze:
        return learner, source
    examples = _examples(config)
    return whole(learner, _body(config, examples), source), examples


def _examples(config: RunConfig) -> Any:
    return some_classes(config, _one_fold(config, sources.load(config.data, config.data_path or None, **_source_options(config))))


def _body(config: RunConfig, source: Any) -> MetaLearner:
    """The learner whose body is frozen."""
    return _learner(replace(config, freeze="", learner=replace(config.learner, adapt="head", start="model", lr=0.1)), source)


def _one_fold(config: RunConfig, source: Any) -> Any:
    if not config.folds:
        return source
    if not isinstance(source, sources.Source):
        raise ConfigError(f"folds={config.folds}: {config.data} has no classes to divide; --data-options seed=1 draws other test tasks")
    return folded(source, config.folds, config.fold or 1, config.train.seed)


def _source_options(config: RunConfig) -> dict[str, Any]:
    """The options of the source; pictures from folders have the size that a pretrained network takes, unless another was given."""
    options = config.source_options()
    kind, own = choices.model_name(config.learner.model)
    if not _of_a_folder(config):
        if config.picture_size:
            raise ConfigError(f"picture_size={config.picture_size}: {config.data} has pictures of one size; it is for folders")
    elif config.picture_size:
        options.setdefault("size", config.picture_size)
    elif kind == choices.TRANSFORMERS:
        options.setdefault("size", taken_by(own["name"])["size"])
    return options


def _of_a_folder(config: RunConfig) -> bool:
    return bool(sources.catalogue.named(config.data).partition(":")[0] == "folder")


def _fit_pictures(config: RunConfig, source: Any, given: Collection[str], ranks: Ranks) -> tuple[RunConfig, list[str]]:
    """Smaller pictures of a folder where ``minutes`` would be enough for less than half of the iterations otherwise."""
    sized = config.picture_size or "size" in config.source_options() or config.learner.model not in (AUTO, "conv4")
    if sized or config.freeze or not _of_a_folder(config):
        return config, []
    fitting, _ = fit_sizes(config, source, given)
    fitting, _ = fit_time(fitting, source, lambda one: _learner(one, source), given, ranks)
    enough, wanted, side = fitting.train.iterations, config.train.iterations, source.train.shape[-1]
    if enough >= wanted / 2:
        return config, []
    size = next((s for s in SMALLER if enough * (side / s) ** 2 >= wanted / 2), SMALLER[-1])
    note = f"picture_size={size}, as {config.minutes:g} minutes are enough for {enough} of {wanted} iterations at {side} pixels"
    return replace(config, picture_size=size), [f"{note}; --picture-size {side} keeps them"]


def some_classes(config: RunConfig, source: Any) -> Any:
    """The source with as many training classes as the config says."""
    if not config.train_classes:
        return source
    if not isinstance(source, sources.Source):
        raise ConfigError(f"train_classes={config.train_classes}: {config.data} has no classes; use 0")
    return replace(source, train=source.train.some(config.train_classes, config.train.seed))


def decided(config: RunConfig, source: Data, given: Collection[str] | None = None, ranks: Ranks = ALONE) -> tuple[RunConfig, list[str]]:
    """A config in which nothing is open: sizes fit the data, and the inner step size is a number.

    Args:
        config: the run.
        source: its data.
        given: names of settings that the user gave, which stay; None where all sizes stay.
        ranks: who will share the work; this one decides alone.

    Returns:
        The config, and what was decided in sentences.
    """
    notes: list[str] = []
    if given is not None:
        config, notes = fit_sizes(config, source, given)
        config, more = fit_augment(config, source, given)
        notes += more
        config, more = fit_time(config, source, lambda one: _learner(one, source), given, ranks)
        notes += more
    steps_open = given is not None and not {"steps", "algorithm", "lr", "solver"} & set(given)
    trials = Trials(source, lambda one: _learner(one, source), allowed=given is not None, steps_open=steps_open)
    if config.learner.start == AUTO:
        config, more = trials.with_start(config)
        notes += more
    config, found = trials.with_rate(config)
    if found is not None:
        config, more = trials.checked(config)
        notes += [str(found), *more]
    elif given is not None:
        _warn_of_rate(config, source)
    return config, notes


def _warn_of_rate(config: RunConfig, source: Data) -> None:
    """One warning where a step size that was given is far beyond what is stable."""
    own = config.learner
    if not isinstance(own.lr, float) or own.steps == 0 or own.inner_solver().scale_free or not hasattr(own.inner_solver(), "lr"):
        return
    try:
        L = largest_curvature(_learner(config, source), source.train, **config.train.probe())
    except HeadstartError:
        return  # a model without second derivatives, or flat where it starts: nothing can be said of a size that was given
    if own.lr * L > BEYOND:
        log.warning(
            "lr=%g is %.2g/L, with L = %.3g the largest curvature of the inner loss: adaptation may diverge; --lr auto measures one",
            own.lr,
            own.lr * L,
            L,
        )


def learner_for(config: RunConfig, source: Data) -> MetaLearner:
    """The learner that a config describes, for the tasks of a source; an open step size is measured.

    Raises:
        ConfigError: the model does not take such examples.
    """
    return _learner(decided(config, source)[0], source)


def _learner(config: RunConfig, source: Data) -> MetaLearner:
    own, tasks = config.learner, signature(source.train, config.train.ways)
    torch.manual_seed(config.train.seed)
    usual = {"filters": own.filters, "hidden": own.hidden, "by_class": tasks.by_class, **_scale(source)}
    name, options = ("projection", "") if config.freeze else (own.model, own.model_options)
    model = choices.model(name, options, tasks.shape, tasks.outputs, **usual)
    loss = choices.loss(own.loss, own.loss_options)
    return MetaLearner(
        Partition(model, own.adapt),
        own.inner_solver(),
        choices.hypergradient(own.hypergradient, own.hypergradient_options),
        start=choices.start("model" if own.start == AUTO else own.start, own.start_options),
        loss=loss if loss is not None else "squared_error" if tasks.regression else "cross_entropy",
        precision=own.precision,
    )


def _scale(source: Data) -> dict[str, Any]:
    """What pictures are standardised with, for networks that were trained on another scale."""
    array = getattr(source.train, "array", None)
    if array is None or array.dtype != torch.uint8:
        return {}
    own = {name: getattr(source.train, name) or (0.5,) for name in ("mean", "std")}
    return {name: tuple(values) * (len(array[0]) // len(values)) for name, values in own.items()}


def start(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    given: Collection[str] | None = None,
) -> tuple[Run, RunConfig, MetaLearner, Any]:
    """Trains what a config describes in a run folder.

    Args:
        config: the run; what is open in it is decided first, and what was decided is written into the folder.
        out: the folder.
        resume: go on with the run that is there.
        overwrite: first remove what an earlier run left there.
        quiet: show no progress.
        given: names of settings that the user gave; None where all sizes were.

    Of several processes the first decides, and writes; all of them train.
    """
    folder, ranks, loggers = Path(out), Ranks.present(), callbacks_of(config.log)
    callbacks = [*(loggers if ranks.is_first else []), *callbacks_of(config.callbacks)]
    if not resume and not overwrite:
        ranks.first(lambda: check_free(folder))  # before anything is read or measured, and anything is changed
    before = ranks.first(lambda: RunConfig.load(folder / CONFIG) if resume and (folder / CONFIG).exists() else None)
    if before is not None:
        kept = before.flat()
        config = RunConfig.from_flat({k: kept[k] if k in DECIDED and k not in (given or DECIDED) else v for k, v in config.flat().items()})
        given = None  # everything was decided when the run began
    source = ranks.one_first(lambda: load(config))
    if given is not None:
        fitted, smaller = ranks.first(lambda: _fit_pictures(config, source, given, ranks))
        _say(smaller)
        if fitted != config:
            with _unsaid():  # what is left out, and how classes are divided, was said of the larger pictures
                config, source = fitted, ranks.one_first(lambda: load(fitted))
    config, notes = ranks.first(lambda: decided(config, source, given, ranks))
    _say(notes)
    learner = _learner(config, source)
    with held(folder, existing=resume, ranks=ranks):
        ranks.first(lambda: _prepare(folder, config, before, resume, overwrite))
        run = train(learner, source, config.train, out=folder, resume=resume, quiet=quiet, callbacks=callbacks)
    return run, config, learner, source


def _say(notes: Collection[str]) -> None:
    for note in notes:
        log.info("%s", note)


@contextmanager
def _unsaid() -> Iterator[None]:
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _prepare(folder: Path, config: RunConfig, before: RunConfig | None, resume: bool, overwrite: bool) -> None:
    """Checks that a run can go on in its folder, or frees the folder of what was there; writes its config."""
    if before is not None:
        _check_resumed(before, config)
    elif not (overwrite or resume):
        check_free(folder)
    for name in (CALIBRATION, START):  # of weights that will not be there any more
        (folder / name).unlink(missing_ok=True)
    if overwrite and not resume:
        for name in (LAST, BEST):
            checkpoint.remove(folder / name)
            checkpoint.remove(folder / PRETRAINED / name)
        for name in (METRICS, CONFIG, f"{PRETRAINED}/{METRICS}"):
            (folder / name).unlink(missing_ok=True)
        for name in (EVALUATION, BASELINES, REPORT):
            for file in (folder / name, *folder.glob(name.replace(".", "-*."))):  # those of other protocols too
                file.unlink(missing_ok=True)
        shutil.rmtree(folder / LOGS, ignore_errors=True)
    config.save(folder / CONFIG)


DECIDED = (*SIZES, "pools", "lr", "start", "steps", "sampling", "augment", "picture_size", "filters", "iterations", "validate_every")
"""Settings that a run may have decided itself; it goes on with what it decided."""
MAY_CHANGE = ("log", "minutes", "patience", "data_path", "iterations", "validate_every", "validation_episodes")


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
    checkpoint.load(path / (BEST if checkpoint.exists(path / BEST) else LAST), learner)
    return config, learner, source
