"""Short training runs: to measure candidates again a little further on, and to rank finalists by what they reach."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from headstart.evaluation import evaluate
from headstart.learner import MetaLearner
from headstart.planning.candidates import Candidate, Pilot, WorstCase, rank
from headstart.planning.config import PlanConfig
from headstart.planning.workbench import Workbench
from headstart.training.loop import train, validation_settings

log = logging.getLogger("headstart")
FINALISTS = 4
REMEASURED = 3
"""Candidates of each partition that are measured again after the short pilot."""


def measured_again(
    bench: Workbench, candidates: Sequence[Candidate], config: PlanConfig, worst: Mapping[str, WorstCase]
) -> list[Candidate]:
    """The best candidate of each partition is trained for a short while, and the best few of it are measured again there.

    Args:
        bench: the model and its tasks.
        candidates: all of them.
        config: what is weighed.
        worst: constants of the theorems by :attr:`Candidate.key`.
    """
    found: list[Candidate] = []
    share = 0.05 * bench.budget
    for adapt in dict.fromkeys(c.adapt for c in candidates):
        own = rank([c for c in candidates if c.adapt == adapt])
        first = own[0]
        log.info("a short pilot of %s: %d inner steps, α = %g ...", adapt, first.steps, first.lr)
        model = copy.deepcopy(bench.model)
        learner = bench.learner(adapt, (first.steps, first.lr, first.l2), model)
        _run(bench, learner, adapt, first.cost.seconds, share)
        rates = {(N, l2): lr for N, lr, l2 in bench.choices(adapt, config.steps, config.l2, model)}
        for c in own[:REMEASURED]:
            lr = rates.get((c.steps, c.l2), c.lr)
            lr, later = bench.objective(adapt, (c.steps, lr, c.l2), c.cost, model)
            found.append(replace(c, lr=lr, worst=worst[c.key].at(c.steps, lr, c.start.loss), later=later))
        found += own[REMEASURED:]
    return found


def trained(bench: Workbench, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Trains the finalists from the first weights for equal times, and notes what they reach on the validation tasks."""
    finalists = _different(rank(candidates))[:FINALISTS]
    share = 0.5 * bench.budget / len(finalists)
    found = []
    for c in candidates:
        if c not in finalists:
            found.append(c)
            continue
        log.info("pilot of %s: %d inner steps, α = %g, λ = %g ...", c.adapt, c.steps, c.lr, c.l2)
        learner = bench.learner(c.adapt, (c.steps, c.lr, c.l2), copy.deepcopy(bench.model))
        iterations, seconds = _run(bench, learner, c.adapt, c.cost.seconds, share)
        result = evaluate(learner, bench.data.validation, **validation_settings(bench.data, bench.train))
        found.append(replace(c, pilot=Pilot(iterations, seconds, result.metric, result.mean, result.ci95, result.before)))
    return found


def _run(bench: Workbench, learner: MetaLearner, adapt: str, step: float, seconds: float) -> tuple[int, float]:
    """Trains for about so many seconds; the schedule is that of a whole run of this length."""
    iterations = max(2, round(seconds / (1.1 * step)))
    own = replace(bench.training(adapt), iterations=iterations, validate_every=iterations, validation_episodes=2)
    run = train(learner, bench.data, own, quiet=True)
    return iterations, run.seconds


def _different(ranked: Sequence[Candidate]) -> list[Candidate]:
    """Finalists that differ in what adapts or in the number of inner steps, best first."""
    seen: set[tuple[str, int]] = set()
    return [c for c in ranked if (c.adapt, c.steps) not in seen and not seen.add((c.adapt, c.steps))]  # type: ignore[func-returns-value]
