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
from headstart.data.episodes import Episodes
from headstart.data.store import Source
from headstart.errors import CheckpointError, DivergenceError
from headstart.evaluation import estimate_batch_norm, evaluate
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
        best: best validation accuracy, and the iteration it was reached at.
        seconds: time spent, in all, over resumed parts too.
        interrupted: whether it was stopped before the end.
        history: the lines of metrics.jsonl.
        out: the run folder, or None.
    """

    iterations: int = 0
    best: tuple[float, int] = (-1.0, 0)
    seconds: float = 0.0
    interrupted: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    out: str | None = None

    def __str__(self) -> str:
        how = "stopped" if self.interrupted else "finished"
        where = f"; in {self.out}" if self.out else ""
        best = f"best validation {100 * self.best[0]:.2f} % at step {self.best[1]}" if self.best[1] else "not validated yet"
        return f"{how} after {self.iterations} steps, {self.seconds:.0f} s; {best}{where}"

    def save(self, path: str | Path) -> None:
        """Writes everything as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")


def train(
    learner: MetaLearner,
    data: Source,
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
        data: training and validation classes.
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
    episodes = Episodes(
        data.train,
        config.ways,
        config.shots,
        config.queries,
        config.tasks,
        config.seed,
        "train",
        config.sampling,
        config.pool_classes or None,
        config.pool_examples or None,
        BY_NAME[config.augment],
    )
    validation = _validation_settings(data, config)
    folder = None if out is None else Path(out)
    run = Run(out=None if out is None else str(out))
    optimizer = torch.optim.AdamW(list(learner.parameters().values()), lr=config.outer_lr, weight_decay=config.weight_decay)
    if folder is not None:
        checkpoint.prepare_folder(folder)
        if resume:
            run = _resume(folder, learner, optimizer, run)
        elif (folder / LAST).exists():
            raise CheckpointError(f"{str(folder)!r} holds a run already; go on with it by --resume, or choose another folder with --out")
    elif resume:
        raise CheckpointError("resume=True needs the folder of the run: give out")

    progress = Progress(config.iterations, run.iterations, config.tasks, quiet)
    begin, before = time.monotonic(), run.seconds
    best: dict[str, torch.Tensor] = {}

    def keep(name: str) -> None:
        run.seconds = before + time.monotonic() - begin
        if folder is not None:
            state = {"iteration": run.iterations, "best": run.best, "seconds": run.seconds}
            checkpoint.save(folder / name, learner, optimizer if name == LAST else None, state)

    try:
        if run.iterations == 0:
            keep(LAST)
        with _stop_signal() as stopped, _metrics(folder, run) as record:
            while run.iterations < config.iterations and not stopped.is_set():
                stats, norm = _outer_step(learner, optimizer, episodes, config, run, folder)
                record({"step": run.iterations, "loss": stats.loss, "accuracy": stats.accuracy, "gradient": norm})
                progress.step(stats.loss, stats.accuracy)
                if run.iterations % config.validate_every == 0 or run.iterations == config.iterations:
                    estimate_batch_norm(learner, data.train)
                    result = evaluate(learner, data.validation, **validation)
                    record({"step": run.iterations, "validation": result.mean, "ci95": result.ci95})
                    progress.note(f"validation at step {run.iterations}: {100 * result.mean:.2f} ± {100 * result.ci95:.2f} %")
                    if result.mean > run.best[0]:
                        run.best = (result.mean, run.iterations)
                        keep(BEST)
                        if folder is None:
                            best = {k: v.detach().clone() for k, v in checkpoint.tensors_of(learner).items()}
                    keep(LAST)
            run.interrupted = run.iterations < config.iterations
            if run.interrupted:
                keep(LAST)
    finally:
        progress.close()
    run.seconds = before + time.monotonic() - begin
    if folder is not None and (folder / BEST).exists():
        checkpoint.load(folder / BEST, learner)
    with torch.no_grad():
        for name, value in best.items():
            checkpoint.tensors_of(learner)[name].copy_(value)
    return run


def _outer_step(
    learner: MetaLearner, optimizer: torch.optim.Optimizer, episodes: Episodes, config: TrainConfig, run: Run, folder: Path | None
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


def _validation_settings(data: Source, config: TrainConfig) -> dict[str, Any]:
    """The validation protocol, tried out before any work: it must fit the validation classes."""
    queries = max(1, min(15, min(data.validation.counts) - config.shots))
    Episodes(data.validation, config.ways, config.shots, queries)
    return {"ways": config.ways, "shots": config.shots, "queries": queries, "episodes": config.validation_episodes, "seed": 1}


def _resume(folder: Path, learner: MetaLearner, optimizer: torch.optim.Optimizer, run: Run) -> Run:
    state = checkpoint.load(folder / LAST, learner, optimizer)
    run.iterations, run.best, run.seconds = state["iteration"], (state["best"][0], state["best"][1]), state["seconds"]
    metrics = folder / METRICS
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # the line that was being written when the process ended
            continue
        if entry["step"] <= run.iterations:
            run.history.append(entry)
    return run


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
