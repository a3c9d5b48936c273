"""The outer loop of Algorithm 1: draw tasks, take the meta-gradient, step; validate, checkpoint, resume."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstart.data.augment import BY_NAME
from headstart.data.drawing import Data, TaskSampler, sampler_of, usual_queries
from headstart.errors import DivergenceError
from headstart.evaluation import estimate_batch_norm, evaluate
from headstart.evaluation.batch_norm import training_mode
from headstart.keeping import tensors_of
from headstart.learner import MetaLearner
from headstart.measuring.rate import MeasuredRate, measure_lr
from headstart.meta_stats import MetaStats
from headstart.process import tune_process
from headstart.ranks import Ranks
from headstart.tasks import TaskBatch
from headstart.training import checkpoint
from headstart.training.batches import Batches
from headstart.training.callback import Callback, Callbacks, Training
from headstart.training.config import EpisodeConfig, TrainConfig
from headstart.training.determinism import deterministic
from headstart.training.divided import Division, check_alike
from headstart.training.holding import held
from headstart.training.pretraining import pretrained
from headstart.training.progress import Progress
from headstart.training.run_folder import BEST, LAST, METRICS, Keeper, Run, recording
from headstart.training.schedules import annealing
from headstart.training.stopping import Stopping
from headstart.types import Params

__all__ = ["BEST", "LAST", "METRICS", "Run", "train", "training_sampler", "validation_settings"]


def train(
    learner: MetaLearner,
    data: Data,
    config: TrainConfig | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
    ranks: Ranks | None = None,
) -> Run:
    """Meta-trains a learner in place; at the end it holds the weights that validated best.

    Denormal numbers are flushed to zero in this process, and freed memory is kept (:func:`~headstart.tune_process`).

    An inner step size "auto" is measured first (:func:`~headstart.measure_lr`); the learner then has the number, and the run's notes and
    checkpoints keep it.

    Batches are prepared one ahead (:class:`~headstart.training.batches.Batches`). On a GPU the loss of a step is read, and found to
    be finite, after the next step has begun; a gradient that is not finite is left out on the device, and never reaches the
    weights. Modules in evaluation mode within a model in training mode are frozen, and stay so; a model that is in evaluation mode
    as a whole is put into training mode.

    With ``pretrain`` the network first learns to tell all training classes apart, in a folder of its own within ``out``, and what stands
    before its last layer is where meta-training starts (:mod:`headstart.training.pretraining`).

    Within a process group of torch's that has several processes, each calls this with the same arguments: they share the tasks of every
    meta-batch and the episodes of validation, the first alone writes and prints, and all end with the same weights (docs/scaling.md).

    Args:
        learner: what to train.
        data: training and validation tasks: a source, or an object whose ``train`` and ``validation`` are splits, or samplers of
            your own, with ``tasks`` and ``batch(index, device)``.
        config: the outer loop's settings.
        out: a folder for checkpoints and metrics; None keeps nothing on disk.
        resume: go on from the last checkpoint in ``out``; the result is the same as without the interruption, bit for bit. Where a
            process was killed before it had written one, the run starts from its beginning; where it is damaged, it goes on from the one
            before. With more iterations than before, the outer step size goes without a jump onto the schedule of the longer run
            (:class:`~headstart.training.outer.Outer`), and the run's ``notes`` say so.
        quiet: show no progress.
        callbacks: who takes part beside the learner: schedules, observers, loggers, your own (:class:`~headstart.Callback`); with several
            processes in each of them, and what they find in the first is noted.
        ranks: who shares the work; None for all processes of torch's process group, and this one alone where there is none.

    Returns:
        The run. Ctrl-C ends it cleanly, with a checkpoint; a second Ctrl-C at once.

    Raises:
        DivergenceError: the loss or the meta-gradient is not finite; the last good checkpoint stays.
        CheckpointError: the folder cannot be written, or another process writes there; or there is nothing to resume from.
        DataError: the data is too small for the tasks.
        CallbackError: a callback failed; the last good checkpoint stays.
        RankError: another process ended, or has another learner, other data or settings.

    Example:
        >>> import headstart as hs
        >>> learner = hs.maml(hs.models.mlp(features=1, ways=1), steps=1, lr=0.01, loss="squared_error")
        >>> config = hs.TrainConfig(shots=5, queries=5, tasks=2, iterations=3, validation_episodes=4)
        >>> hs.train(learner, hs.data.load("sinusoid"), config, quiet=True).iterations
        3
    """
    config, ranks = config or TrainConfig(), Ranks.present() if ranks is None else ranks
    if learner.target_scale is None:
        learner.target_scale = getattr(data.train, "target_scale", None)
    tune_process()
    config.check(learner)
    episodes, validation = training_sampler(data, config), validation_settings(data, config)
    own = Callbacks([Stopping(), *annealing(config, config.iterations, learner.inner.steps), *callbacks])
    device = next(iter(learner.parameters().values())).device
    holding = nullcontext() if out is None else held(out, existing=resume, ranks=ranks)
    with holding, deterministic(config.deterministic, device):
        before = pretrained(train, learner, data, config, out, resume, quiet, ranks)
        if before is not None and before.interrupted:
            return before
        division = Division.of(config, episodes.tasks, ranks)
        draw = division.drawn(episodes, device)
        check_alike(division, learner, config, episodes)
        measured = _measured(learner, data, config, out, resume, ranks)
        keeper = Keeper.open(learner, config, out, resume, own.all, ranks)
        ranks.spread(tensors_of(learner).values())
        training_mode(learner)
        keeper.run.notes += [*([f"pretrained: {before}"] if before else []), *measured]
        run, progress = keeper.run, Progress(config.iterations, keeper.run.iterations, episodes.tasks, quiet or not ranks.is_first)
        for note in [*run.notes, *filter(None, [division.idle()])]:
            progress.note(note)
        with own.taking_part(Training(learner, config, run)):
            try:
                with (
                    _stop_signal() as stopped,
                    recording(keeper.folder if ranks.is_first else None, run) as record,
                    Batches(draw, config.iterations, episodes.prefetch) as batches,
                ):
                    steps = _Steps(keeper, config, division, batches, device, record, progress, own, stopped)
                    if run.iterations == 0:
                        steps.look()
                        keeper.keep(LAST)  # before the best, so that there is always something to go on from
                        if run.best is None:  # so that training never ends with less than it began with
                            steps.validate(data, validation)
                    while run.iterations < config.iterations and not steps.stop and steps.go_on():
                        steps.take()
                        steps.look()
                        if config.validates_at(run.iterations) or run.iterations == config.iterations:
                            steps.settle()
                            steps.validate(data, validation)
                    steps.settle()
                    run.interrupted = run.iterations < config.iterations and steps.go_on()
                    if run.stopped:
                        progress.note(run.stopped)
                    if run.interrupted:
                        keeper.keep(LAST)
            finally:
                progress.close()
            keeper.load_best()
    return run


def _measured(learner: MetaLearner, data: Data, config: TrainConfig, out: str | Path | None, resume: bool, ranks: Ranks) -> list[str]:
    """Measures a step size that is open, once in the life of a run; and says so."""

    def measured() -> MeasuredRate | None:
        if not learner.inner.undecided or (resume and out is not None and checkpoint.exists(Path(out) / LAST)):
            return None
        return measure_lr(learner, data.train, **config.probe())

    found = ranks.first(measured)
    if found is None:
        return []
    learner.use_lr(found.lr)
    return [str(found)]


def training_sampler(data: Data, config: EpisodeConfig) -> TaskSampler:
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


def validation_settings(data: Data, config: TrainConfig) -> dict[str, Any]:
    """The validation protocol, tried out before any work: it must fit the validation tasks."""
    queries = usual_queries(data.validation, config.shots)
    settings: dict[str, Any] = {"ways": config.ways, "shots": config.shots, "queries": queries, "seed": 1}
    if getattr(sampler_of(data.validation, **settings, stream="validation"), "size", None) is None:
        settings["episodes"] = config.validation_episodes
    return settings


class _Steps:
    """Takes outer steps and notes them; on a GPU, reading a step may trail by one, so that nobody waits for it."""

    def __init__(
        self,
        keeper: Keeper,
        config: TrainConfig,
        division: Division,
        batches: Batches[dict[int, TaskBatch]],
        device: torch.device,
        record: Callable[[dict[str, Any]], None],
        progress: Progress,
        callbacks: Callbacks,
        stopped: threading.Event,
    ) -> None:
        self.keeper, self.config, self.batches, self.write, self.progress = keeper, config, batches, record, progress
        self.callbacks, self.division, self.ranks, self.stopped = callbacks, division, division.ranks, stopped
        self.stop = self.ranks.any(stopped.is_set())  # agreed on in every step, so that all ranks end after the same one
        self.trailing = 0 if device.type == "cpu" else 1
        self.exact = torch.float32 if device.type == "mps" else torch.float64
        self.waiting: deque[tuple[int, MetaStats, Tensor, float]] = deque()

    def take(self) -> None:
        """One iteration of Algorithm 1's outer loop, on the clock."""
        self.callbacks.before()
        begin = time.perf_counter()
        self._take(begin)
        while len(self.waiting) > self.trailing:
            self._read()
        self.keeper.run.training_seconds += time.perf_counter() - begin

    def look(self) -> None:
        """Notes what callbacks find, of several processes those of the first, off the clock."""
        run = self.keeper.run
        if run.iterations == 0 and run.history:  # it was looked at before
            return
        for found in self.ranks.every(lambda: list(self.callbacks.step()))[0]:
            self.settle()
            self.record({"step": run.iterations, "seconds": round(run.training_seconds, 4), "observed": found})

    def go_on(self) -> bool:
        """Whether no callback, in any process, has a reason to end; a reason is noted."""
        reason = self.callbacks.reason_to_stop()
        if self.ranks.any(bool(reason)):  # a callback may go by the clock, of which each process has its own
            reason = next(filter(None, self.ranks.every(lambda: reason)))
        self.keeper.run.stopped = reason
        return not reason

    def record(self, line: dict[str, Any]) -> None:
        """Adds a line to the history, and shows it to the callbacks."""
        self.write(line)
        self.callbacks.metrics(line)

    def _take(self, begin: float) -> None:
        run, config, learner = self.keeper.run, self.config, self.keeper.learner
        i = run.iterations
        # Everything random in a step comes from (seed, step), so a resumed run draws what it would have drawn.
        seed = (config.seed * 1_000_003 + i) % 2**63
        grads, stats, self.stop = self.division.meta_gradient(learner, lambda: self.batches[i], seed, self.stopped.is_set)
        norm = torch.stack([g.norm() for g in grads.values()]).norm()
        if not self.trailing:
            self._check(i, stats, norm)
        self.keeper.outer.step(self._clipped(grads, stats, norm), i)
        run.iterations += 1
        self.waiting.append((i, stats, norm, run.training_seconds + time.perf_counter() - begin))

    def validate(self, data: Data, settings: dict[str, Any]) -> None:
        """Validates, off the clock, and keeps the weights."""
        step, learner = self.keeper.run.iterations, self.keeper.learner
        estimate_batch_norm(learner, data.train)
        result = evaluate(learner, data.validation, **settings, ranks=self.ranks)
        before = dict(zip(("before", "before_ci95"), result.per_step[0], strict=True)) if len(result.per_step) > 1 else {}
        self.record({"step": step, "validation": result.mean, "ci95": result.ci95, **before})
        self.progress.note(f"validation at step {step}: {result.show_with(result.mean, result.ci95)}")
        self.callbacks.validation(result)
        self.keeper.validated(result)
        self.stop = self.ranks.any(self.stopped.is_set())

    def settle(self) -> None:
        """Reads all steps that were taken.

        Raises:
            DivergenceError: one was not finite.
        """
        while self.waiting:
            self._read()

    def _clipped(self, grads: Params, stats: MetaStats, norm: Tensor) -> Params:
        scale = (self.config.clip / (norm.to(self.exact) + 1e-12)).clamp(max=1.0)
        if not self.trailing:
            return {name: g * float(scale) for name, g in grads.items()}
        finite = norm.isfinite() & stats.losses.isfinite().all()
        return {name: torch.where(finite, g * scale.to(g.dtype), 0.0) for name, g in grads.items()}

    def _read(self) -> None:
        i, stats, norm, seconds = self.waiting.popleft()
        self._check(i, stats, norm)
        loss, accuracy = float(stats.loss), None if stats.accuracy is None else float(stats.accuracy)
        self.record({"step": i + 1, "loss": loss, "accuracy": accuracy, "gradient": float(norm), "seconds": round(seconds, 4)})
        self.progress.step(loss, accuracy)

    def _check(self, i: int, stats: MetaStats, norm: Tensor) -> None:
        if math.isfinite(stats.loss) and math.isfinite(norm):
            return
        last = self.keeper.folder / LAST if self.keeper.folder is not None else None
        kept = f" The last good checkpoint is {str(last)!r}." if last is not None and last.exists() else ""
        raise DivergenceError(
            f"training diverged at step {i + 1}: loss {float(stats.loss)}, norm of the meta-gradient {float(norm)}.{kept}"
            " Try a smaller inner lr, fewer inner steps, or a smaller outer_lr"
        )


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
