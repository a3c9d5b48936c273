"""The settings of a run, checked when they are made."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Self

from headstart.data.augment import BY_NAME
from headstart.errors import ConfigError
from headstart.inner.descent import GradientDescent


def _at_least(config: object, minimum: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and value >= minimum):
            raise ConfigError(f"{name}={value!r}: it must be a number, at least {minimum:g}")
        if value >= 2**63:
            raise ConfigError(f"{name}={value!r}: it must be below 2**63")


def _one_of(config: object, **allowed: tuple[str, ...]) -> None:
    for name, values in allowed.items():
        if getattr(config, name) not in values:
            raise ConfigError(f"{name}={getattr(config, name)!r}: use one of {', '.join(values)}")


@dataclass(frozen=True)
class TrainConfig:
    """The outer loop."""

    ways: int = 5
    """classes per task"""
    shots: int = 1
    """support examples per class; of tables and sine waves, per task"""
    queries: int = 5
    """query examples per class; of tables and sine waves, per task"""
    fewest_ways: int = 0
    """above 0: each task of training draws its number of classes, from so many to --ways"""
    fewest_shots: int = 0
    """above 0: each task of training draws its number of shots, from so many to --shots"""
    tasks: int = 16
    """tasks per meta-batch"""
    sampling: Literal["independent", "dense"] = "independent"
    """how a meta-batch is drawn: every task its own examples, or all tasks from one pool of examples"""
    pool_classes: int = 0
    """classes of a dense pool; 0 for 20, or as many as a task has"""
    pool_examples: int = 0
    """examples of each class in a dense pool; 0 for 20, or as many as a task needs"""
    iterations: int = 1000
    """outer steps"""
    outer_lr: float = 1e-3
    """step size of the outer Adam"""
    weight_decay: float = 0.0
    """decoupled weight decay of the outer Adam"""
    schedule: Literal["cosine", "constant"] = "cosine"
    """whether the outer step size falls to zero over the iterations"""
    augment: Literal["none", "flip", "crop", "colour", "affine"] = "none"
    """random changes to training images: flip mirrors, crop also shifts by up to 4 pixels, colour does all three; affine turns,
    scales, shears and shifts a little, for handwriting"""
    clip: float = 10.0
    """largest norm of a meta-gradient; longer ones are scaled down"""
    seed: int = 0
    """of the episodes and the model's first weights"""
    validate_every: int = 200
    """outer steps between validations; the best checkpoint is chosen by them"""
    validation_episodes: int = 400
    """episodes of one validation"""

    def __post_init__(self) -> None:
        _at_least(self, 1, "ways", "shots", "queries", "tasks", "iterations", "validate_every")
        _at_least(self, 2, "validation_episodes")
        _at_least(self, 0, "weight_decay", "seed", "pool_classes", "pool_examples", "fewest_ways", "fewest_shots")
        for fewest, most in (("fewest_ways", "ways"), ("fewest_shots", "shots")):
            if getattr(self, fewest) > getattr(self, most):
                raise ConfigError(f"{fewest}={getattr(self, fewest)}: it must be at most {most}={getattr(self, most)}")
        for name in ("outer_lr", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}={value!r}: it must be above 0 and finite")
        _one_of(self, sampling=("independent", "dense"), augment=tuple(BY_NAME), schedule=("cosine", "constant"))

    def rate(self, iteration: int) -> float:
        """The outer step size of an iteration, counted from 0."""
        if self.schedule == "constant":
            return self.outer_lr
        return self.outer_lr * 0.5 * (1 + math.cos(math.pi * iteration / self.iterations))


