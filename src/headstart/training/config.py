"""The settings of a run, checked when they are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from headstart.container import read_json, write_json
from headstart.data.augment import BY_NAME
from headstart.errors import ConfigError, refuses
from headstart.measuring.rate import EPISODES
from headstart.program.precision import Precision
from headstart.registry import parse_options
from headstart.training import choices
from headstart.training.annealing import AnnealingConfig
from headstart.training.checks import at_least, one_of
from headstart.training.outer import OuterConfig
from headstart.training.step_sizes import lr_text, parse_lr

AUTO = "auto"


@dataclass(frozen=True)
class EpisodeConfig:
    """The tasks of training, and how they are drawn."""

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
    pools: int = 1
    """parts of a meta-batch, each of which goes through the network by itself, dense ones with a pool of examples of their own; several
    processes take whole parts, and so give the same weights however many they are"""
    pool_classes: int = 0
    """classes of a dense pool; 0 for 20, or as many as a task has"""
    pool_examples: int = 0
    """examples of each class in a dense pool; 0 for 20, or as many as a task needs"""
    augment: Literal["none", "flip", "crop", "colour", "affine"] = "none"
    """random changes to training images: flip mirrors, crop also shifts by up to 4 pixels, colour does all three; affine turns,
    scales, shears and shifts a little, for handwriting"""
    seed: int = 0
    """of the episodes and the model's first weights"""

    @refuses
    def __post_init__(self) -> None:
        at_least(self, 1, "ways", "shots", "queries", "tasks", "pools")
        if self.pools > self.tasks:
            raise ConfigError(f"pools={self.pools}: it must be at most tasks={self.tasks}, as each has one task or more")
        at_least(self, 0, "seed", "pool_classes", "pool_examples", "fewest_ways", "fewest_shots")
        for fewest, most in (("fewest_ways", "ways"), ("fewest_shots", "shots")):
            if getattr(self, fewest) > getattr(self, most):
                raise ConfigError(f"{fewest}={getattr(self, fewest)}: it must be at most {most}={getattr(self, most)}")
        one_of(self, sampling=("independent", "dense"), augment=tuple(BY_NAME))

    def probe(self) -> dict[str, int]:
        """Sizes and seed of a few tasks to measure on."""
        sizes = {name: getattr(self, name) for name in ("ways", "shots", "queries", "seed")}
        return {**sizes, "episodes": min(EPISODES, self.tasks)}


EARLIEST = 10
"""Steps before which a validation tells little."""


