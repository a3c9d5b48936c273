"""The outer loop of Algorithm 1: draw tasks, take the meta-gradient, step; validate, checkpoint, resume."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from headstart.data.augment import BY_NAME
from headstart.data.episode_list import EpisodeList
from headstart.data.episodes import Sampler
from headstart.data.sampling import Data, sampler_of, usual_queries
from headstart.errors import CheckpointError, DivergenceError
from headstart.evaluation import Evaluation, estimate_batch_norm, evaluate
from headstart.evaluation.result import show
from headstart.learner import MetaLearner, MetaStats
from headstart.training import checkpoint
from headstart.training.config import TrainConfig
from headstart.training.progress import Progress

LAST, BEST, METRICS = "last.safetensors", "best.safetensors", "metrics.jsonl"


@dataclass
class Run:
    """What training did.

    Args:
        iterations: outer steps taken, in all.
        best: the best validation result, and the iteration it was reached at; None before the first validation.
        metric: what was validated: ``"accuracy"``, or ``"squared error"``, of which less is better.
        seconds: time spent, in all, over resumed parts too.
        interrupted: whether it was stopped before the end.
        history: the lines of metrics.jsonl.
        out: the run folder, or None.
    """

    iterations: int = 0
    best: tuple[float, int] | None = None
    metric: str = "accuracy"
    seconds: float = 0.0
    interrupted: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    out: str | None = None

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


def train(
    learner: MetaLearner,
    data: Data,
    config: TrainConfig | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Run:
    """Meta-trains a learner in place; at the end it holds the weights that validated best.

    Denormal numbers are flushed to zero in this process (``torch.set_flush_denormal``): without, second-order training on a
    CPU becomes five to ten times slower once small values turn subnormal.

    Args:
        learner: what to train.
        data: training and validation tasks: a source, or an object whose ``train`` and ``validation`` are splits, or samplers of
            your own, with ``tasks`` and ``batch(index, device)``.
        config: the outer loop's settings.
        out: a folder for checkpoints and metrics; None keeps nothing on disk.
        resume: go on from the last checkpoint in ``out``; the result is the same as without the interruption, bit for bit.
        quiet: show no progress.

    Returns:
        The run. Ctrl-C ends it cleanly, with a checkpoint; a second Ctrl-C at once.

    Raises:
        DivergenceError: the loss or the meta-gradient is not finite; the last good checkpoint stays.
        CheckpointError: the folder cannot be written, or there is nothing to resume from.
        DataError: the data is too small for the tasks.
    """
    config = config or TrainConfig()
    torch.set_flush_denormal(True)
    episodes, validation = training_sampler(data, config), validation_settings(data, config)
    keeper = _Keeper.open(learner, config, out, resume)
    run = keeper.run
    progress = Progress(config.iterations, run.iterations, episodes.tasks, quiet)
    try:
        if run.iterations == 0:
            keeper.keep(LAST)
        with _stop_signal() as stopped, _metrics(keeper.folder, run) as record:
            while run.iterations < config.iterations and not stopped.is_set():
                stats, norm = _outer_step(learner, keeper.optimizer, episodes, config, run, keeper.folder)
                record({"step": run.iterations, "loss": stats.loss, "accuracy": stats.accuracy, "gradient": norm})
                progress.step(stats.loss, stats.accuracy)
                if run.iterations % config.validate_every == 0 or run.iterations == config.iterations:
                    estimate_batch_norm(learner, data.train)
                    result = evaluate(learner, data.validation, **validation)
                    record({"step": run.iterations, "validation": result.mean, "ci95": result.ci95})
                    progress.note(f"validation at step {run.iterations}: {result.show(result.mean)} ± {result.show(result.ci95)}")
                    keeper.validated(result)
            run.interrupted = run.iterations < config.iterations
            if run.interrupted:
                keeper.keep(LAST)
    finally:
        progress.close()
    keeper.load_best()
    return run


def training_sampler(data: Data, config: TrainConfig) -> Sampler:
    """What training draws its batches from.

    Raises:
        DataError, ConfigError: the data is too small, or not what the config is for.
    """
    return sampler_of(
        data.train,
        ways=(config.fewest_ways, config.ways) if config.fewest_ways else config.ways,
        shots=(config.fewest_shots, config.shots) if config.fewest_shots else config.shots,
        queries=config.queries,
        tasks=config.tasks,
        seed=config.seed,
        kind=config.sampling,
        pool_classes=config.pool_classes or None,
        pool_examples=config.pool_examples or None,
        augment=BY_NAME[config.augment],
    )


def _outer_step(
    learner: MetaLearner, optimizer: torch.optim.Optimizer, episodes: Sampler, config: TrainConfig, run: Run, folder: Path | None
) -> tuple[MetaStats, float]:
    """One iteration of Algorithm 1's outer loop: the statistics, and the norm of the meta-gradient."""
    i, parameters = run.iterations, learner.parameters()
    learner.model.train()
    # Everything random in a step comes from (seed, step), so a resumed run draws what it would have drawn.
    torch.manual_seed((config.seed * 1_000_003 + i) % 2**63)
    grads, stats = learner.meta_gradient(episodes.batch(i, next(iter(parameters.values())).device))
    norm = float(torch.stack([g.norm() for g in grads.values()]).norm())
    if not (math.isfinite(stats.loss) and math.isfinite(norm)):
        raise DivergenceError(_divergence(i, stats.loss, norm, folder))
    scale = min(1.0, config.clip / (norm + 1e-12))
    for name, parameter in parameters.items():
        parameter.grad = grads[name] * scale
    for group in optimizer.param_groups:
        group["lr"] = config.rate(i)
    optimizer.step()
    optimizer.zero_grad()
    run.iterations += 1
    return stats, norm


