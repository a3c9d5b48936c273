"""The published settings by data source, and how much of them a scale runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from headstart.errors import ConfigError
from headstart.training.config import LearnerConfig, RunConfig, TrainConfig

LAMBDA = 0.1
"""λ of the strongly convex figures. The paper adds an L2 term and does not say its weight; the λ figure varies it."""
SEEDS = (42, 52, 62, 72, 82)
ScaleName = Literal["smoke", "small", "paper"]


@dataclass(frozen=True)
class Scale:
    """How much of the published settings is run.

    Args:
        name: ``smoke``, ``small`` or ``paper``.
        changes: settings that depart from the published ones.
        steps: the values of N of the first two figures.
        few: those of the figures that need fewer.
        maml: those of the comparison with MAML, which costs most.
        seeds: of the three figures of the paper.
        fewer_seeds: of the others.
        objective_tasks: of the fixed set that stands for the true objective.
        looks: shares of the run after which the cells are looked at.
        test_episodes, last_episodes: at each look, and at the last.
        batches: values of B, beside the scale's own.
        rounds: interleaved timings of a step of every setting.
    """

    name: ScaleName
    changes: dict[str, Any]
    steps: tuple[int, ...]
    few: tuple[int, ...]
    maml: tuple[int, ...]
    seeds: tuple[int, ...]
    fewer_seeds: tuple[int, ...]
    objective_tasks: int
    looks: tuple[float, ...]
    test_episodes: int
    last_episodes: int
    batches: tuple[int, ...]
    rounds: int

    def at(self, iterations: int) -> tuple[int, ...]:
        """The outer steps after which a cell is looked at."""
        return tuple(sorted({round(share * iterations) for share in self.looks}))


_SMOKE = {"filters": 8, "tasks": 4, "iterations": 30}
_SMALL = {"filters": 32, "tasks": 8, "iterations": 200}
SCALES: dict[str, Scale] = {
    "smoke": Scale("smoke", _SMOKE, (1, 3, 5), (1, 5), (1, 3), SEEDS[:2], SEEDS[:1], 8, (0, 0.5, 1), 20, 60, (2,), 3),
    "small": Scale(
        "small",
        _SMALL,
        (1, 3, 5, 7, 10, 20),
        (1, 5, 10),
        (1, 5),
        SEEDS[:3],
        SEEDS[:2],
        48,
        (0, 0.1, 0.25, 0.5, 0.75, 1),
        100,
        600,
        (2, 32),
        5,
    ),
    "paper": Scale(
        "paper",
        {},
        (1, 3, 5, 7, 10, 20),
        (1, 5, 10),
        (1, 5, 10),
        SEEDS,
        SEEDS,
        512,
        (0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1),
        600,
        2000,
        (4, 8, 64),
        5,
    ),
}
PUBLISHED: dict[str, dict[str, Any]] = {
    # learn2learn's ANIL for FC100: inner 0.1 × 5, Adam 1e-3, 32 tasks, 5 queries, 64 filters, 1000 iterations.
    "fc100": {},
    "cifar-fs": {},
    # The bilevel experiments of the paper's first author: inner 0.05 × 10, Adam 2e-3.
    "mini-imagenet": {"lr": 0.05, "steps": 10, "outer_lr": 2e-3},
    # Nothing is published on these; they need no download.
    "glyphs": {"shots": 1},
}


def scale_of(name: str) -> Scale:
    """The scale of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SCALES:
        raise ConfigError(f"scale={name!r}: use one of {', '.join(SCALES)}")
    return SCALES[name]


def published(data: str, data_path: str = "") -> RunConfig:
    """The published settings of ANIL on a data source: 5-way 5-shot, 5 query images, 32 tasks a step, conv4 with 64 filters, Adam.

    Other sources than those of the papers get the settings of FC100.

    Example:
        >>> config = published("mini-imagenet")
        >>> config.learner.steps, config.learner.lr, config.train.outer_lr
        (10, 0.05, 0.002)
    """
    usual = {"start": "model", "ways": 5, "shots": 5, "queries": 5, "tasks": 32, "filters": 64, "adapt": "head", "steps": 5, "lr": 0.1}
    outer = {"optimizer": "adam", "outer_lr": 1e-3, "schedule": "constant", "iterations": 1000}
    return RunConfig.from_flat({"data": data, "data_path": data_path, **usual, **outer, **PUBLISHED.get(data.partition(":")[0], {})})


def base(data: str, data_path: str, scale: Scale) -> RunConfig:
    """The published settings as far as a scale follows them; validation only keeps checkpoints, and chooses nothing."""
    own = changed(published(data, data_path), **scale.changes)
    return changed(own, validate_every=max(1, own.train.iterations // 2), validation_episodes=20)


def changed(config: RunConfig, **settings: Any) -> RunConfig:
    """A config with some settings changed, wherever they belong.

    Example:
        >>> changed(RunConfig(), steps=3, tasks=4).learner.steps
        3
    """
    learner = {k: v for k, v in settings.items() if k in LearnerConfig.__dataclass_fields__}
    train = {k: v for k, v in settings.items() if k in TrainConfig.__dataclass_fields__}
    own = {k: v for k, v in settings.items() if k not in learner and k not in train}
    return replace(config, learner=replace(config.learner, **learner), train=replace(config.train, **train), **own)
