"""Metrics to the trackers that people have, each by its own library, which an extra installs."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headstart.container import make_folder, read_json, write_json
from headstart.errors import ConfigError
from headstart.registry import Registry
from headstart.training.callback import Callback, Training
from headstart.training.run_folder import CONFIG, LOGS

CALLBACKS: Registry[Callback] = Registry("callback")
IDS = "ids.json"
PROJECT = "headstart"


class Logger(Callback):
    """Passes on every line of a run's metrics; a subclass says how.

    Losses and the like are named ``train/…``, validations ``validation/…``, and what callbacks observe ``observed/…``. A run that is
    resumed goes on in the same run of its tracker.
    """

    def open(self, training: Training, settings: dict[str, Any]) -> None:
        """Begins, or goes on with, the run in the tracker; settings are those of config.json, or of training alone."""
        raise NotImplementedError  # pragma: no cover

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Passes numbers of a step on."""
        raise NotImplementedError  # pragma: no cover

    def close(self, training: Training) -> None:
        """Ends the run in the tracker; ``training.run.interrupted`` where it broke off."""

    def begin(self, training: Training) -> None:
        """Opens the tracker."""
        self.open(training, settings_of(training))

    def metrics(self, training: Training, line: Mapping[str, Any]) -> None:
        """Passes the numbers of a line on."""
        self.scalars(int(line["step"]), dict(numbers(line, training.run.metric)))

    def end(self, training: Training) -> None:
        """Closes the tracker."""
        self.close(training)


def settings_of(training: Training) -> dict[str, Any]:
    """All settings of a run that was begun on the command line, or the outer loop's."""
    file = Path(training.run.out) / CONFIG if training.run.out is not None else None
    if file is not None and file.exists():
        return dict(read_json(file))
    return asdict(training.config)


def numbers(line: Mapping[str, Any], metric: str) -> Iterator[tuple[str, float]]:
    """The numbers of a line of metrics.jsonl, by the names that they have in a tracker.

    Example:
        >>> dict(numbers({"step": 3, "loss": 0.5, "accuracy": None, "seconds": 1.5}, "accuracy"))
        {'train/loss': 0.5, 'train/seconds': 1.5}
        >>> dict(numbers({"step": 3, "validation": 0.9, "ci95": 0.01}, "accuracy"))
        {'validation/accuracy': 0.9, 'validation/ci95': 0.01}
        >>> dict(numbers({"step": 3, "observed": {"norms": {"w": 2}, "curve": [0.5, 0.25]}}, "accuracy"))
        {'observed/norms/w': 2.0, 'observed/curve/0': 0.5, 'observed/curve/1': 0.25}
    """
    if "observed" in line:
        yield from _leaves("observed", line["observed"])
        return
    room = "validation" if "validation" in line else "train"
    for key, value in line.items():
        if key != "step" and value is not None:
            yield f"{room}/{metric.replace(' ', '_') if key == 'validation' else key}", float(value)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{name}/{key}", inner)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _leaves(f"{name}/{i}", inner)
    elif isinstance(value, int | float):
        yield name, float(value)


def _library(module: str, extra: str) -> Any:
    """The library behind a logger.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"the logger {extra!r} needs a library that is missing ({error}): pip install 'headstart[{extra}]'") from error


def kept_id(training: Training, tracker: str) -> str | None:
    """What a tracker called this run before; it is kept in the run's folder."""
    file = _ids(training)
    return read_json(file).get(tracker) if file is not None and file.exists() else None


def keep_id(training: Training, tracker: str, name: str) -> None:
    """Keeps what a tracker calls this run, where there is a folder."""
    file = _ids(training)
    if file is not None:
        make_folder(file.parent)
        known = read_json(file) if file.exists() else {}
        write_json(file, {**known, tracker: name})


def _ids(training: Training) -> Path | None:
    return Path(training.run.out) / LOGS / IDS if training.run.out is not None else None


def _title(training: Training) -> str | None:
    return Path(training.run.out).name if training.run.out is not None else None


