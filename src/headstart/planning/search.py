"""Which part to adapt, how many inner steps, which step size: measured on the user's own model and tasks, then ranked.

The constants of the theory hold for the worst case and are far too loose to rank with; they are shown. What is ranked by is the
descent inequality behind them with quantities measured where the model stands (:mod:`headstart.theory.descent`): at the start,
again after a short pilot, and, with ``pilot=True``, by the validation result that the finalists reach in equal time.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from headstart.data.episodes import Sampler
from headstart.data.sampling import Data, sampler_of, signature
from headstart.errors import ConfigError, HeadstartError
from headstart.evaluation import estimate_batch_norm, evaluate
from headstart.inner.descent import GradientDescent
from headstart.learner import MetaLearner
from headstart.measuring.constants import measure
from headstart.measuring.cost import Cost, Local, measure_cost, measure_local
from headstart.measuring.predicted import predicted_calls
from headstart.measuring.spectrum import Spectrum, inner_spectrum
from headstart.partition import Partition
from headstart.planning.recommendation import Candidate, Pilot, Plan, WorstCase, rank
from headstart.tasks import TaskBatch
from headstart.theory.bounds import Constants
from headstart.training.config import TrainConfig
from headstart.training.loop import train, training_sampler, validation_settings

log = logging.getLogger("headstart")
RATES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Inner step sizes that are tried, over 1/L̂ at the start; the curvature of cross-entropy falls along the path, so some beyond 2/L̂ work."""
FINALISTS = 4
REMEASURED = 3
"""Candidates of each partition that are measured again after the short pilot."""
LEAST_STEPS = 50
"""Outer steps that must fit the budget for a candidate to be worth measuring."""


@dataclass(frozen=True)
class PlanConfig:
    """What a plan is to weigh.

    Args:
        adapt: choices of what adapts.
        steps: numbers of inner steps N.
        l2: values of λ for a linear head; None for 0 and a hundredth of its largest eigenvalue. Other partitions take 0.
        seconds: the training time that the plan is for. Planning comes on top: some ten meta-gradients per candidate, twice.
        pilot: train the finalists for a while, and rank them by what they reach.

    Raises:
        ConfigError: a value cannot work.
    """

    adapt: Sequence[str] = ("head", "last:2", "all")
    steps: Sequence[int] = (1, 3, 5, 10)
    l2: Sequence[float] | None = None
    seconds: float = 600.0
    pilot: bool = False

    def __post_init__(self) -> None:
        if not self.adapt or not self.steps or min(self.steps) < 1:
            raise ConfigError(f"adapt={self.adapt!r}, steps={self.steps!r}: give at least one of each, and inner steps of 1 or more")
        if not (math.isfinite(self.seconds) and self.seconds >= 1):
            raise ConfigError(f"budget={self.seconds!r}: it must be at least one second; write 90s, 10m or 1h")


def seconds_of(text: str) -> float:
    """A duration in seconds.

    Raises:
        ConfigError: it is not one.

    Example:
        >>> seconds_of("10m"), seconds_of("90s"), seconds_of("1.5h"), seconds_of("30")
        (600.0, 90.0, 5400.0, 30.0)
    """
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    try:
        return float(text[:-1]) * unit if unit else float(text)
    except ValueError as error:
        raise ConfigError(f"budget={text!r}: write a duration such as 90s, 10m or 1h") from error


