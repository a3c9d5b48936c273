"""Short trainings that settle what nothing else tells: the start of a head, and whether the measured step size trains best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from headstart.data.drawing import Data, signature
from headstart.errors import DivergenceError
from headstart.evaluation.result import show
from headstart.learner import MetaLearner
from headstart.measuring.rate import MeasuredRate, measure_lr
from headstart.ranks import ALONE
from headstart.training.config import AUTO, RunConfig
from headstart.training.loop import train

STEPS, SHARE, FEWEST = 30, 20, 10
"""Steps of a trial, at most the SHAREth part of the run; with fewer than FEWEST a trial says nothing."""
WORTH = 50
"""Iterations of a run from which the start, which may decide more than ten points, is tried even where FEWEST is a larger part of it."""
STARTS = ("shared", "prototypes")
WITHOUT = "prototypes without steps"
"""The third that is tried, where the number of steps is open: the nearest class mean in the network's features."""
MOVES = 2
"""Doublings of the measured step size at most."""
FAILED = float("-inf")
GAIN, OF_ERROR = 0.002, 0.005
"""By so much accuracy, or such a part of the squared error, a larger step size must be better: near 100 % any is, and says nothing."""


@dataclass
class Trials:
    """Trials on one source; what was trained once is remembered.

    Args:
        source: the data.
        learner_of: builds the learner of a config.
        allowed: whether to train at all; else what needs a trial keeps its usual value.
        steps_open: whether the number of inner steps may be decided.
        found, metric: what was validated so far; more is better.
    """

    source: Data
    learner_of: Callable[[RunConfig], MetaLearner]
    allowed: bool = True
    steps_open: bool = False
    found: dict[tuple[str, int, float], float] = field(default_factory=dict)
    metric: str = "accuracy"

    def with_start(self, config: RunConfig) -> tuple[RunConfig, list[str]]:
        """The start that a short training validates better.

        Untried it is the shared vector, and the model's own weights where nothing is shared.
        """
        with_ = lambda name: replace(config, learner=replace(config.learner, start=name, start_options=""))  # noqa: E731
        own = config.learner
        steps = own.adapt == "head" and own.steps > 0 and not getattr(own.inner_solver(), "closed_form", False)
        if not (steps and own.loss in (AUTO, "cross_entropy") and signature(self.source.train, config.train.ways).by_class):
            return with_("model"), []
        if not self.allowed or config.train.iterations < WORTH:
            return with_("shared"), []
        options = {name: with_(name) for name in STARTS}
        if self.steps_open:
            options[WITHOUT] = replace(options["prototypes"], learner=replace(options["prototypes"].learner, steps=0))
        tried = {name: self._validated(self.with_rate(one)[0]) for name, one in options.items()}
        best = max(tried, key=tried.__getitem__)
        if tried[best] == FAILED:
            return with_("shared"), []
        chosen = f"start={options[best].learner.start}" + (", steps=0" if best == WITHOUT else "")
        return options[best], [f"{chosen}: {self._said(config, tried)}"]

    def with_rate(self, config: RunConfig) -> tuple[RunConfig, MeasuredRate | None]:
        """The step size measured before training, where it is open."""
        if not config.learner.measures_lr:
            return config, None
        found = measure_lr(self.learner_of(config), self.source.train, **config.train.probe())
        return _at(config, found.lr), found

    def checked(self, config: RunConfig) -> tuple[RunConfig, list[str]]:
        """The step size after a short training with it, and with twice and four times of it where that validates better.

        What is measured before training is right for weights that nothing has trained yet, and can be too cautious. Only larger sizes are
        tried: a short training flatters small ones (Wu, Ren, Liao and Grosse, ICLR 2018, arXiv 1803.02021), and where halves were tried
        too, five of the seven that it preferred ended worse (docs/choosing.md).
        """
        if not self.allowed or config.train.iterations // SHARE < FEWEST or not isinstance(config.learner.lr, float):
            return config, []
        measured = best = config.learner.lr
        tried = {f"{best:g}": self._validated(config)}
        for _ in range(MOVES):
            lr = float(f"{2 * best:.2g}")
            value = tried[f"{lr:g}"] = self._validated(_at(config, lr))
            before = tried[f"{best:g}"]
            if value <= before + (GAIN if self.metric == "accuracy" else OF_ERROR * abs(before)):
                break
            best = lr
        if tried[f"{best:g}"] == FAILED:
            return config, []
        kept = "stays" if best == measured else "is better"
        return _at(config, best), [f"lr={best:g} {kept}: {self._said(config, tried)}"]

    def _validated(self, config: RunConfig) -> float:
        """The best validation of a short training, as the best weights are what is kept; more is better."""
        own = config.learner
        key = (own.start, own.steps, 0.0 if own.steps == 0 else float(own.lr))
        if key not in self.found:
            steps = _steps(config)
            settings = replace(config.train, iterations=steps, validate_every=steps, schedule="constant", schedule_options="")
            try:
                run = train(self.learner_of(config), self.source, settings, quiet=True, ranks=ALONE)
            except DivergenceError:
                self.found[key] = FAILED
            else:
                self.metric = run.metric
                sign = 1 if run.metric == "accuracy" else -1
                self.found[key] = max(sign * entry["validation"] for entry in run.history if "validation" in entry)
        return self.found[key]

    def _said(self, config: RunConfig, tried: dict[str, float]) -> str:
        values = ", ".join(f"{n} {'diverged' if v == FAILED else show(self.metric, abs(v))}" for n, v in tried.items())
        return f"validation {self.metric} within {_steps(config)} steps with {values}"


def _steps(config: RunConfig) -> int:
    return min(STEPS, max(FEWEST, config.train.iterations // SHARE))


def _at(config: RunConfig, lr: Any) -> RunConfig:
    return replace(config, learner=replace(config.learner, lr=lr))
