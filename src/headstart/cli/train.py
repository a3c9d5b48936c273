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
from headstart.ranks import Ranks, may_restart
from headstart.training import run as runs
from headstart.training.algorithms import ALGORITHMS, with_algorithm
from headstart.training.config import RunConfig
from headstart.training.run_folder import CONFIG, check_free


@dataclass(frozen=True)
class Train:
    """Meta-train on a data source, evaluate on tasks it never saw, and keep everything in a run folder.

    Example: headstart train --data glyphs --ways 5 --shots 1 --iterations 500 --out runs/first
    """

    run: Annotated[RunConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=RunConfig)
    algorithm: str = ""
    """an algorithm by name, which chooses what adapts, the solver, the start and the hypergradient where they are not given: anil,
    anil_cosine, anil_latent, maml, fomaml, reptile, boil, imaml, metasgd, metacurvature, mamlpp, cavia, protonet, soft_kmeans, protomaml,
    metabaseline, r2d2, metaoptnet"""
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
        ranks = Ranks.present()
        if self.run.folds and not self.run.fold:
            if ranks.world > 1:
                raise ConfigError(f"folds={self.run.folds} with {ranks.world} processes: train one fold at a time, with --fold 1 and so on")
            out = self.out or new_run(self.run)
            return over_folds(self.run.folds, out, lambda k, folder: replace(self, out=folder, run=replace(self.run, fold=k))())
        config = with_algorithm(self.run, self.algorithm, self.given)
        given = (*self.given, *ALGORITHMS.get(self.algorithm, {}))
        if may_restart() and (self.out is None or self.overwrite):
            raise ConfigError("torchrun --max-restarts needs --out, and no --overwrite: processes that are started again go on there")
        out = ranks.first(lambda: self.out or new_run(config))
        # What torchrun starts in the place of a killed process has the same arguments, and must go on.
        resume = ranks.first(lambda: self.resume or (may_restart() and (Path(out) / CONFIG).exists()))
        if not resume and not self.overwrite:
            ranks.first(lambda: check_free(Path(out)))
        if self.plan and not resume:
            config, given = self._planned(config, Path(out), given, ranks)
        if self.test_episodes == 1 or self.test_episodes < 0:
            raise ConfigError(f"test_episodes={self.test_episodes}: at least 2 are needed for an interval; 0 evaluates nothing")
        run, config, learner, source = runs.start(config, out, resume=resume, overwrite=self.overwrite, given=given)
        print(f"\n{run}")
        if self.test_episodes and not run.interrupted:
            return Evaluate(Path(out), self.test_episodes).measure(config, learner, source)
        report = ranks.first(lambda: write_report(out, config, learner, source))
        print(f"report: {report}\nnext:   headstart evaluate {out}")
        if run.interrupted:
            print(f"        headstart train --resume --out {out}")
        return 130 if run.interrupted else 0

    def _planned(self, config: RunConfig, out: Path, given: tuple[str, ...], ranks: Ranks) -> tuple[RunConfig, tuple[str, ...]]:
        """The config that planning finds, in which everything counts as given."""
        place = ranks.first(lambda: unused(Path("plans") / out.name))
        found = PlanRun(config, self.plan, out=place, given=given).planned() / CONFIG
        config = ranks.first(lambda: RunConfig.load(found))
        return config, tuple(config.flat())