def plan(model: nn.Module, data: Data, train_config: TrainConfig | None = None, config: PlanConfig | None = None, **options: Any) -> Plan:
    """Measures ways to meta-train a model on some tasks, and recommends one with its reasons.

    Args:
        model: any module; it is copied and stays as it is.
        data: training and validation tasks.
        train_config: the outer loop; ways, shots and queries are those of the tasks.
        config: what to weigh.
        options: further arguments of :class:`MetaLearner`, such as ``loss``.

    Returns:
        The plan: it prints itself, and ``plan.save(folder)`` writes plan.json and config.json.

    Raises:
        ConfigError, DataError: nothing of what should be weighed works on this model and these tasks.

    Example:
        >>> import headstart as hs
        >>> waves, small = hs.data.load("sinusoid"), hs.TrainConfig(shots=5, queries=5, tasks=4)
        >>> found = plan(hs.models.mlp(1, 1, [8]), waves, small, PlanConfig(("head", "all"), (1, 3), seconds=2))
        >>> found.recommended in found.candidates
        True
    """
    begin = time.monotonic()
    torch.set_flush_denormal(True)
    work = _Work(model, data, train_config or TrainConfig(), config or PlanConfig(), options)
    candidates = work.at_start()
    candidates = work.after_pilot(candidates)
    if work.config.pilot:
        candidates = work.pilots(candidates)
    ranked = rank(candidates)
    return Plan(ranked, work.spectra, work.worst, work.config.seconds, time.monotonic() - begin, work.notes)


