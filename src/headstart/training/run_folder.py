"""What a run leaves behind: what it did, its checkpoints and its metrics; and how it goes on from them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from headstart.container import append_line, read_lines, understood, write_json, write_text
from headstart.errors import CheckpointError
from headstart.evaluation import Evaluation
from headstart.evaluation.result import show
from headstart.keeping import tensors_of
from headstart.learner import MetaLearner
from headstart.ranks import ALONE, Ranks
from headstart.training import checkpoint
from headstart.training.holding import LEFTOVER, LOCK
from headstart.training.outer import Outer, OuterConfig

LAST, BEST, METRICS, CONFIG = "last.safetensors", "best.safetensors", "metrics.jsonl", "config.json"
PRETRAINED = "pretrained"
"""The folder, within a run's own, of what came before it."""
LOGS = "logs"
"""The folder in a run folder in which loggers keep what they keep."""


@dataclass
class Run:
    """What training did.

    Args:
        iterations: outer steps taken, in all.
        best: the best validation result, and the iteration it was reached at; None before the first validation.
        metric: what was validated: ``"accuracy"``, or ``"squared error"``, of which less is better.
        seconds: time spent, in all, over resumed parts too.
        training_seconds: the part of it that outer steps took, batches included: without validation, observers and checkpoints.
        interrupted: whether it was stopped before the end.
        history: the lines of metrics.jsonl.
        out: the run folder, or None.
        notes: what there was to say when it went on from a checkpoint.
        stopped: why it ended before its last step, where it did so by itself.

    Example:
        >>> import headstart as hs
        >>> learner = hs.maml(hs.models.mlp(features=1, ways=1), steps=1, lr=0.01, loss="squared_error")
        >>> config = hs.TrainConfig(shots=5, queries=5, tasks=2, iterations=3, validation_episodes=4)
        >>> run = hs.train(learner, hs.data.load("sinusoid"), config, quiet=True)
        >>> run.iterations, run.metric, run.stopped
        (3, 'squared error', '')
        >>> import tempfile
        >>> run.save(tempfile.mkdtemp() + "/run.json")
    """

    iterations: int = 0
    best: tuple[float, int] | None = None
    metric: str = "accuracy"
    seconds: float = 0.0
    training_seconds: float = 0.0
    interrupted: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    out: str | None = None
    notes: list[str] = field(default_factory=list)
    stopped: str = ""

    def __str__(self) -> str:
        how = "stopped" if self.interrupted else "finished"
        where = f"; in {self.out}" if self.out else ""
        best = "not validated yet"
        if self.best is not None:
            best = f"best validation {self.metric} {show(self.metric, self.best[0])} at step {self.best[1]}"
        return f"{how} after {self.iterations} steps, {self.seconds:.0f} s; {best}{where}"

    def save(self, path: str | Path) -> None:
        """Writes everything as JSON."""
        write_json(path, asdict(self))


def check_free(folder: Path) -> None:
    """Refuses a folder that a run has been kept in.

    Raises:
        CheckpointError: it is one.
    """
    if checkpoint.exists(folder / LAST):
        raise CheckpointError(f"{str(folder)!r} holds a run already; go on with it by --resume, or choose another folder with --out")


