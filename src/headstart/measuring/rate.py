"""The inner step size, measured on a model and its tasks before training: ``lr="auto"``."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from headstart.data.drawing import Range, sampler_of
from headstart.errors import ConfigError, MethodError
from headstart.evaluation import estimate_batch_norm
from headstart.inner.descent import GradientDescent
from headstart.inner.start import ModelStart
from headstart.learner import MetaLearner
from headstart.measuring.step_size import around, curvature, losses_by_rate
from headstart.tasks import TaskBatch

SCALE_FREE = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Step sizes that are tried for solvers, such as Adam, whose steps do not grow with the gradient."""
EPISODES = 8
"""Tasks that the step size is judged on."""


@dataclass(frozen=True)
class MeasuredRate:
    """An inner step size, and what it was chosen by.

    Args:
        lr: α, to two digits.
        curvature: L̂, the largest eigenvalue of the inner Hessian where the tasks start; None where sizes were tried without it.
        before, after: the mean query loss before adaptation, and after N steps of α.
        steps: N.

    Example:
        >>> import torch
        >>> import headstart as hs
        >>> _ = torch.manual_seed(0)
        >>> learner = hs.anil(hs.models.mlp(features=1, ways=1), steps=3, loss="squared_error")
        >>> found = hs.measure_lr(learner, hs.data.load("sinusoid").train, shots=5)
        >>> found.steps, found.lr > 0, found.curvature > 0
        (3, True, True)
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


def measure_lr(
    learner: MetaLearner, tasks: Any, *, ways: Range = 5, shots: Range = 1, queries: int = 5, seed: int = 0, episodes: int = EPISODES
) -> MeasuredRate:
    """The inner step size for a learner's model and tasks; running statistics of batch normalisation are estimated first.

    Of a few sizes around 1/L̂ it is the one with the lowest query loss after N steps; where none lowers that loss, as in regression
    from random weights, 1/(2L̂). A step size at which some task diverges is not among them. The learner keeps the step size it has;
    :meth:`MetaLearner.use_lr` gives it another.

    Args:
        learner: with any step size.
        tasks: where tasks come from: the training split, or a sampler.
        ways, shots, queries, seed: as in :func:`evaluate`.
        episodes: how many tasks it is judged on; the first four of them give the curvature.

    Raises:
        ConfigError: adaptation diverges at every size, or the solver has no step size.

    Example:
        >>> import headstart as hs
        >>> learner = hs.anil(hs.models.mlp(features=1, ways=1, hidden=[8]), loss="squared_error")
        >>> found = measure_lr(learner, hs.data.load("sinusoid").train, shots=10)
        >>> learner.use_lr(found.lr)
        >>> found.after < found.before
        True
    """
    if not hasattr(learner.inner, "lr"):
        raise ConfigError(f"{learner.inner!r} has no step size to measure")
    scaled = learner.target_scale or getattr(tasks, "target_scale", None)
    sizes = {"ways": ways, "shots": shots, "queries": queries, "seed": seed, "tasks": episodes}
    probe, steps = _probe(tasks, learner, **sizes), max(1, learner.inner.steps)
    estimate_batch_norm(learner, tasks)
    parts = _parts(learner, scaled)
    with_rate = lambda lr: MetaLearner(learner.partition, replace(learner.inner, lr=lr), **parts)  # type: ignore[call-arg]  # noqa: E731
    L = None if learner.inner.scale_free else _curvature_if_any(learner, probe, scaled)
    rates = SCALE_FREE if L is None else around(L, with_rate(1.0), probe)
    tried = losses_by_rate(with_rate, probe, (0, steps), rates)
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


def largest_curvature(
    learner: MetaLearner, tasks: Any, *, ways: Range = 5, shots: Range = 1, queries: int = 5, seed: int = 0, episodes: int = EPISODES
) -> float:
    """L̂ with the regularisation, where the tasks start; arguments as for :func:`measure_lr`.

    A start that is made of the support set can be so sure of its answers that it is nearly flat there, and only there, so the larger of
    its curvature and that at the model's own weights counts.

    Raises:
        ConfigError, MethodError: the loss has no second derivative, or is flat in what adapts.
    """
    estimate_batch_norm(learner, tasks)
    scaled = learner.target_scale or getattr(tasks, "target_scale", None)
    sizes = {"ways": ways, "shots": shots, "queries": queries, "seed": seed, "tasks": episodes}
    return _curvature(learner, _probe(tasks, learner, **sizes), scaled)


def _curvature(learner: MetaLearner, probe: TaskBatch, scaled: Any) -> float:
    found = []
    for start in (learner.start, ModelStart()):
        parts = {**_parts(learner, scaled), "start": start}
        found.append(curvature(MetaLearner(learner.partition, GradientDescent(0, 1.0), **parts), probe[:4].own_pool()))
    return max(found) + float(getattr(learner.inner, "l2", 0.0)) + float(getattr(learner.inner, "prox", 0.0))


def _curvature_if_any(learner: MetaLearner, probe: TaskBatch, scaled: Any) -> float | None:
    """L̂; None for a model without second derivatives, or where the loss is flat in what adapts, as in a body under a head of zeros."""
    try:
        return _curvature(learner, probe, scaled)
    except (ConfigError, MethodError):
        return None


def _parts(learner: MetaLearner, scaled: Any) -> dict[str, Any]:
    return {"loss": learner.loss, "start": learner.start, "output": learner.output, "target_scale": scaled}


def _probe(split: Any, learner: MetaLearner, **sizes: Any) -> TaskBatch:
    device = next(learner.model.parameters()).device
    return sampler_of(split, **sizes).batch(0, device)[: sizes["tasks"]].own_pool()