@dataclass(frozen=True)
class LearnerConfig:
    """The model and the inner loop."""

    model: Literal["auto", "conv4", "resnet12", "mlp"] = "auto"
    """the network; auto takes conv4 for pictures and an mlp for vectors"""
    filters: int = 64
    """channels of each block of conv4"""
    hidden: tuple[int, ...] = (40, 40)
    """widths of the mlp's layers before its head"""
    adapt: str = "head"
    """what adapts in the inner loop: head, body, all, last:N, or a pattern over parameter names"""
    steps: int = 5
    """inner steps N"""
    lr: float = 0.4
    """inner step size α"""
    l2: float = 0.0
    """inner regularisation λ of (λ/2)‖w‖²"""
    start: Literal["model", "shared", "prototypes"] = "model"
    """where the inner loop starts: the model's own weights, one shared vector for every class of the head, or the head that
    chooses the nearest class mean"""
    hypergradient: Literal["auto", "unrolled", "recursive", "first-order"] = "auto"
    """how the outer loop differentiates through the inner one"""

    def __post_init__(self) -> None:
        GradientDescent(self.steps, self.lr, self.l2)  # says what is wrong with them
        _at_least(self, 1, "filters")
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"hidden={self.hidden!r}: give one or more widths, each at least 1")
        _one_of(
            self,
            model=("auto", "conv4", "resnet12", "mlp"),
            start=("model", "shared", "prototypes"),
            hypergradient=("auto", "unrolled", "recursive", "first-order"),
        )


@dataclass(frozen=True)
class RunConfig:
    """Everything that defines a run: what `headstart train` takes, and what config.json in a run folder holds."""

    data: str = "glyphs"
    """the data source; `headstart data list` names them"""
    data_path: str = ""
    """where the source's files are, for those that need them"""
    data_options: str = ""
    """options of the source as NAME=VALUE,NAME=VALUE, such as task=assay,target=active for the columns of a table"""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def source_options(self) -> dict[str, str]:
        """The options of the source, taken apart.

        Raises:
            ConfigError: one is not NAME=VALUE.
        """
        pairs = [part.partition("=") for part in self.data_options.split(",") if part]
        for name, equals, _ in pairs:
            if not equals:
                raise ConfigError(f"data_options={self.data_options!r}: {name!r} is not NAME=VALUE; write task=assay,target=active")
        return {name.strip(): value for name, _, value in pairs}

    def save(self, path: str | Path) -> None:
        """Writes the config as JSON, one flat table."""
        Path(path).write_text(json.dumps(self.flat(), indent=1) + "\n")

    def flat(self) -> dict[str, Any]:
        """All settings in one table."""
        flat: dict[str, Any] = {}
        for key, value in asdict(self).items():
            flat.update(value if isinstance(value, dict) else {key: value})
        return flat

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a config; keys that are left out keep their defaults.

        Raises:
            ConfigError: the file is missing, no JSON, or has a key or value that is not known.
        """
        try:
            flat = json.loads(Path(path).read_text())
        except OSError as error:
            raise ConfigError(
                f"cannot read the config {str(path)!r}: {error.strerror}; give the config.json of a run, or your own"
            ) from error
        except ValueError as error:
            raise ConfigError(f"the config {str(path)!r} is not JSON: {error}") from error
        if not isinstance(flat, dict):
            raise ConfigError(f"the config {str(path)!r} holds a {type(flat).__name__}; it must be one table of settings")
        return cls.from_flat(flat, str(path))

    @classmethod
    def from_flat(cls, flat: dict[str, Any], origin: str = "the config") -> Self:
        """A config from one flat table of settings."""
        flat = dict(flat)
        parts: dict[str, Any] = {}
        for part in fields(cls):
            kind = {"learner": LearnerConfig, "train": TrainConfig}.get(part.name)
            if kind is None:
                if part.name in flat:
                    parts[part.name] = _typed(part.name, flat.pop(part.name), part.default, origin)
                continue
            own = {f.name: _typed(f.name, flat.pop(f.name), f.default, origin) for f in fields(kind) if f.name in flat}
            parts[part.name] = kind(**own)
        if flat:
            known = sorted({f.name for k in (LearnerConfig, TrainConfig) for f in fields(k)} | {"data", "data_path", "data_options"})
            raise ConfigError(f"{origin} has the unknown setting {min(flat)!r}; known are {', '.join(known)}")
        return cls(**parts)


def _typed(name: str, value: Any, default: Any, origin: str) -> Any:
    """The value in the type of the default; JSON writes 1 where a float is meant."""
    if isinstance(default, tuple) and isinstance(value, list) and all(type(v) is type(default[0]) for v in value):
        return tuple(value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default) and not is_dataclass(default):
        raise ConfigError(f"{origin}: {name}={value!r} is a {type(value).__name__}; it must be a {type(default).__name__}")
    return value
