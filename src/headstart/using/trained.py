"""A trained start with all that is needed to use it: preprocessing, calibration, and what it was trained for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstart import container
from headstart.data.drawing import signature
from headstart.errors import CheckpointError
from headstart.evaluation.calibration import Calibration, calibrate
from headstart.keeping import learner_header, tensors_of
from headstart.learner import MetaLearner
from headstart.loading import learner_of
from headstart.training import run as runs
from headstart.training.config import RunConfig
from headstart.training.run_folder import CONFIG
from headstart.using.preprocessing import Preprocessing

START = "trained start"
INSTALLED = ("characters",)
"""Starts that come with the package."""


@dataclass(frozen=True, eq=False)
class TrainedStart:
    """What a run has learned, ready for new tasks.

    Args:
        learner: the trained learner.
        preprocessing: how examples are read.
        calibration: of its probabilities; None for real targets.
        classes: the labels that outputs stand for where they are the same in all tasks, as in tables; () where each task has its own.
        about: data, ways, shots and the like, for people.
        regression: whether targets are real numbers.

    Example:
        >>> start = TrainedStart.load("characters")
        >>> start.preprocessing.shape, start.calibration is not None
        ((1, 28, 28), True)
        >>> import tempfile
        >>> start.save(path := tempfile.mkdtemp() + "/start.safetensors")
        >>> again = TrainedStart.load(path)
        >>> again.header() == start.header(), again.example().shape
        (True, torch.Size([4, 1, 28, 28]))
        >>> TrainedStart.read("a copy", again.header(), tensors_of(again.learner)).about["data"]
        'glyphs'
    """

    learner: MetaLearner
    preprocessing: Preprocessing
    calibration: Calibration | None = None
    classes: tuple[Any, ...] = ()
    about: dict[str, Any] | None = None
    regression: bool = False

    @classmethod
    def of_run(cls, folder: str | Path) -> TrainedStart:
        """That of a run folder; made once, calibrated on the validation classes, and kept there, so that the data is not needed again.

        Raises:
            CheckpointError: it is no run folder.
            ConfigError: what the run has learned cannot be used on examples of one's own.

        Example:
            >>> import tempfile
            >>> import numpy as np
            >>> folder = Path(tempfile.mkdtemp())
            >>> np.savez(folder / "data.npz", x=np.random.default_rng(0).normal(size=(60, 3)), y=np.arange(12).repeat(5))
            >>> own = {"data": f"npz:{folder}/data.npz", "lr": 0.1, "iterations": 1, "ways": 2, "queries": 2, "validation_episodes": 2}
            >>> run, *_ = runs.start(RunConfig.from_flat(own), out=folder / "run", quiet=True)
            >>> config, learner, source = runs.open_run(out := folder / "run")
            >>> TrainedStart.of_run(out).regression, TrainedStart.of(config, learner, source).about["ways"]
            (False, 2)
            >>> TrainedStart.kept(out, config, learner, source).preprocessing.kind
            'vectors'
        """
        path = Path(folder)
        if not (path / runs.START).is_file():
            config, learner, source = runs.open_run(path)
            return cls.kept(path, config, learner, source)
        own = RunConfig.load(path / CONFIG)
        named = (own.learner.model, own.learner.solver, own.learner.start, own.learner.hypergradient, own.embed)
        return cls.read(str(path / runs.START), *container.read(path / runs.START, START), trust=named)

    @classmethod
    def kept(cls, folder: Path, config: RunConfig, learner: MetaLearner, source: Any) -> TrainedStart:
        """That of a run at hand, which is written into its folder."""
        found = cls.of(config, learner, source, folder / runs.CALIBRATION)
        found.save(folder / runs.START)
        return found

    @classmethod
    def of(cls, config: RunConfig, learner: MetaLearner, source: Any, kept: Path | None = None) -> TrainedStart:
        """That of a learner and the config and data it was trained by.

        Args:
            config, learner, source: of the run.
            kept: the file of its calibration, which is written if it is not there.
        """
        real = signature(source.train, config.train.ways).regression
        calibration = None if real or learner.loss.kind == "binary" else calibration_of(config, learner, source, kept)
        learner, source = runs.on_examples(config, learner, source)
        own = Preprocessing.of(config, source)
        classes = tuple(getattr(source, "classes", ()) or ())
        train = config.train
        about = {
            "data": config.data,
            "ways": train.ways,
            "shots": train.shots,
            "adapt": config.learner.adapt,
            "steps": config.learner.steps,
        }
        return cls(learner, own, calibration, classes, about, real)

    def example(self) -> Tensor:
        """(4, …) examples of noise, such as the network takes, for what has to see its shape."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return torch.randn(4, *self.preprocessing.shape)

    def header(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "learner": learner_header(self.learner),
            "preprocessing": self.preprocessing.saved(),
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "classes": [v.item() if hasattr(v, "item") else v for v in self.classes],
            "about": self.about,
            "regression": self.regression,
        }

    def save(self, path: str | Path) -> None:
        """Writes it into one file of tensors and JSON.

        Raises:
            CheckpointError: the file cannot be written.
        """
        container.write(path, START, self.header(), tensors_of(self.learner))

    @classmethod
    def load(cls, path: str | Path, trust: Collection[str] = ()) -> TrainedStart:
        """Reads what :meth:`save` wrote, a run folder, or a start that comes with the package (``"characters"``).

        Raises:
            CheckpointError: it is none of these, or names something that is not trusted.
        """
        if str(path) in INSTALLED and not Path(path).exists():
            with as_file(files("headstart") / "starts" / f"{path}.safetensors") as file:
                return cls.read(str(path), *container.read(file, START), trust)
        if Path(path).is_dir():
            return cls.of_run(path)
        if not Path(path).exists():
            raise CheckpointError(
                f"there is no {str(path)!r}: give a run folder, the file of a start, or {' or '.join(map(repr, INSTALLED))}"
            )
        return cls.read(str(path), *container.read(path, START), trust)

    @classmethod
    def read(cls, shown: str, header: dict[str, Any], tensors: dict[str, Tensor], trust: Collection[str] = ()) -> TrainedStart:
        """That of a header and tensors of a file."""
        with container.understood(shown):
            learner = learner_of(shown, header["learner"], tensors, trust=trust)
            own = Preprocessing.load(header["preprocessing"], trust)
            calibration = None if header["calibration"] is None else Calibration(**header["calibration"])
            return cls(learner, own, calibration, tuple(header["classes"]), header["about"], header["regression"])


def calibration_of(config: RunConfig, learner: MetaLearner, source: Any, kept: Path | None = None) -> Calibration:
    """The calibration of a run by its validation classes: read where it is kept, else made, and then kept.

    Args:
        config, learner, source: of the run.
        kept: its file.

    Raises:
        CheckpointError: the file is damaged.
        ConfigError: targets are real numbers, or yes-or-no questions.
    """
    if kept is not None and kept.is_file():
        try:
            return Calibration(**container.read_json(kept))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{str(kept)!r} is damaged ({error}); delete it, and it is made again") from error
    train = config.train
    found = calibrate(learner, source.validation, ways=train.ways, shots=train.shots, queries=train.queries, seed=train.seed)
    if kept is not None:
        container.write_json(kept, asdict(found))
    return found