@dataclass
class _Work:
    """The state of planning."""

    model: nn.Module
    data: Data
    train: TrainConfig
    config: PlanConfig
    options: dict[str, Any]
    spectra: dict[str, Spectrum] = field(default_factory=dict)
    worst: dict[str, WorstCase] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if signature(self.data.train, self.train.ways).regression:
            self.options.setdefault("loss", "squared_error")
            self.options.setdefault("target_scale", getattr(self.data.train, "target_scale", None))
        self.model = copy.deepcopy(self.model)
        self.device = next(self.model.parameters()).device
        self.heads: dict[str, bool] = {}
        estimate_batch_norm(self.learner("all", 1, 0.1, 0.0), self.data.train)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def learner(self, adapt: str, steps: int, lr: float, l2: float, model: nn.Module | None = None) -> MetaLearner:
        model = self.model if model is None else model
        return MetaLearner(Partition(model, adapt), GradientDescent(steps, lr, l2), **self.options)

    def training(self, adapt: str) -> TrainConfig:
        """The outer loop for a partition: tasks from one pool pay only where the body runs once per example."""
        if self.train.sampling != "dense" or self._is_head(adapt):
            return self.train
        dense = training_sampler(self.data, self.train).batch(0)
        own = dense.support.index.shape[1] + dense.query.index.shape[1]
        return replace(self.train, sampling="independent", tasks=max(1, round(dense.pool_size / own)))

    def _is_head(self, adapt: str) -> bool:
        """Whether what adapts is one linear layer at the end, which makes many tasks from one pool cheap."""
        if adapt not in self.heads:
            self.heads[adapt] = self.learner(adapt, 1, 0.1, 0.0).program(self.probe(1)).head is not None
        return self.heads[adapt]

    def _sizes(self) -> dict[str, Any]:
        return {"ways": self.train.ways, "shots": self.train.shots, "queries": self.train.queries}

    def sampler(self, adapt: str) -> Sampler:
        return training_sampler(self.data, self.training(adapt))

    def probe(self, count: int) -> TaskBatch:
        """A few independent training tasks."""
        return sampler_of(self.data.train, **self._sizes(), tasks=count, seed=self.train.seed).batch(0, self.device)[:count].own_pool()

    # -- stages --------------------------------------------------------------------------------------------------------

    def at_start(self) -> list[Candidate]:
        """Geometry and costs of every partition, and the local quantities of its candidates at the first weights."""
        found: list[Candidate] = []
        for adapt in self.config.adapt:
            try:
                found += self._partition(adapt)
            except HeadstartError as error:  # one choice that does not fit the model must not end the plan of the others
                self.notes.append(f"{adapt} is left out: {error}")
                log.warning("%s is left out: %s", adapt, error)
        if not found:
            raise ConfigError(f"none of adapt={list(self.config.adapt)} works on this model and these tasks: {'; '.join(self.notes)}")
        return found

    def _partition(self, adapt: str) -> list[Candidate]:
        log.info("measuring %s ...", adapt)
        tasks = self.probe(4)
        scale = inner_spectrum(self.learner(adapt, 0, 1.0, 0.0), tasks).L
        if not scale > 0:
            raise ConfigError("its inner Hessian is zero at the start")
        choices = self._choices(adapt, self.model, scale)
        cost: dict[int, Cost] = {}
        for N in sorted({N for N, _, _ in choices}):
            if cost and LEAST_STEPS * max(c.seconds for c in cost.values()) > self.config.seconds:
                self.notes.append(f"{adapt} with N = {N} or more is left out: fewer than {LEAST_STEPS} outer steps fit the budget")
                break
            cost[N] = self._cost(adapt, *next(c for c in choices if c[0] == N))
        choices = [c for c in choices if c[0] in cost]
        found = []
        for N, lr, l2 in choices:
            key = f"{adapt}, λ = {l2:g}"
            if key not in self.spectra:
                longest = max((c for c in choices if c[2] == l2), key=lambda c: c[0])
                self.spectra[key] = inner_spectrum(self.learner(adapt, *longest), tasks[: 4 if self._is_head(adapt) else 2])
                self.worst[key] = self._worst(adapt, longest, cost[longest[0]])
            spectrum = self.spectra[key]
            along = slice(0, N + 1)
            mu, L = float(spectrum.smallest[:, along].min()), float(spectrum.largest[:, along].max())
            lr, start = self._local(adapt, (N, lr, l2), self.model, cost[N])
            own = self.training(adapt)
            found.append(
                Candidate(
                    adapt,
                    N,
                    lr,
                    l2,
                    spectrum.geometry,
                    mu,
                    L,
                    own.tasks,
                    own.sampling,
                    cost[N],
                    start,
                    worst=self.worst[key].at(N, lr, start.loss),
                )
            )
        return found

    def _choices(self, adapt: str, model: nn.Module, scale: float) -> list[tuple[int, float, float]]:
        """For every N and λ the step size with the lowest query loss after N steps, of those tried around 1/L̂."""
        head = self._is_head(adapt)
        lambdas = (0.0,) if not head else self.config.l2 if self.config.l2 is not None else (0.0, _round(scale / 100))
        tasks, longest = self.probe(32 if head else 8), max(self.config.steps)
        best: dict[tuple[int, float], tuple[float, float]] = {}
        for l2 in lambdas:
            for rate in RATES:
                lr = _round(rate / (scale + l2))
                learner = self.learner(adapt, longest, lr, l2, model)
                learner.model.eval()
                by_step = learner.trajectory(tasks)
                for N in self.config.steps:
                    loss = float(learner.loss(by_step[N], tasks.query_y).mean())
                    if math.isfinite(loss) and loss < best.get((N, l2), (math.inf, 0.0))[0]:
                        best[N, l2] = (loss, lr)
        return [(N, lr, l2) for (N, l2), (_, lr) in best.items()]

    def _cost(self, adapt: str, N: int, lr: float, l2: float) -> Cost:
        learner = self.learner(adapt, N, lr, l2)
        tasks = self.sampler(adapt).batch(0, self.device)
        book = predicted_calls(learner, tasks)
        return measure_cost(learner, tasks, {name: entry.calls for name, entry in book.entries.items()})

    def _local(self, adapt: str, choice: tuple[int, float, float], model: nn.Module, cost: Cost) -> tuple[float, Local]:
        """The local quantities, from as many meta-gradients as fit a fiftieth of the budget, within limits.

        Where some task diverges at the step size that was best on the few that were tried, a smaller one is taken, and returned.
        """
        affordable = self.config.seconds / 50 / cost.seconds  # half for the noise, and half for the smoothness of two blocks
        batches, iterations = int(min(max(affordable / 2, 3), 32)), int(min(max(affordable / 8, 1), 6))
        N, lr, l2 = choice
        for smaller in (1, 4, 16):
            learner = self.learner(adapt, N, _round(lr / smaller), l2, model)
            found = measure_local(learner, self.sampler(adapt), self.device, batches=batches, iterations=iterations)
            if math.isfinite(found.loss):
                return _round(lr / smaller), found
        return lr, found

    def _worst(self, adapt: str, choice: tuple[int, float, float], cost: Cost) -> WorstCase:
        """What the theorems promise with constants as measured: shown, and not ranked by."""
        learner = self.learner(adapt, *choice)
        # Products with the Hessian of a whole body are dear, and what they say is only shown.
        tasks = self.probe(8 if cost.seconds < 0.05 else 2)
        return WorstCase(
            Constants(**measure(learner, tasks, points=1, directions=1, iterations=2).to_bounds()), bool(learner.partition.shared)
        )

    def after_pilot(self, candidates: list[Candidate]) -> list[Candidate]:
        """The best candidate of each partition is trained for a short while, and the best few of it are measured again there."""
        found: list[Candidate] = []
        share = 0.05 * self.config.seconds
        for adapt in dict.fromkeys(c.adapt for c in candidates):
            own = [c for c in candidates if c.adapt == adapt]
            first = rank(own)[0]
            log.info("a short pilot of %s: %d inner steps, α = %g ...", adapt, first.steps, first.lr)
            model = copy.deepcopy(self.model)
            learner = self.learner(adapt, first.steps, first.lr, first.l2, model)
            self._run(learner, adapt, first.cost.seconds, share)
            scale = inner_spectrum(self.learner(adapt, 0, 1.0, 0.0, model), self.probe(4)).L
            rates = {(N, l2): lr for N, lr, l2 in self._choices(adapt, model, scale)}
            for c in rank(own)[:REMEASURED]:
                lr = rates.get((c.steps, c.l2), c.lr)
                lr, later = self._local(adapt, (c.steps, lr, c.l2), model, c.cost)
                worst = self.worst[f"{adapt}, λ = {c.l2:g}"].at(c.steps, lr, c.start.loss)
                found.append(replace(c, lr=lr, worst=worst, later=later))
            found += rank(own)[REMEASURED:]
        return found

    def pilots(self, candidates: list[Candidate]) -> list[Candidate]:
        """Trains the finalists from the first weights for equal times, and notes what they reach on the validation tasks."""
        finalists = _different(rank(candidates))[:FINALISTS]
        share = 0.5 * self.config.seconds / len(finalists)
        found = []
        for c in candidates:
            if c not in finalists:
                found.append(c)
                continue
            log.info("pilot of %s: %d inner steps, α = %g, λ = %g ...", c.adapt, c.steps, c.lr, c.l2)
            learner = self.learner(c.adapt, c.steps, c.lr, c.l2, copy.deepcopy(self.model))
            iterations, seconds = self._run(learner, c.adapt, c.cost.seconds, share)
            result = evaluate(learner, self.data.validation, **validation_settings(self.data, self.train))
            found.append(replace(c, pilot=Pilot(iterations, seconds, result.metric, result.mean, result.ci95, result.before)))
        return found

    def _run(self, learner: MetaLearner, adapt: str, step: float, seconds: float) -> tuple[int, float]:
        """Trains for about so many seconds; the schedule is that of a whole run of this length."""
        iterations = max(2, round(seconds / (1.1 * step)))
        own = replace(self.training(adapt), iterations=iterations, validate_every=iterations, validation_episodes=2)
        run = train(learner, self.data, own, quiet=True)
        return iterations, run.seconds


def _different(ranked: Sequence[Candidate]) -> list[Candidate]:
    """Finalists that differ in what adapts or in the number of inner steps, best first."""
    seen: set[tuple[str, int]] = set()
    return [c for c in ranked if (c.adapt, c.steps) not in seen and not seen.add((c.adapt, c.steps))]  # type: ignore[func-returns-value]


def _round(value: float) -> float:
    """Two significant digits."""
    return float(f"{value:.1e}")
