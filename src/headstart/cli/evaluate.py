"""``headstart evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from headstart.data.drawing import Data
from headstart.errors import HeadstartError
from headstart.evaluation import BatchNorm, Evaluation, confidences, estimate_batch_norm, evaluate
from headstart.evaluation.calibration import FEW
from headstart.experiments.baselines import beside_baselines
from headstart.experiments.report import write_report
from headstart.learner import MetaLearner
from headstart.ranks import Ranks
from headstart.training import run as runs
from headstart.training.config import RunConfig
from headstart.using.trained import TrainedStart


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a run on test tasks it never saw, and write its report.

    Other ways, shots, queries, steps or batch statistics than the run's own have files of their own, such as evaluation-5shots.json.

    Example: headstart evaluate runs/first --episodes 1000
    """

    run: Annotated[Path, tyro.conf.Positional]
    """the run folder"""
    episodes: int = 1000
    """test episodes"""
    ways: int | None = None
    """classes per episode; as in training by default"""
    shots: int | None = None
    """support examples per class, or per task of a table; as in training by default"""
    queries: int | None = None
    """query examples per class, or per task of a table; 15 by default, or as many as the smallest class allows"""
    steps: int | None = None
    """inner steps; as in training by default"""
    seed: int = 0
    """of the episodes"""
    batch_norm: BatchNorm = "support"
    """statistics of batch normalisation: support (each task's support examples in what adapts, training examples elsewhere; inductive),
    running (training examples; inductive), episode (transductive, as in published MAML numbers), batch (100 episodes together)"""
    baselines: bool = True
    """what needs no meta-learning is evaluated beside it, on the same episodes; --no-baselines leaves it out"""
    calibration: bool = True
    """what headstart adapt takes is kept, and it is said how far its probabilities can be trusted and how inputs of other classes are told;
    --no-calibration leaves both out"""

    def __call__(self) -> int:
        """Evaluates the run in its folder."""
        return self.measure(*Ranks.present().one_first(lambda: runs.open_run(self.run)))

    def measure(self, config: RunConfig, learner: MetaLearner, source: Data) -> int:
        """Evaluates a learner that is at hand, and writes the result and the report; several processes share the episodes."""
        ranks = Ranks.present()
        sizes: dict[str, Any] = {
            "ways": config.train.ways if self.ways is None else self.ways,
            "shots": config.train.shots if self.shots is None else self.shots,
            "queries": self.queries,
            "episodes": self.episodes,
            "seed": self.seed,
        }
        result = evaluate(learner, source.test, **sizes, steps=self.steps, batch_norm=self.batch_norm, ranks=ranks)
        return ranks.first(lambda: self._report(result, config, learner, source, sizes))

    def _report(self, result: Evaluation, config: RunConfig, learner: MetaLearner, source: Data, sizes: dict[str, Any]) -> int:
        """Writes and prints what was found, and what stands beside it."""
        result.save(self._file(runs.EVALUATION, config))
        report = write_report(self.run, config, learner, source, result, self._file(runs.REPORT, config))
        print(f"\n{result}")
        if self.baselines:
            print(self._beside(result, config, learner, source, sizes))
        if said := self._start(config, learner, source):
            print(said)
        print(f"report: {report}")
        return 0

    def _file(self, name: str, config: RunConfig) -> Path:
        """The file of a result, whose name says what is not as in training."""
        train = config.train
        own = {"ways": train.ways, "shots": train.shots, "queries": None, "steps": config.learner.steps, "batch_norm": "support"}
        other = [n for n, usual in own.items() if getattr(self, n) not in (None, usual)]
        said = "".join(f"-{self.batch_norm}" if n == "batch_norm" else f"-{getattr(self, n)}{n}" for n in other)
        stem, _, kind = name.rpartition(".")
        return self.run / f"{stem}{said}.{kind}"

    def _start(self, config: RunConfig, learner: MetaLearner, source: Data) -> str:
        """Keeps what headstart adapt takes; says how far its probabilities can be trusted on test classes, or why there is none."""
        if not self.calibration:
            return ""
        try:
            calibration = TrainedStart.kept(self.run, config, learner, source).calibration
            if calibration is None:
                return ""
            train = config.train
            sizes: dict[str, Any] = {"ways": train.ways, "shots": train.shots, "queries": train.queries, "seed": self.seed}
            found = calibration.measured(confidences(learner, source.test, **sizes, stream="test"))
            classes: tuple[Any, ...] | None = getattr(source.validation, "classes", None)
            shown = f", {train.ways}-way {train.shots}-shot" if classes is not None else ""
            few = 0 if classes is None or len(classes) >= FEW else len(classes)
            said = f"; {few} validation classes are few: neither need hold for others" if few else ""
            return f"calibrated on validation classes{shown}: {found}{said}"
        except HeadstartError as error:
            return f"not to be used by headstart adapt: {error}"

    def _beside(self, result: Evaluation, config: RunConfig, learner: MetaLearner, source: Data, sizes: dict[str, Any]) -> str:
        """The baselines as text; or why there are none."""
        untrained = runs.learner_for(config, source)
        untrained.target_scale = learner.target_scale
        estimate_batch_norm(untrained, source.train)
        try:
            found = beside_baselines(result, source, untrained, sizes)
        except HeadstartError as error:
            return f"no baselines for these tasks: {error}"
        found.save(self._file(runs.BASELINES, config))
        return str(found)
