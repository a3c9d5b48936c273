"""What a run measures and decides itself before it starts: sizes that fit the data, and the inner step size."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from headstart.data.drawing import Data, fitted, sampler_of, signature
from headstart.errors import ConfigError, MethodError
from headstart.evaluation import estimate_batch_norm
from headstart.inner.descent import GradientDescent
from headstart.inner.solver import Solver
from headstart.inner.start import ModelStart
from headstart.learner import MetaLearner
from headstart.measuring.step_size import around, curvature, losses_by_rate
from headstart.tasks import TaskBatch
from headstart.training.config import EpisodeConfig, RunConfig

SIZES = ("ways", "shots", "queries", "tasks")
OF_TASKS = {"shots": 10, "queries": 10}
"""The usual sizes where tasks come as they are, as those of tables: one support example says little of a whole task."""
SCALE_FREE = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Step sizes that are tried for solvers, such as Adam, whose steps do not grow with the gradient."""
PROBE = 8
"""Tasks that the step size is judged on; its first four give the curvature."""


@dataclass(frozen=True)
class MeasuredRate:
    """An inner step size, and what it was chosen by.

    Args:
        lr: α, to two digits.
        curvature: L̂, the largest eigenvalue of the inner Hessian where the tasks start; None where sizes were tried without it.
        before, after: the mean query loss before adaptation, and after N steps of α.
        steps: N.
    """

    lr: float
    curvature: float | None
    before: float
    after: float
    steps: int

    def __str__(self) -> str:
        found = f"lr={self.lr:g}, of {SCALE_FREE[0]:g} to {SCALE_FREE[-1]:g}"
        if self.curvature is not None:
            times = f"{self.lr * self.curvature:.2g}/L"
            found = f"lr={self.lr:g}, {times} with L = {self.curvature:.3g} the largest curvature of the inner loss"
        if self.after < self.before:
            return f"{found}: {self.steps} steps take the query loss from {self.before:.3g} to {self.after:.3g} before training"
        return f"{found}: a cautious one, as none lowers the query loss before training"


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


def measured_rate(learner: MetaLearner, solver: Callable[[float], Solver], data: Data, episodes: EpisodeConfig) -> MeasuredRate:
    """The inner step size for a learner's model and tasks, before training.

    Of a few sizes around 1/L̂ it is the one with the lowest query loss after N steps; where none lowers that loss, as in regression
    from random weights, 1/(2L̂). A step size at which some task diverges is not among them.

    Args:
        learner: with any step size.
        solver: gives the inner solver with a step size.
        data: the tasks.
        episodes: their sizes.

    Raises:
        ConfigError: adaptation diverges at every size.
    """
    tasks, parts = _probe(data, episodes, learner), _parts(learner, data)
    with_inner = lambda inner: MetaLearner(learner.partition, inner, **parts)  # noqa: E731
    steps = max(1, learner.inner.steps)
    estimate_batch_norm(learner, data.train)
    L = None if learner.inner.scale_free else _curvature_if_any(learner, data, episodes)
    rates = SCALE_FREE if L is None else around(L)
    tried = losses_by_rate(lambda lr: with_inner(solver(lr)), tasks, (0, steps), rates)
    finite = {lr: loss for lr, loss in tried[steps].items() if math.isfinite(loss)}
    if not finite:
        raise ConfigError(
            f"lr='auto': adaptation diverges at every step size from {min(rates):g} to {max(rates):g}; give a smaller one with --lr"
        )
    lr = min(finite, key=finite.__getitem__)
    cautious = rates[1] if L is not None else rates[2]
    if finite[lr] >= tried[0][lr] and cautious in finite:
        lr = cautious
    return MeasuredRate(lr, L, tried[0][lr], finite[lr], steps)


def _curvature_if_any(learner: MetaLearner, data: Data, episodes: EpisodeConfig) -> float | None:
    """L̂; None for a model without second derivatives, or where the loss is flat in what adapts, as in a body under a head of zeros."""
    try:
        return largest_curvature(learner, data, episodes)
    except (ConfigError, MethodError):
        return None


def largest_curvature(learner: MetaLearner, data: Data, episodes: EpisodeConfig) -> float:
    """L̂ with the regularisation, where the tasks start; running statistics are re-estimated first.

    A start that is made of the support set can be so sure of its answers that it is nearly flat there, and only there, so the larger of
    its curvature and that at the model's own weights counts.
    """
    estimate_batch_norm(learner, data.train)
    tasks = _probe(data, episodes, learner)[:4].own_pool()
    found = []
    for start in (learner.start, ModelStart()):
        parts = {**_parts(learner, data), "start": start}
        found.append(curvature(MetaLearner(learner.partition, GradientDescent(0, 1.0), **parts), tasks))
    return max(found) + float(getattr(learner.inner, "l2", 0.0))


def _parts(learner: MetaLearner, data: Data) -> dict[str, Any]:
    scale = learner.target_scale or getattr(data.train, "target_scale", None)
    return {"loss": learner.loss, "start": learner.start, "output": learner.output, "target_scale": scale}


def _probe(data: Data, episodes: EpisodeConfig, learner: MetaLearner) -> TaskBatch:
    own, device = episodes, next(learner.model.parameters()).device
    sampler = sampler_of(data.train, ways=own.ways, shots=own.shots, queries=own.queries, tasks=min(PROBE, own.tasks), seed=own.seed)
    return sampler.batch(0, device)[:PROBE].own_pool()
