"""Which part to adapt, how many inner steps, which step size: measured on the user's own model and tasks, then ranked.

The constants of the theory hold for the worst case and are far too loose to rank with; they are shown. What is ranked by is the
descent inequality behind them with quantities measured where the model stands (:mod:`headstart.theory.descent`): at the start,
again after a short pilot, and, with ``pilot=True``, by the validation result that the finalists reach in equal time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from headstart.data.drawing import Data
from headstart.errors import ConfigError, HeadstartError
from headstart.measuring.cost import Cost
from headstart.measuring.spectrum import Spectrum, inner_spectrum
from headstart.planning.candidates import Candidate, WorstCase, key_of, rank
from headstart.planning.config import PlanConfig
from headstart.planning.pilots import measured_again, trained
from headstart.planning.recommendation import Plan
from headstart.planning.workbench import Choice, Workbench
from headstart.training.config import TrainConfig

log = logging.getLogger("headstart")
LEAST_STEPS = 50
"""Outer steps that must fit the budget for a candidate to be worth measuring."""


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
    config = config or PlanConfig()
    search = _Search(Workbench(model, data, train_config or TrainConfig(), config.seconds, options), config)
    candidates = measured_again(search.bench, search.at_start(), config, search.worst)
    if config.pilot:
        candidates = trained(search.bench, candidates)
    return Plan(rank(candidates), search.spectra, search.worst, config.seconds, time.monotonic() - begin, search.notes)


@dataclass
class _Search:
    """The measurements at the first weights, as they gather."""

    bench: Workbench
    config: PlanConfig
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
        choices = self.bench.choices(adapt, self.config.steps, self.config.l2)
        cost = self._costs(adapt, choices)
        choices = [c for c in choices if c[0] in cost]
        return [self._candidate(adapt, choice, choices, cost) for choice in choices]

    def _costs(self, adapt: str, choices: Sequence[Choice]) -> dict[int, Cost]:
        """What an outer step takes by N, as far as enough of them fit the budget."""
        cost: dict[int, Cost] = {}
        for N in sorted({N for N, _, _ in choices}):
            if cost and LEAST_STEPS * max(c.seconds for c in cost.values()) > self.config.seconds:
                self.notes.append(f"{adapt} with N = {N} or more is left out: fewer than {LEAST_STEPS} outer steps fit the budget")
                break
            cost[N] = self.bench.cost(adapt, next(c for c in choices if c[0] == N))
        return cost

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
