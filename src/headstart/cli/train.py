"""``headstart train``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from headstart.cli.evaluate import Evaluate
from headstart.cli.folders import new_run, unused
from headstart.cli.folds import over_folds
from headstart.cli.plan import PlanRun
from headstart.errors import ConfigError
from headstart.experiments.report import write_report
from headstart.training import run as runs
from headstart.training.algorithms import ALGORITHMS, with_algorithm
from headstart.training.config import RunConfig
from headstart.training.run_folder import CONFIG


@dataclass(frozen=True)
class Train:
    """Meta-train on a data source, evaluate on tasks it never saw, and keep everything in a run folder.

    Example: headstart train --data glyphs --ways 5 --shots 1 --iterations 500 --out runs/first
    """

    run: Annotated[RunConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=RunConfig)
    algorithm: str = ""
    """an algorithm by name, which chooses what adapts, the solver, the start and the hypergradient where they are not given: anil,
    anil_cosine, maml, fomaml, reptile, boil, imaml, metasgd, metacurvature, mamlpp, cavia, protonet, soft_kmeans, protomaml, metabaseline,
    r2d2, metaoptnet"""
    out: Path | None = None
    """run folder; by default a new one under runs/"""
    config: Path | None = None
    """a JSON file of settings, such as the config.json of a run; other options override it"""
    resume: bool = False
    """go on with the run in --out, from its last checkpoint"""
    overwrite: bool = False
    """replace the run in --out"""
    plan: str = ""
    """a training time, such as 5m: plan for it first, by pilots that take about as long again, and train with what was found"""
    test_episodes: int = 1000
    """episodes of the evaluation that follows training; 0 for none"""
    given: tyro.conf.Suppress[tuple[str, ...]] = ()
    """names of the settings that were given: what was not may be lowered to what the data holds"""

    def __call__(self) -> int:
        """Trains, evaluates and writes a report; with folds, for each of them."""
        if self.run.folds and not self.run.fold:
            out = self.out or new_run(self.run)
            return over_folds(self.run.folds, out, lambda k, folder: replace(self, out=folder, run=replace(self.run, fold=k))())
        config = with_algorithm(self.run, self.algorithm, self.given)
        given = (*self.given, *ALGORITHMS.get(self.algorithm, {}))
        out = self.out or new_run(config)
        if self.plan and not self.resume:
            config = RunConfig.load(PlanRun(config, self.plan, out=unused(Path("plans") / Path(out).name), given=given).planned() / CONFIG)
            given = tuple(config.flat())
        if self.test_episodes == 1 or self.test_episodes < 0:
            raise ConfigError(f"test_episodes={self.test_episodes}: at least 2 are needed for an interval; 0 evaluates nothing")
        run, config, learner, source = runs.start(config, out, resume=self.resume, overwrite=self.overwrite, given=given)
        print(f"\n{run}")
        if self.test_episodes and not run.interrupted:
            return Evaluate(Path(out), self.test_episodes).measure(config, learner, source)
        report = write_report(out, config, learner, source)
        print(f"report: {report}\nnext:   headstart evaluate {out}")
        if run.interrupted:
            print(f"        headstart train --resume --out {out}")
        return 130 if run.interrupted else 0
