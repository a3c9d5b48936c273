"""Short training runs: to rank finalists by what they reach, or, without such pilots, to measure candidates again a little further on."""

from __future__ import annotations

import copy
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from headstart.errors import HeadstartError
from headstart.evaluation import Evaluation, compare, estimate_batch_norm, evaluate
from headstart.learner import MetaLearner
from headstart.planning.candidates import Candidate, Pilot, WorstCase, rank
from headstart.planning.config import Clock, PlanConfig
from headstart.planning.workbench import Workbench
from headstart.training import checkpoint
from headstart.training.loop import LAST, train, validation_settings

log = logging.getLogger("headstart")
FINALISTS = 8
EPISODE = 0.7
"""What adapting to a validation episode takes, over a task's part of an outer step."""
VALIDATION, FEWEST = 0.25, 30
"""Share of a pilot's time for its validation; and the fewest episodes of it."""
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


def halved(bench: Workbench, candidates: Sequence[Candidate], clock: Clock) -> tuple[list[Candidate], list[str]]:
    """Successive halving (Jamieson and Talwalkar, AISTATS 2016): finalists train for equal times, and the better half goes on.

    All are validated on the same episodes. What is left of the time is divided by the rounds that remain, so that slow ones do not
    lengthen the whole.

    Args:
        bench: the model and its tasks.
        candidates: all of them.
        clock: the time that planning may take.

    Returns:
        All candidates, the finalists with what they reached; and what there is to say.
    """
    alive = _different(rank(candidates))[:FINALISTS]
    rounds, notes = max(1, math.ceil(math.log2(len(alive)))), list[str]()
    done: dict[str, Candidate] = {}
    with tempfile.TemporaryDirectory() as folder:
        racers = [_Racer(bench, c, Path(folder) / str(i)) for i, c in enumerate(alive)]
        for r in range(rounds):
            log.info("pilots, round %d: %s", r + 1, "; ".join(racer.candidate.name() for racer in racers))
            for i, racer in enumerate(racers):
                try:
                    racer.go_on(_share(clock, rounds - r, len(racers), i))
                except HeadstartError as error:
                    notes.append(f"{racer.candidate.name()} is left out of the pilots: {error}")
            racers = sorted((racer for racer in racers if racer.result is not None), key=lambda racer: -racer.score)
            done |= {racer.candidate.name(): racer.piloted(r, racers[0]) for racer in racers}
            racers = racers[: max(1, math.ceil(len(racers) / 2))]
            if not racers:
                break
    return [done.get(c.name(), c) for c in candidates], notes


def _share(clock: Clock, rounds: int, racers: int, gone: int) -> float:
    """Seconds of the next one: what is left, less the later rounds, over those of this round that are still to run."""
    whole_round = clock.left / (rounds - gone / racers)
    return whole_round / racers


class _Racer:
    """A finalist that trains on from round to round, by a constant outer step size.

    Args:
        bench: the model and its tasks.
        candidate: which.
        folder: for its checkpoint.
    """

    def __init__(self, bench: Workbench, candidate: Candidate, folder: Path) -> None:
        self.bench, self.candidate, self.folder = bench, candidate, folder
        c = candidate
        self.learner = bench.learner(c.adapt, (c.steps, c.lr, c.l2), copy.deepcopy(bench.model))
        self.iterations, self.seconds, self.step = 0, 0.0, c.cost.seconds
        self.result: Evaluation | None = None

    @property
    def score(self) -> float:
        """Higher is better."""
        assert self.result is not None
        return self.result.mean if self.result.higher_is_better else -self.result.mean

    def go_on(self, seconds: float) -> None:
        """Trains on and is validated, in about so many seconds."""
        own, data = self.bench.training(self.candidate.adapt), self.bench.data
        self.result = None
        per_episode = EPISODE * self.candidate.cost.seconds / own.tasks
        episodes = int(min(max(FEWEST, VALIDATION * seconds / per_episode), self.bench.train.validation_episodes))
        more = max(1, int((seconds - episodes * per_episode) / self.step))
        again, ranks = self.iterations > 0, self.bench.ranks
        self.iterations += more
        settings = replace(
            own, iterations=self.iterations, validate_every=self.iterations, validation_episodes=2, schedule="constant", schedule_options=""
        )
        run = train(self.learner, data, settings, out=self.folder, resume=again, quiet=True, ranks=ranks)
        self.seconds = ranks.first(lambda: run.training_seconds)
        self.step = self.seconds / self.iterations
        checkpoint.load(self.folder / LAST, self.learner, ranks=ranks)  # and not what validated best on two episodes
        estimate_batch_norm(self.learner, data.train)
        given = validation_settings(data, self.bench.train)
        self.result = evaluate(
            self.learner, data.validation, **given | ({"episodes": episodes} if "episodes" in given else {}), ranks=ranks
        )

    def piloted(self, round_: int, best: _Racer) -> Candidate:
        """The candidate with what it reached, beside the best of its round."""
        assert self.result is not None
        assert best.result is not None
        r = self.result
        gap = abs(best.result.mean - r.mean)
        same = len(r.scores) == len(best.result.scores)
        half = compare(best.result, r).ci95 if same else math.hypot(best.result.ci95, r.ci95)
        pilot = Pilot(self.iterations, self.seconds, r.metric, r.mean, r.ci95, r.before, round_, apart=best is not self and gap > half)
        return replace(self.candidate, pilot=pilot)


def _run(bench: Workbench, learner: MetaLearner, adapt: str, step: float, seconds: float) -> tuple[int, float]:
    """Trains for about so many seconds; the schedule is that of a whole run of this length."""
    iterations = max(2, round(seconds / (1.1 * step)))
    own = replace(bench.training(adapt), iterations=iterations, validate_every=iterations, validation_episodes=2)
    run = train(learner, bench.data, own, quiet=True, ranks=bench.ranks)
    return iterations, bench.ranks.first(lambda: run.seconds)


def _different(ranked: Sequence[Candidate]) -> list[Candidate]:
    """Finalists that differ in what adapts or in the number of inner steps, best first."""
    seen: set[tuple[str, int]] = set()
    return [c for c in ranked if (c.adapt, c.steps) not in seen and not seen.add((c.adapt, c.steps))]  # type: ignore[func-returns-value]
