"""Runs cells: claims one, trains it or goes on with it, and keeps what was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from headstart.container import read_json, read_lines, understood, write_json
from headstart.data.drawing import Data, sampler_of
from headstart.errors import DivergenceError
from headstart.evaluation import estimate_batch_norm
from headstart.learner import MetaLearner
from headstart.measuring.constants import measure
from headstart.measuring.objective import measure_objective
from headstart.measuring.step_size import two_digits
from headstart.ranks import ALONE
from headstart.reproduction.grid import Cell, Outer
from headstart.reproduction.observing import Look
from headstart.reproduction.scales import Scale, changed
from headstart.theory.bounds import Constants, step_sizes
from headstart.training import checkpoint
from headstart.training.config import RunConfig
from headstart.training.holding import held
from headstart.training.loop import train, training_sampler
from headstart.training.observer import Observer
from headstart.training.run import learner_for, some_classes
from headstart.training.run_folder import CONFIG, LAST, METRICS, Run

RESULT = "result.json"


@dataclass(frozen=True)
class Result:
    """What a cell found.

    Args:
        name: of the cell.
        seed: of its episodes and first weights.
        config: its settings, in one flat table; with the outer step sizes that were taken.
        losses, accuracies: of every outer step's tasks, before the step.
        looks: what was seen, with the ``step`` and the ``seconds`` of training until then.
        seconds: of training alone, on the clock; other cells may have run beside it.
        diverged: why there is no end, or "".
    """

    name: str
    seed: int
    config: dict[str, Any]
    losses: list[float]
    accuracies: list[float | None]
    looks: list[dict[str, Any]]
    seconds: float
    diverged: str = ""

    @classmethod
    def load(cls, path: Path) -> Result:
        """Reads what :meth:`save` wrote."""
        with understood(path):
            return cls(**read_json(path))

    def save(self, path: Path) -> None:
        """Writes everything as JSON, atomically."""
        write_json(path, asdict(self), indent=None)


@contextmanager
def claimed(path: Path, wait: float = 0.0) -> Iterator[bool]:
    """Whether this process alone holds a claim.

    The claim is a lock on a file, which the system frees when its process ends in whatever way, so that nobody waits for the dead.

    Args:
        path: of the file; its folder is made.
        wait: so many seconds for another process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def run_cell(cell: Cell, folder: Path, source: Data, scale: Scale) -> Result | None:
    """Trains a cell to its end, from where it stands; None where it was interrupted.

    Args:
        cell: what to train.
        folder: of the cell, an ordinary run folder; this process has claimed it.
        source: the data of all cells.
        scale: how much is looked at.
    """
    with held(folder):
        return _run_cell(cell, folder, source, scale)


def _run_cell(cell: Cell, folder: Path, source: Data, scale: Scale) -> Result | None:
    own = some_classes(cell.config, source)
    if (folder / CONFIG).exists():
        config = changed(RunConfig.load(folder / CONFIG), data_path=cell.config.data_path)
    else:
        config = with_outer(cell.config, own, cell.setting.outer)
        config.save(folder / CONFIG)
    learner = learner_for(config, own)
    K = config.train.iterations
    look = Look(source, own.train, config.train, scale, (0, K // 2, K) if cell.geometry else (), cell.setting.geometry)
    at = tuple(sorted({*scale.at(K), *look.curvature_at}))
    diverged = ""
    try:
        going_on = checkpoint.exists(folder / LAST)
        run = train(learner, own, config.train, out=folder, resume=going_on, quiet=True, callbacks=[Observer(at, look)], ranks=ALONE)
    except DivergenceError as error:
        diverged, run = str(error).partition(". Try")[0], _so_far(folder)
    if run.interrupted:
        return None
    steps = [e for e in run.history if "loss" in e]
    result = Result(
        cell.name,
        cell.seed,
        {k: v for k, v in config.flat().items() if k != "data_path"},
        [round(e["loss"], 5) for e in steps],
        [None if e["accuracy"] is None else round(e["accuracy"], 5) for e in steps],
        [{"step": e["step"], "seconds": e["seconds"], **e["observed"]} for e in run.history if "observed" in e],
        steps[-1]["seconds"] if steps else 0.0,
        diverged,
    )
    result.save(folder / RESULT)
    return result


def _so_far(folder: Path) -> Run:
    return Run(history=read_lines(folder / METRICS)[0])


# -- outer step sizes from theory ------------------------------------------------------------------------------------------


def with_outer(config: RunConfig, source: Data, outer: Outer) -> RunConfig:
    """A config with the outer step sizes that the theory gives for its model at the start of training.

    - ``"bounds"``: β_w and β_φ of the convergence theorem, from constants measured on two tasks. They hold in the worst case that
      the constants allow, so they are small.
    - ``"smoothness"``: 1/(2L̂) of each block, with L̂ the measured norm of the block's Hessian of F; half, as both move at once.
    """
    if not outer:
        return config
    learner = learner_for(config, source)
    estimate_batch_norm(learner, source.train)
    rates = _smoothness_rates(learner, source, config) if outer == "smoothness" else _bound_rates(learner, source, config)
    return changed(config, outer_lr_w=rates[0], outer_lr_phi=rates[1], outer_lr=max(rates))


def _bound_rates(learner: MetaLearner, source: Data, config: RunConfig) -> tuple[float, float]:
    own = config.train
    sampler = sampler_of(source.train, ways=own.ways, shots=own.shots, queries=own.queries, tasks=2, seed=own.seed)
    constants = measure(learner, sampler.batch(0).own_pool(), points=1, directions=1, iterations=2).to_bounds()
    beta = step_sizes(Constants(**constants), float(config.learner.lr), config.learner.steps)
    return two_digits(beta.w), two_digits(beta.phi)


def _smoothness_rates(learner: MetaLearner, source: Data, config: RunConfig) -> tuple[float, float]:
    device = next(learner.model.parameters()).device
    smooth = measure_objective(learner, training_sampler(source, config.train), device, batches=2, iterations=4).smoothness
    return two_digits(0.5 / smooth["w"]), two_digits(0.5 / smooth["phi"])