@dataclass
class Keeper:
    """Keeps the last and the best weights: in a folder, or the best alone in memory."""

    learner: MetaLearner
    outer: Outer
    folder: Path | None
    run: Run
    callbacks: Sequence[checkpoint.Stateful] = ()
    ranks: Ranks = ALONE
    before: float = 0.0  # seconds of earlier parts of the run
    begin: float = field(default_factory=time.monotonic)
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)  # checkpoints in the folder that are not known to be good

    @classmethod
    def open(
        cls,
        learner: MetaLearner,
        config: OuterConfig,
        out: str | Path | None,
        resume: bool,
        callbacks: Sequence[checkpoint.Stateful] = (),
        ranks: Ranks = ALONE,
    ) -> Keeper:
        """A new run, or one that goes on.

        Raises:
            CheckpointError: the folder cannot be used.
        """
        if out is None:
            if resume:
                raise CheckpointError("resume=True needs the folder of the run: give out")
            return cls(learner, Outer(learner, config), None, Run(), callbacks, ranks)
        folder, run = Path(out), Run(out=str(out))
        if resume and ranks.first(lambda: nothing_kept(folder)):
            run.notes.append(f"nothing had been kept in {str(folder)!r} yet: the run starts from its beginning")
            resume = False
        if not resume:
            ranks.first(lambda: check_free(folder))
            return cls(learner, Outer(learner, config), folder, run, callbacks, ranks)
        outer, damaged = _resume(folder, learner, config, run, callbacks, ranks)
        return cls(learner, outer, folder, run, callbacks, ranks, run.seconds, damaged=damaged)

    def keep(self, name: str) -> None:
        """Writes a checkpoint, where there is a folder."""
        run = self.run
        run.seconds = self.before + time.monotonic() - self.begin
        if self.folder is not None:
            state: dict[str, Any] = {"iteration": run.iterations, "best": run.best, "metric": run.metric}
            state |= {"seconds": run.seconds, "training_seconds": run.training_seconds}
            whole = name not in self.damaged
            path, is_last = self.folder / name, name == LAST
            optimizer, others = (self.outer.optimizer, self.callbacks) if is_last else (None, ())
            state |= {"outer": self.outer.state()} if is_last else {}
            self.ranks.first(lambda: checkpoint.save(path, self.learner, optimizer, state, others, whole))
            self.damaged.discard(name)

    def validated(self, result: Evaluation) -> None:
        """Keeps the weights, twice if they are the best so far."""
        run, sign = self.run, 1 if result.higher_is_better else -1
        run.metric = result.metric
        if run.best is None or sign * result.mean > sign * run.best[0]:
            run.best = (result.mean, run.iterations)
            self.keep(BEST)
            if self.folder is None:
                self.best = {k: v.detach().clone() for k, v in tensors_of(self.learner).items()}
        self.keep(LAST)

    def load_best(self) -> None:
        """Puts the best weights back into the learner."""
        self.run.seconds = self.before + time.monotonic() - self.begin
        folder = self.folder
        if folder is not None and self.ranks.first(lambda: checkpoint.exists(folder / BEST)):
            checkpoint.load(folder / BEST, self.learner, ranks=self.ranks)
        with torch.no_grad():
            for name, value in self.best.items():
                tensors_of(self.learner)[name].copy_(value)


def nothing_kept(folder: Path) -> bool:
    """Whether a run was killed in this folder before it kept anything: in it is nothing but a config, metrics and leftovers."""
    return all(path.name in (CONFIG, METRICS, LOGS, PRETRAINED, LOCK) or LEFTOVER.fullmatch(path.name) for path in folder.iterdir())


def _resume(
    folder: Path, learner: MetaLearner, config: OuterConfig, run: Run, callbacks: Sequence[checkpoint.Stateful], ranks: Ranks
) -> tuple[Outer, set[str]]:
    """Goes on with a run; the outer loop's state, and the checkpoints that are damaged."""
    saved = ranks.first(lambda: checkpoint.read(folder / LAST))
    state = saved.state
    with understood(saved.path):
        outer = Outer(learner, config, state["iteration"], state.get("outer"))
        saved.into(learner, outer.optimizer, callbacks, all_there=ranks.is_first)
        run.iterations, run.metric, run.seconds = state["iteration"], state["metric"], state["seconds"]
        run.training_seconds = state.get("training_seconds", 0.0)
        run.best = None if state["best"] is None else (state["best"][0], state["best"][1])
    run.notes += [note for note in (saved.note, outer.note) if note]
    damaged = {LAST} if saved.note else set()
    best, lost = ranks.first(lambda: _best(folder))
    if lost:
        run.notes.append(lost)
        run.best = best
        damaged.add(BEST)
    entries, missed = ranks.first(lambda: read_lines(folder / METRICS))
    for number in missed:
        run.notes.append(f"line {number} of {str(folder / METRICS)!r} is damaged, and left out; the weights do not depend on it")
    for entry in entries:
        # What was before the first step is done again.
        if isinstance(step := entry.get("step"), int) and step <= run.iterations and (run.iterations or run.best):
            run.history.append(entry)
    return outer, damaged


def _best(folder: Path) -> tuple[tuple[float, int] | None, str]:
    """The best result so far by its own checkpoint, and what to say where that is damaged; "" where nothing is."""
    if not checkpoint.exists(folder / BEST):
        return None, ""
    try:
        best = checkpoint.read(folder / BEST)
    except CheckpointError as error:
        return None, f"{error}; the best so far is lost, and the next validation is the best"
    result, step = best.state["best"]
    return (result, step), best.note


@contextmanager
def recording(folder: Path | None, run: Run) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that notes a line, in the history and in metrics.jsonl."""
    if folder is None:
        yield run.history.append
        return
    path = folder / METRICS
    write_text(path, "".join(json.dumps(e) + "\n" for e in run.history))

    def record(entry: dict[str, Any]) -> None:
        run.history.append(entry)
        append_line(path, json.dumps(entry))

    yield record