def validation_settings(data: Data, config: TrainConfig) -> dict[str, Any]:
    """The validation protocol, tried out before any work: it must fit the validation tasks."""
    queries = usual_queries(data.validation, config.shots)
    settings: dict[str, Any] = {"ways": config.ways, "shots": config.shots, "queries": queries, "seed": 1}
    sampler_of(data.validation, **settings, stream="validation")
    if not isinstance(data.validation, EpisodeList):
        settings["episodes"] = config.validation_episodes
    return settings


@dataclass
class _Keeper:
    """Keeps the last and the best weights: in a folder, or the best alone in memory."""

    learner: MetaLearner
    optimizer: torch.optim.Optimizer
    folder: Path | None
    run: Run
    before: float = 0.0  # seconds of earlier parts of the run
    begin: float = field(default_factory=time.monotonic)
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def open(cls, learner: MetaLearner, config: TrainConfig, out: str | Path | None, resume: bool) -> _Keeper:
        """A new run, or one that goes on."""
        optimizer = torch.optim.AdamW(list(learner.parameters().values()), lr=config.outer_lr, weight_decay=config.weight_decay)
        if out is None:
            if resume:
                raise CheckpointError("resume=True needs the folder of the run: give out")
            return cls(learner, optimizer, None, Run())
        folder, run = Path(out), Run(out=str(out))
        checkpoint.prepare_folder(folder)
        if resume:
            _resume(folder, learner, optimizer, run)
        elif (folder / LAST).exists():
            raise CheckpointError(f"{str(folder)!r} holds a run already; go on with it by --resume, or choose another folder with --out")
        return cls(learner, optimizer, folder, run, run.seconds)

    def keep(self, name: str) -> None:
        """Writes a checkpoint, where there is a folder."""
        run = self.run
        run.seconds = self.before + time.monotonic() - self.begin
        if self.folder is not None:
            state = {"iteration": run.iterations, "best": run.best, "metric": run.metric, "seconds": run.seconds}
            checkpoint.save(self.folder / name, self.learner, self.optimizer if name == LAST else None, state)

    def validated(self, result: Evaluation) -> None:
        """Keeps the weights, twice if they are the best so far."""
        run, sign = self.run, 1 if result.higher_is_better else -1
        run.metric = result.metric
        if run.best is None or sign * result.mean > sign * run.best[0]:
            run.best = (result.mean, run.iterations)
            self.keep(BEST)
            if self.folder is None:
                self.best = {k: v.detach().clone() for k, v in checkpoint.tensors_of(self.learner).items()}
        self.keep(LAST)

    def load_best(self) -> None:
        """Puts the best weights back into the learner."""
        self.run.seconds = self.before + time.monotonic() - self.begin
        if self.folder is not None and (self.folder / BEST).exists():
            checkpoint.load(self.folder / BEST, self.learner)
        with torch.no_grad():
            for name, value in self.best.items():
                checkpoint.tensors_of(self.learner)[name].copy_(value)


def _resume(folder: Path, learner: MetaLearner, optimizer: torch.optim.Optimizer, run: Run) -> None:
    state = checkpoint.load(folder / LAST, learner, optimizer)
    run.iterations, run.metric, run.seconds = state["iteration"], state["metric"], state["seconds"]
    run.best = None if state["best"] is None else (state["best"][0], state["best"][1])
    metrics = folder / METRICS
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # the line that was being written when the process ended
            continue
        if entry["step"] <= run.iterations:
            run.history.append(entry)


@contextmanager
def _metrics(folder: Path | None, run: Run) -> Iterator[Any]:
    """A function that notes a line, in the history and in metrics.jsonl."""
    if folder is None:
        yield run.history.append
        return
    path = folder / METRICS
    checkpoint.write_atomically(path, lambda p: p.write_text("".join(json.dumps(e) + "\n" for e in run.history)))
    with path.open("a", buffering=1) as file:

        def record(entry: dict[str, Any]) -> None:
            run.history.append(entry)
            file.write(json.dumps(entry) + "\n")

        yield record


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that a step is never cut in two; the second Ctrl-C interrupts at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(*_: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, previous)


def _divergence(iteration: int, loss: float, norm: float, folder: Path | None) -> str:
    kept = f" The last good checkpoint is {str(folder / LAST)!r}." if folder is not None and (folder / LAST).exists() else ""
    return (
        f"training diverged at step {iteration + 1}: loss {loss}, norm of the meta-gradient {norm}.{kept}"
        " Try a smaller inner lr, fewer inner steps, or a smaller outer_lr"
    )
