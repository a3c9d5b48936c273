"""Which part to adapt, how many inner steps, which step size: measured on the user's own model and tasks, then ranked.

The constants of the theory hold for the worst case and are far too loose to rank with; they are shown. What is ranked by is the
descent inequality behind them with quantities measured where the model stands (:mod:`headstart.theory.descent`): at the start,
and by what matters in the end, the validation result that the finalists reach in equal time, by successive halving.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from headstart.data.drawing import Data
from headstart.errors import ConfigError, HeadstartError
from headstart.measuring.cost import Cost
from headstart.measuring.spectrum import Spectrum, inner_spectrum
from headstart.planning.candidates import NOTHING, UNMEASURED, Candidate, WorstCase, key_of, rank
from headstart.planning.config import Clock, PlanConfig
from headstart.planning.pilots import halved, measured_again
from headstart.planning.recommendation import Plan
from headstart.planning.workbench import Choice, Workbench
from headstart.process import tune_process
from headstart.ranks import ALONE, Ranks
from headstart.training.config import TrainConfig

log = logging.getLogger("headstart")
SMALL = 1e-3
"""An inner step size at which outer steps are timed."""
LEAST_STEPS = 50
"""Outer steps that must fit the budget for a candidate to be worth measuring; with pilots, a quarter of it."""
LIMIT, MEASURING, PILOTED = 1.2, 0.3, 0.25
"""Over the budget: planning's time, that until which the theory's quantities are measured, and that which the fewest steps may take."""
THEORY = 60
"""What measuring them takes for one partition, in outer steps of its largest N."""


def plan(
    model: nn.Module,
    data: Data,
    train_config: TrainConfig | None = None,
    config: PlanConfig | None = None,
    *,
    ranks: Ranks = ALONE,
    **options: Any,
) -> Plan:
    """Measures ways to meta-train a model on some tasks, and recommends one with its reasons.

    Args:
        model: any module; it is copied and stays as it is.
        data: training and validation tasks.
        train_config: the outer loop; ways, shots and queries are those of the tasks.
        config: what to weigh.
        ranks: processes that plan together, such as ``hs.Ranks.present()``: they share the work of pilots and of their validation. What
            is measured before is measured by each, and timed by the first.
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
    tune_process()
    ranks.spread([*model.parameters(), *model.buffers()])  # what is measured is measured of one model
    config = config or PlanConfig()
    clock = Clock(LIMIT * config.seconds, ranks=ranks)
    search = _Search(Workbench(model, data, train_config or TrainConfig(), config.seconds, options, ranks), config, clock)
    candidates, notes = search.at_start(), search.notes
    if config.pilot:
        candidates, more = halved(search.bench, candidates, clock)
        notes += more
    else:
        candidates = measured_again(search.bench, candidates, config, search.worst)
    return Plan(rank(candidates), search.spectra, search.worst, config.seconds, clock.spent, notes)


@dataclass
class _Search:
    """The measurements at the first weights, as they gather."""

    bench: Workbench
    config: PlanConfig
    clock: Clock
    spectra: dict[str, Spectrum] = field(default_factory=dict)
    worst: dict[str, WorstCase] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def at_start(self) -> list[Candidate]:
        """Geometry and costs of every partition, and the meta-objective of its candidates at the first weights."""
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
        cost = self._costs(adapt)
        choices = self.bench.choices(adapt, list(cost), self.config.l2)
        longest = max(c.seconds for c in cost.values())
        if self.config.pilot and self.clock.spent + THEORY * longest > MEASURING * self.config.seconds:
            self.notes.append(f"{adapt}: its geometry is not measured, as that takes minutes; pilots decide")
            own = self.bench.training(adapt)
            same = {"geometry": UNMEASURED, "mu": math.nan, "L": math.nan, "tasks": own.tasks, "sampling": own.sampling}
            return [Candidate(adapt, N, lr, l2, **same, cost=cost[N], start=NOTHING, worst=math.inf) for N, lr, l2 in choices]  # type: ignore[arg-type]
        return [self._candidate(adapt, choice, choices, cost) for choice in choices]

    def _costs(self, adapt: str) -> dict[int, Cost]:
        """What an outer step takes by N, as far as enough of them fit their share of the budget.

        The steps of a head cost next to nothing, so where little fits its largest N is what remains; elsewhere the smallest is.
        """
        cost: dict[int, Cost] = {}
        share = self.config.seconds * (PILOTED if self.config.pilot else 1)
        expected = 0.0
        head = self.bench.is_head(adapt)
        for N in sorted(set(self.config.steps), reverse=head):
            if cost:
                expected = max(c.seconds * (1 if head else (1 + N) / (1 + n)) for n, c in cost.items())
            if cost and LEAST_STEPS * expected > share:
                which = f"{adapt} with N = {N} or {'less' if head else 'more'}"
                self.notes.append(f"{which} is left out: fewer than {LEAST_STEPS} outer steps fit {share:.0f} s")
                break
            cost[N] = self.bench.cost(adapt, (N, SMALL, 0.0))
        return dict(sorted(cost.items()))

    def _candidate(self, adapt: str, choice: Choice, choices: Sequence[Choice], cost: Mapping[int, Cost]) -> Candidate:
        bench, (N, lr, l2) = self.bench, choice
        key = key_of(adapt, l2)
        if key not in self.spectra:  # the longest path of a λ has those of all others in it
            longest = max((c for c in choices if c[2] == l2), key=lambda c: c[0])
            self.spectra[key] = inner_spectrum(bench.learner(adapt, longest), bench.probe(4)[: 4 if bench.is_head(adapt) else 2])
            self.worst[key] = bench.worst(adapt, longest, cost[longest[0]])
        spectrum, along = self.spectra[key], slice(0, N + 1)
        mu, L = float(spectrum.smallest[:, along].min()), float(spectrum.largest[:, along].max())
        lr, start = bench.objective(adapt, choice, cost[N])
        own, worst = bench.training(adapt), self.worst[key].at(N, lr, start.loss)
        return Candidate(adapt, N, lr, l2, spectrum.geometry, mu, L, own.tasks, own.sampling, cost[N], start, worst)
