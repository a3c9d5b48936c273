"""``headstart plan``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from headstart.cli.folders import unused
from headstart.training import run as runs
from headstart.training.checkpoint import prepare_folder
from headstart.training.config import RunConfig


@dataclass(frozen=True)
class PlanRun:
    """Measure ways to meta-train on your own model and tasks, and recommend what adapts, how many inner steps and which step size.

    Example: headstart plan --data glyphs --budget 5m --out plans/glyphs
    """

    run: Annotated[RunConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=RunConfig)
    budget: str = "10m"
    """the training time to plan for, such as 90s, 10m or 1h; planning comes on top, and takes minutes for a large network"""
    pilot: bool = False
    """train the finalists for half the budget together, and rank them by what they reach"""
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

    def __call__(self) -> int:
        """Plans, and writes the plan, a config for it and a report."""
        from headstart.experiments.plan_report import write_plan_report
        from headstart.planning.config import PlanConfig, seconds_of
        from headstart.planning.search import plan

        adapt = tuple(c.strip() for c in self.candidates.split(",") if c.strip())
        config = PlanConfig(adapt, self.inner_steps, self.lambdas or None, seconds_of(self.budget), self.pilot)
        learner, source = runs.build(self.run)
        out = self.out or unused(Path("plans") / self.run.data.partition(":")[0])
        prepare_folder(out)
        parts = {"start": learner.start, "hypergradient": learner.hypergradient, "loss": learner.loss}
        found = plan(learner.model, source, self.run.train, config, **parts)
        found.save(out, self.run)
        report = write_plan_report(out, found, f"{self.run.data}: a plan for {self.budget} of training")
        print(f"{found}\nreport: {report}\nnext:   headstart train --config {out / 'config.json'}")
        return 0