@dataclass(frozen=True)
class ValidationConfig:
    """When and how the learner is validated."""

    validate_every: int = 200
    """outer steps between validations; the best checkpoint is chosen by them. The first are earlier, at an eighth, a quarter and half of
    it, as with few classes the best comes early"""
    validation_episodes: int = 400
    """episodes of one validation"""
    patience: int = 0
    """above 0: training ends after so many validations without a better one"""

    @refuses
    def __post_init__(self) -> None:
        at_least(self, 1, "validate_every")
        at_least(self, 0, "patience")
        at_least(self, 2, "validation_episodes")

    def validates_at(self, step: int) -> bool:
        """Whether a step is followed by a validation.

        Example:
            >>> [step for step in range(1, 500) if ValidationConfig(validate_every=200).validates_at(step)]
            [25, 50, 100, 200, 400]
        """
        early = [self.validate_every // part for part in (8, 4, 2)]
        return step % self.validate_every == 0 or (step >= EARLIEST and step in early)


@dataclass(frozen=True)
class PretrainConfig:
    """What comes before meta-training."""

    pretrain: int = 0
    """outer steps in which the network first learns to tell all training classes apart (Meta-Baseline); its body is where meta-training
    starts from; 0 for none"""

    @refuses
    def __post_init__(self) -> None:
        at_least(self, 0, "pretrain")


@dataclass(frozen=True)
class TrainConfig(ValidationConfig, AnnealingConfig, PretrainConfig, OuterConfig, EpisodeConfig):
    """Training: the episodes, what comes first, the outer loop and its schedules, and the validation, as one flat table of settings.

    Example:
        >>> TrainConfig(shots=5, outer_lr_phi=1e-4).rate_of("phi")
        0.0001
        >>> TrainConfig(ways=3, tasks=4).probe()
        {'ways': 3, 'shots': 1, 'queries': 5, 'seed': 0, 'episodes': 4}
    """

    @refuses
    def __post_init__(self) -> None:
        EpisodeConfig.__post_init__(self)
        OuterConfig.__post_init__(self)
        PretrainConfig.__post_init__(self)
        AnnealingConfig.__post_init__(self)
        ValidationConfig.__post_init__(self)


@dataclass(frozen=True)
class LearnerConfig:
    """The model and the inner loop."""

    model: str = "auto"
    """the network: a name, or your own as module:name, a class or function that may take shape (of an example) and outputs; or a
    pretrained one as transformers:FOLDER_OR_NAME; auto takes conv4 for pictures, a projection for vectors in classes, and
    an mlp for tables, or where --hidden is given"""
    model_options: str = ""
    """options of the network as NAME=VALUE,NAME=VALUE, such as dropout=0.1"""
    filters: int = 64
    """channels of each block of conv4"""
    hidden: tuple[int, ...] = (40, 40)
    """widths of the mlp's layers before its head"""
    adapt: str = "head"
    """what adapts in the inner loop: head, body, all, last:N, or a pattern over parameter names"""
    solver: str = "descent"
    """the inner solver: a name, or your own as module:name"""
    solver_options: str = ""
    """options of the inner solver as NAME=VALUE,NAME=VALUE, such as momentum=0.9"""
    steps: int = 5
    """inner steps N"""
    lr: float | str = AUTO
    """inner step size α: auto measures it on the model and the tasks before training; or 0.4; for one step after the other 0.4,0.2,0.1; by
    parameter 'head.*=0.1,*=0.01'"""
    l2: float = 0.0
    """inner regularisation λ of (λ/2)‖w‖²; 0 for the solver's own, which is none but for ridge"""
    start: str = AUTO
    """where the inner loop starts: auto tries shared and prototypes where the head tells classes apart, and takes the model's own weights
    elsewhere; model, the model's own weights, one shared vector for every class of the head, prototypes (the head that
    chooses the nearest class mean), or your own as module:name"""
    start_options: str = ""
    """options of the start as NAME=VALUE,NAME=VALUE"""
    hypergradient: str = "auto"
    """how the outer loop differentiates through the inner one: auto, a name, or your own as module:name"""
    hypergradient_options: str = ""
    """options of the hypergradient as NAME=VALUE,NAME=VALUE, such as iterations=20"""
    loss: str = "auto"
    """the loss of both loops: a name, or your own as module:name, a function (outputs, targets) to a loss per example; auto takes
    cross-entropy for classes and the squared error for real targets"""
    loss_options: str = ""
    """options of the loss as NAME=VALUE,NAME=VALUE"""
    precision: Precision = "fp32"
    """what the network computes in: bf16 is about twice as fast where the processor has it; heads, inner updates and losses stay in single
    precision. tf32 is for CUDA devices"""

    @refuses
    def __post_init__(self) -> None:
        at_least(self, 1, "filters")
        one_of(self, precision=get_args(Precision))
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"hidden={self.hidden!r}: give one or more widths, each at least 1")
        # Each says itself what is wrong with it.
        self.inner_solver()
        if self.start != AUTO:
            choices.start(self.start, self.start_options)
        choices.hypergradient(self.hypergradient, self.hypergradient_options)
        choices.loss(self.loss, self.loss_options)
        choices.model_name(self.model)
        parse_options(self.model_options, "model_options")

    def inner_solver(self) -> Any:
        """The inner solver that is meant; with any step size where it is still to be measured."""
        lr = 0.1 if self.lr == AUTO else parse_lr(self.lr)
        return choices.solver(self.solver, self.solver_options, self.steps, lr, self.l2)

    @property
    def measures_lr(self) -> bool:
        """Whether the step size is still to be measured; a closed form has none, and without steps there is none."""
        return self.lr == AUTO and self.steps > 0 and hasattr(self.inner_solver(), "lr")


