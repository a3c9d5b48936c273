"""What a run leaves behind: what it did, its checkpoints and its metrics; and how it goes on from them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from headstart.container import write_atomically
from headstart.errors import CheckpointError
from headstart.evaluation import Evaluation
from headstart.evaluation.result import show
from headstart.keeping import tensors_of
from headstart.learner import MetaLearner
from headstart.ranks import ALONE, Ranks
from headstart.training import checkpoint
from headstart.training.config import ValidationConfig
from headstart.training.outer import Outer, OuterConfig
from headstart.training.stopping import reason_to_stop

LAST, BEST, METRICS, CONFIG = "last.safetensors", "best.safetensors", "metrics.jsonl", "config.json"
PRETRAINED = "pretrained"
"""The folder, within a run's own, of what came before it."""


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

    def ended(self, config: ValidationConfig) -> bool:
        """Whether there is a reason to end before the last step, which is noted."""
        self.stopped = reason_to_stop(self.history, self.metric, config.patience, config.validate_every)
        return bool(self.stopped)

    def __str__(self) -> str:
        how = "stopped" if self.interrupted else "finished"
        where = f"; in {self.out}" if self.out else ""
        best = "not validated yet"
        if self.best is not None:
            best = f"best validation {self.metric} {show(self.metric, self.best[0])} at step {self.best[1]}"
        return f"{how} after {self.iterations} steps, {self.seconds:.0f} s; {best}{where}"

    def save(self, path: str | Path) -> None:
        """Writes everything as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")


@dataclass
class Keeper:
    """Keeps the last and the best weights: in a folder, or the best alone in memory."""

    learner: MetaLearner
    outer: Outer
    folder: Path | None
    run: Run
    ranks: Ranks = ALONE
    before: float = 0.0  # seconds of earlier parts of the run
    begin: float = field(default_factory=time.monotonic)
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def open(cls, learner: MetaLearner, config: OuterConfig, out: str | Path | None, resume: bool, ranks: Ranks = ALONE) -> Keeper:
        """A new run, or one that goes on.

        Raises:
            CheckpointError: the folder cannot be used.
        """
        if out is None:
            if resume:
                raise CheckpointError("resume=True needs the folder of the run: give out")
            return cls(learner, Outer(learner, config), None, Run(), ranks)
        folder, run = Path(out), Run(out=str(out))
        if resume and ranks.first(lambda: nothing_kept(folder)):
            run.notes.append(f"nothing had been kept in {str(folder)!r} yet: the run starts from its beginning")
            resume = False
        ranks.first(lambda: checkpoint.prepare_folder(folder))
        if resume:
            return cls(learner, _resume(folder, learner, config, run, ranks), folder, run, ranks, run.seconds)
        if ranks.first((folder / LAST).exists):
            raise CheckpointError(f"{str(folder)!r} holds a run already; go on with it by --resume, or choose another folder with --out")
        return cls(learner, Outer(learner, config), folder, run, ranks)

    def keep(self, name: str) -> None:
        """Writes a checkpoint, where there is a folder."""
        run = self.run
        run.seconds = self.before + time.monotonic() - self.begin
        if self.folder is not None:
            state: dict[str, Any] = {"iteration": run.iterations, "best": run.best, "metric": run.metric}
            state |= {"seconds": run.seconds, "training_seconds": run.training_seconds}
            if name == LAST:
                state["outer"] = self.outer.state()
            path, optimizer = self.folder / name, self.outer.optimizer if name == LAST else None
            self.ranks.first(lambda: checkpoint.save(path, self.learner, optimizer, state))

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
        if self.folder is not None and self.ranks.first((self.folder / BEST).exists):
            checkpoint.load(self.folder / BEST, self.learner, ranks=self.ranks)
        with torch.no_grad():
            for name, value in self.best.items():
                tensors_of(self.learner)[name].copy_(value)


def nothing_kept(folder: Path) -> bool:
    """Whether a run was killed in this folder before it kept anything: the folder is there, and in it nothing but a config, metrics
    and leftovers.

    A folder that is not there is no such run: its name is more likely misspelt.

    Raises:
        CheckpointError: there is no such folder.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint {str(folder / LAST)!r}; give the folder of a run that has written one")
    return all(path.name in (CONFIG, METRICS, PRETRAINED) or checkpoint.LEFTOVER.fullmatch(path.name) for path in folder.iterdir())


def _resume(folder: Path, learner: MetaLearner, config: OuterConfig, run: Run, ranks: Ranks) -> Outer:
    saved = ranks.first(lambda: checkpoint.read_state(folder / LAST))
    outer = Outer(learner, config, saved["iteration"], saved.get("outer"))
    state = checkpoint.load(folder / LAST, learner, outer.optimizer, ranks)
    run.iterations, run.metric, run.seconds = state["iteration"], state["metric"], state["seconds"]
    run.training_seconds = state.get("training_seconds", 0.0)
    run.best = None if state["best"] is None else (state["best"][0], state["best"][1])
    run.notes += [outer.note] if outer.note else []
    metrics = folder / METRICS
    for line in ranks.first(lambda: metrics.read_text().splitlines() if metrics.exists() else []):
        try:
            entry = json.loads(line)
        except ValueError:  # the line that was being written when the process ended
            continue
        if entry["step"] <= run.iterations and (run.iterations or run.best):  # what was before the first step is done again
            run.history.append(entry)
    return outer


@contextmanager
def recording(folder: Path | None, run: Run) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that notes a line, in the history and in metrics.jsonl."""
    if folder is None:
        yield run.history.append
        return
    path = folder / METRICS
    write_atomically(path, lambda p: p.write_text("".join(json.dumps(e) + "\n" for e in run.history)))
    with path.open("a", buffering=1) as file:

        def record(entry: dict[str, Any]) -> None:
            run.history.append(entry)
            file.write(json.dumps(entry) + "\n")

        yield record