@CALLBACKS.register("tensorboard")
class TensorBoard(Logger):
    """TensorBoard's event files, in ``logs/tensorboard`` of the run folder: ``tensorboard --logdir runs`` finds them."""

    def __init__(self) -> None:
        _library("tensorboard", "tensorboard")
        self.library = _library("torch.utils.tensorboard", "tensorboard")

    def open(self, training: Training, settings: dict[str, Any]) -> None:
        """Opens a file of events; what an earlier process wrote after its last checkpoint is hidden."""
        folder = str(Path(training.run.out) / LOGS / "tensorboard") if training.run.out is not None else None
        self.writer = self.library.SummaryWriter(folder, purge_step=training.step + 1 if training.step else 0)
        self.writer.add_text("settings", f"```\n{json.dumps(settings, indent=1)}\n```", training.step)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes a scalar for each number."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self, training: Training) -> None:
        """Flushes the file."""
        self.writer.close()


@CALLBACKS.register("wandb")
class Wandb(Logger):
    """Weights & Biases, with its files in ``logs`` of the run folder; ``WANDB_MODE=offline``, ``WANDB_PROJECT`` and the like count."""

    def __init__(self) -> None:
        self.library = _library("wandb", "wandb")

    def open(self, training: Training, settings: dict[str, Any]) -> None:
        """Begins a run of the folder's name, or goes on with the one that was begun."""
        out = training.run.out
        if out is not None:
            make_folder(Path(out) / LOGS)
        self.run = self.library.init(
            project=self.library.Settings().project or PROJECT,
            name=_title(training),
            id=kept_id(training, "wandb"),
            resume="allow",
            dir=str(Path(out) / LOGS) if out is not None else None,
            config=settings,
        )
        keep_id(training, "wandb", self.run.id)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs the numbers under their step."""
        self.run.log(values, step=step)

    def close(self, training: Training) -> None:
        """Finishes; as failed where training broke off."""
        self.run.finish(exit_code=1 if training.run.interrupted else 0)


@CALLBACKS.register("mlflow")
class MLflow(Logger):
    """MLflow, where ``MLFLOW_TRACKING_URI`` and ``MLFLOW_EXPERIMENT_NAME`` say, or its own default."""

    def __init__(self) -> None:
        self.client = _library("mlflow.tracking", "mlflow").MlflowClient()

    def open(self, training: Training, settings: dict[str, Any]) -> None:
        """Makes a run of the folder's name with the settings as its parameters, or goes on with the one that was begun."""
        self.id = kept_id(training, "mlflow")
        if self.id is not None:
            self.client.update_run(self.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found is not None else self.client.create_experiment(name)
        self.id = self.client.create_run(experiment, run_name=_title(training)).info.run_id
        for key, value in settings.items():
            self.client.log_param(self.id, key, value)
        keep_id(training, "mlflow", self.id)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs the numbers under their step."""
        for name, value in values.items():
            self.client.log_metric(self.id, name, value, step=step)

    def close(self, training: Training) -> None:
        """Says whether the run was finished, or can go on."""
        self.client.set_terminated(self.id, "KILLED" if training.run.interrupted else "FINISHED")


@CALLBACKS.register("trackio")
class Trackio(Logger):
    """Trackio, which keeps everything on this machine (``TRACKIO_DIR``); ``trackio show`` opens its page."""

    def __init__(self) -> None:
        self.library = _library("trackio", "trackio")

    def open(self, training: Training, settings: dict[str, Any]) -> None:
        """Begins a run, or goes on with the one that was begun."""
        known = kept_id(training, "trackio")
        self.run = self.library.init(project=PROJECT, name=known, config=settings, resume="allow" if known else "never")
        keep_id(training, "trackio", self.run.name)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs the numbers under their step."""
        self.library.log(values, step=step)

    def close(self, training: Training) -> None:
        """Waits until everything is written."""
        self.library.finish()


def callbacks_of(names: str) -> list[Callback]:
    """The callbacks that a setting names, separated by commas; one's own as ``module:name``.

    Raises:
        ConfigError: one is not known, or its library is not installed.

    Example:
        >>> callbacks_of("headstart.training.stopping:Stopping")[0].name
        'Stopping'
    """
    found = []
    for name in filter(None, map(str.strip, names.split(","))):
        made = CALLBACKS.build(name)
        if not isinstance(made, Callback):
            raise ConfigError(f"callback {name!r} gave a {type(made).__name__}; it must give a headstart.Callback")
        found.append(made)
    return found