@dataclass(frozen=True)
class RunConfig:
    """Everything that defines a run: what `headstart train` takes, and what config.json in a run folder holds."""

    data: str = "glyphs"
    """the data source; `headstart data list` names them"""
    data_path: str = ""
    """where the source's files are, for those that need them"""
    data_options: str = ""
    """options of the source as NAME=VALUE,NAME=VALUE, such as task=assay,target=active for the columns of a table"""
    picture_size: int = 0
    """side of the pictures of a folder, in pixels; 0 takes what a pretrained network takes, else 84, or less where --minutes is too
    short"""
    embed: str = ""
    """what makes vectors of texts: words, which counts words and parts of words; transformers:FOLDER_OR_NAME; or your own as module:name, a
    function from a list of texts to vectors"""
    freeze: Literal["", "body"] = ""
    """body: everything before the head stays as it is, and runs once on each example; what is trained is a projection and a head on its
    features"""
    train_classes: int = 0
    """train on so many of the training classes only, chosen by the seed; 0 for all"""
    folds: int = 0
    """above 0: the classes of all splits are divided into so many folds; one is for test, the next for validation"""
    fold: int = 0
    """which fold is for test, from 1; 0 trains and tests on each in turn"""
    minutes: float = 10.0
    """time that training may take; what was not given is lowered to it; 0, or --iterations, for no limit"""
    log: str = ""
    """where metrics go beside metrics.jsonl, separated by commas: tensorboard, wandb, mlflow, trackio, or your own as module:name"""
    callbacks: str = ""
    """who takes part in training, separated by commas: your own subclasses of headstart.Callback as module:name"""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @refuses
    def __post_init__(self) -> None:
        at_least(self, 0, "train_classes", "minutes", "folds", "fold", "picture_size")
        one_of(self, freeze=("", "body"))
        if self.freeze and self.train.augment != "none":
            raise ConfigError(
                f"augment={self.train.augment!r} with freeze={self.freeze!r}: features are computed once; leave one of them out"
            )

    def source_options(self) -> dict[str, Any]:
        """The options of the source, taken apart.

        Raises:
            ConfigError: one is not NAME=VALUE.
        """
        return {**parse_options(self.data_options, "data_options"), **({"embed": self.embed} if self.embed else {})}

    def save(self, path: str | Path) -> None:
        """Writes the config as JSON, one flat table."""
        write_json(path, self.flat())

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
            flat = read_json(Path(path))
        except OSError as error:
            raise ConfigError(
                f"cannot read the config {str(path)!r}: {error.strerror}; give the config.json of a run, or your own"
            ) from error
        except ValueError as error:
            raise ConfigError(f"the config {str(path)!r} is not JSON: {error}; correct it, or bring it back from a copy") from error
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
            known = sorted(
                {f.name for k in (LearnerConfig, TrainConfig) for f in fields(k)} | {f.name for f in fields(cls)} - {"learner", "train"}
            )
            raise ConfigError(f"{origin} has the unknown setting {min(flat)!r}; known are {', '.join(known)}")
        return cls(**parts)


def _typed(name: str, value: Any, default: Any, origin: str) -> Any:
    """The value in the type of the default; JSON writes 1 where a float is meant."""
    if name == "lr":
        return lr_text(value)
    if isinstance(default, tuple) and isinstance(value, list) and all(type(v) is type(default[0]) for v in value):
        return tuple(value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default) and not is_dataclass(default):
        raise ConfigError(f"{origin}: {name}={value!r} is a {type(value).__name__}; it must be a {type(default).__name__}")
    return value
