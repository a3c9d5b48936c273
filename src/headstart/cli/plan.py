"""``headstart plan``."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from headstart.cli.folders import unused
from headstart.ranks import Ranks
from headstart.training import run as runs
from headstart.training.automatic import fit_sizes
from headstart.training.budget import pooled
from headstart.training.config import RunConfig
from headstart.training.holding import held

log = logging.getLogger("headstart")


@dataclass(frozen=True)
class PlanRun:
    """Measure ways to meta-train on your own model and tasks, and recommend what adapts, how many inner steps and which step size.

    Example: headstart plan --data glyphs --budget 5m --out plans/glyphs
    """

    run: Annotated[RunConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=RunConfig)
    budget: str = "10m"
    """the training time to plan for, such as 90s, 10m or 1h; planning takes about as long again"""
    pilot: bool = True
    """finalists are trained for a while, the better half for longer, and ranked by what they reach; --no-pilot guesses instead, from local
    measurements"""
    candidates: str = "head,last:2,all"
    """choices of what adapts, separated by commas"""
    inner_steps: tuple[int, ...] = (1, 3, 5, 10)
    """numbers of inner steps to weigh"""
    lambdas: tuple[float, ...] = ()
    """values of λ to weigh for a linear head; by default 0 and a hundredth of its largest eigenvalue"""
    out: Path | None = None
    """folder for plan.json, config.json and report.html; by default a new one under plans/"""
    config: Path | None = None
    """a JSON file of settings; other options override it"""
    given: tyro.conf.Suppress[tuple[str, ...]] = ()
    """names of the settings that were given: what was not may be lowered to what the data holds"""

    def __call__(self) -> int:
        """Plans, and writes the plan, a config for it and a report."""
        out = self.planned()
        print(f"next:   headstart train --config {out / 'config.json'}")
        return 0

    def planned(self) -> Path:
        """Plans, prints the plan, and gives the folder in which plan, config and report are."""
        from headstart.experiments.plan_report import write_plan_report
        from headstart.planning.config import PlanConfig, seconds_of
        from headstart.planning.search import plan

        adapt = tuple(c.strip() for c in self.candidates.split(",") if c.strip())
        config = PlanConfig(adapt, self.inner_steps, self.lambdas or None, seconds_of(self.budget), self.pilot)
        ranks = Ranks.present()
        source = ranks.one_first(lambda: runs.load(self.run))
        fitted, notes = fit_sizes(self.run, source, self.given)
        # As training would draw them; what adapts more than a head gets independent tasks of as many examples.
        fitted, more = pooled(replace(fitted, learner=replace(fitted.learner, adapt="head")), source, self.given)
        own = replace(fitted, learner=replace(fitted.learner, steps=fitted.learner.steps or 1, lr=0.1))
        own, _ = ranks.first(lambda: runs.decided(own, source))
        for note in notes + more:
            log.info("%s", note)
        learner = runs.learner_for(own, source)
        out = ranks.first(lambda: self.out or unused(Path("plans") / self.run.data.partition(":")[0]))
        parts = {"start": learner.start, "hypergradient": learner.hypergradient, "loss": learner.loss}
        with held(out, ranks=ranks):
            found = plan(learner.model, source, own.train, config, ranks=ranks, **parts)
            ranks.first(lambda: found.save(out, own))
            report = ranks.first(lambda: write_plan_report(out, found, f"{self.run.data}: a plan for {self.budget} of training"))
        print(f"{found}\nreport: {report}")
        return out
