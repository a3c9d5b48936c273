"""Who takes part in training beside the learner: schedules, stopping, observers, loggers, and one's own."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from headstart.errors import CallbackError, ConfigError, HeadstartError
from headstart.evaluation import Evaluation
from headstart.learner import MetaLearner
from headstart.training.config import TrainConfig
from headstart.training.run_folder import Run

log = logging.getLogger("headstart")


@dataclass(frozen=True)
class Training:
    """What a callback sees of training.

    Args:
        learner: what is trained.
        config: the outer loop's settings.
        run: what was done so far.

    Example:
        >>> import headstart as hs
        >>> learner = hs.protonet(hs.models.mlp(features=4, ways=2))
        >>> Training(learner, hs.TrainConfig(iterations=10), hs.Run(iterations=3)).step
        3
    """

    learner: MetaLearner
    config: TrainConfig
    run: Run

    @property
    def step(self) -> int:
        """Outer steps that were taken."""
        return self.run.iterations


class Callback:
    """Takes part in training: a subclass says what it does at which moment, and leaves the rest alone.

    None of it counts as training time. Random numbers that it draws, and running statistics that it moves, change nothing. A run that is
    resumed must come to what it would have come to: make what you do a function of the step and of ``run.history``, which are kept, or keep
    what else you need by :meth:`state` and :meth:`load_state`.

    What a callback raises ends the run, with the callback's name; the checkpoint before it stays, and the run can be resumed.

    Example:
        >>> import headstart as hs
        >>> class Watch(Callback):
        ...     def __init__(self):
        ...         self.steps, self.lines, self.best = 0, 0, 0.0
        ...     def begin(self, training):
        ...         print("from step", training.step)
        ...     def before(self, training):
        ...         self.steps += 1
        ...     def step(self, training):
        ...         return {"half": True} if 2 * training.step == training.config.iterations else None
        ...     def metrics(self, training, line):
        ...         self.lines += 1
        ...     def validation(self, training, result):
        ...         self.best = result.mean
        ...     def reason_to_stop(self, training):
        ...         return "enough" if training.step == 3 else ""
        ...     def end(self, training):
        ...         print(self.name, "saw", self.steps, "steps and", self.lines, "lines")
        ...     def state(self):
        ...         return {"steps": self.steps}
        ...     def load_state(self, state):
        ...         self.steps = state["steps"]
        >>> learner = hs.maml(hs.models.mlp(features=1, ways=1), steps=1, lr=0.01, loss="squared_error")
        >>> config = hs.TrainConfig(shots=5, queries=5, tasks=2, iterations=4, validation_episodes=4)
        >>> run = hs.train(learner, hs.data.load("sinusoid"), config, quiet=True, callbacks=[Watch()])
        from step 0
        Watch saw 3 steps and 5 lines
        >>> run.stopped
        'enough'
    """

    @property
    def name(self) -> str:
        """What messages call it, and checkpoints keep its state under."""
        return type(self).__name__

    def begin(self, training: Training) -> None:
        """Before anything is done in this process, after a checkpoint was loaded where there was one."""

    def before(self, training: Training) -> None:
        """Before every outer step; ``training.step`` counts from 0."""

    def step(self, training: Training) -> Mapping[str, Any] | None:
        """After so many outer steps, 0 included; what it returns, which JSON can hold, is kept in the history as ``observed``.

        On a GPU the numbers of the last step may not be there yet: :meth:`metrics` gets them.
        """

    def metrics(self, training: Training, line: Mapping[str, Any]) -> None:
        """A line was added to the history and metrics.jsonl: of an outer step, a validation, or something observed."""

    def validation(self, training: Training, result: Evaluation) -> None:
        """After a validation, before a checkpoint is made."""

    def reason_to_stop(self, training: Training) -> str:
        """Why training ends now, asked before every outer step; "" to go on. The reason is said, and the best weights are kept."""
        return ""

    def end(self, training: Training) -> None:
        """At the end, the best weights in the learner; also where training broke off or failed, and then ``run.interrupted`` is true."""

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint keeps of it: tensors, and what JSON can hold, by name."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state` gave when the checkpoint was made; before :meth:`begin`."""


class Callbacks:
    """Calls all of them in turn, and says whose fault it was.

    Args:
        callbacks: in the order in which they are called.

    Raises:
        ConfigError: one of them is no callback.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        for callback in callbacks:
            if not isinstance(callback, Callback):
                what = f"the class {callback.__name__}; make one with ()" if isinstance(callback, type) else f"a {type(callback).__name__}"
                raise ConfigError(f"callbacks has {what}; give instances of subclasses of headstart.Callback")
        self.all = tuple(callbacks)

    @contextmanager
    def taking_part(self, training: Training) -> Iterator[Self]:
        """Between their beginning and their end, which comes in any case to those that have begun."""
        self.training, begun = training, []
        try:
            for callback in self.all:
                with self._named(callback, "begin"):
                    callback.begin(training)
                begun.append(callback)
            yield self
        except BaseException:
            training.run.interrupted = True
            for callback in begun:
                try:
                    callback.end(training)
                except Exception as error:
                    log.warning("callback %s failed at the end, too: %s: %s", callback.name, type(error).__name__, error)
            raise
        for callback in self.all:
            with self._named(callback, "end"):
                callback.end(training)

    def before(self) -> None:
        """Before an outer step."""
        for callback in self.all:
            with self._named(callback, "before"):
                callback.before(self.training)

    def step(self) -> Iterator[dict[str, Any]]:
        """After an outer step: what those found that found something."""
        for callback in self.all:
            with self._named(callback, "step"):
                found = callback.step(self.training)
                if found is not None and not isinstance(found, Mapping):
                    raise ConfigError(f"it returned a {type(found).__name__}; return a mapping of what was observed, or None")
                json.dumps(found if found is None else dict(found))
            if found is not None:
                yield dict(found)

    def metrics(self, line: Mapping[str, Any]) -> None:
        """A line of the history."""
        for callback in self.all:
            with self._named(callback, "metrics"):
                callback.metrics(self.training, line)

    def validation(self, result: Evaluation) -> None:
        """After a validation."""
        for callback in self.all:
            with self._named(callback, "validation"):
                callback.validation(self.training, result)

    def reason_to_stop(self) -> str:
        """The first reason that one of them has, or ""."""
        for callback in self.all:
            with self._named(callback, "reason_to_stop"):
                reason = callback.reason_to_stop(self.training) or ""
                if not isinstance(reason, str):
                    raise ConfigError(f"it returned {reason!r}; return the reason as text, or an empty text to go on")
            if reason:
                return reason
        return ""

    @contextmanager
    def _named(self, callback: Callback, moment: str) -> Iterator[None]:
        """An error of a callback under its name; one of headstart's own keeps its kind."""
        try:
            yield
        except Exception as error:
            kind = type(error) if isinstance(error, HeadstartError) else CallbackError
            what = str(error) if isinstance(error, HeadstartError) else f"{type(error).__name__}: {error}"
            out = self.training.run.out
            kept = f" When that is mended, the run in {out!r} can be resumed" if out is not None else ""
            raise kind(f"callback {callback.name!r} failed in {moment}() at step {self.training.step}: {what}.{kept}") from error
