"""What is looked at while a cell trains: the true objective and its gradient, test accuracy, and the inner loss's curvature."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headstart.data.drawing import sampler_of
from headstart.errors import MethodError
from headstart.evaluation import estimate_batch_norm, evaluate
from headstart.hypergradient import Implicit
from headstart.learner import MetaLearner
from headstart.measuring.spectrum import inner_spectrum
from headstart.partition import Partition
from headstart.program.modes import undisturbed
from headstart.reproduction.scales import Scale
from headstart.tasks import TaskBatch
from headstart.training.config import TrainConfig
from headstart.types import Params

TOGETHER = 8
"""Tasks of the objective that are handled together."""
GROWING = (1, 5, 20, 80)
"""Inner steps at which the implicit meta-gradient is compared with the exact one."""


@dataclass(frozen=True)
class Look:
    """Looks at the learner of one cell: what :class:`~headstart.training.observer.Observer` calls.

    Args:
        source: all training classes, and the test classes.
        train: the cell's own training classes: what running statistics are taken from.
        config: of the cell.
        scale: how much to look at.
        curvature_at: outer steps after which the inner loss's curvature is measured; none for cells without.
        transductive: at the end, test with the episodes' own statistics of batch normalisation too.
    """

    source: Any
    train: Any
    config: TrainConfig
    scale: Scale
    curvature_at: Collection[int] = ()
    transductive: bool = False

    def __call__(self, learner: MetaLearner, step: int) -> dict[str, Any]:
        """Everything there is to see after so many steps."""
        own, device = self.config, next(learner.model.parameters()).device
        size = min(TOGETHER, self.scale.objective_tasks)
        sizes = {"ways": own.ways, "shots": own.shots, "queries": own.queries, "tasks": size}
        sampler = sampler_of(self.source.train, **sizes, seed=0, stream="objective")
        tasks = [sampler.batch(i, device) for i in range(self.scale.objective_tasks // size)]
        found = objective(learner, tasks)
        estimate_batch_norm(learner, self.train)
        episodes = self.scale.last_episodes if step == own.iterations else self.scale.test_episodes
        asked: dict[str, Any] = {"ways": own.ways, "shots": own.shots, "episodes": episodes}
        result = evaluate(learner, self.source.test, **asked, batch_norm="running")  # the statistics that the report names
        found |= {"test": result.mean, "test_ci95": result.ci95, "test_episodes": episodes, "diverged": result.diverged}
        if self.transductive and step == own.iterations:
            found["test_transductive"] = transductive(learner, self.source, own, self.scale.test_episodes)
        if step in self.curvature_at:
            found["curvature"] = curvature(learner, tasks[0][:2])
            if getattr(learner.inner, "l2", 0.0) and learner.inner.steps == 5:
                found["implicit"] = distances(learner, tasks[:2])
        return found


def transductive(learner: MetaLearner, source: Any, config: TrainConfig, episodes: int) -> float:
    """Test accuracy with the statistics of each episode's own examples, as most published numbers have it."""
    sizes: dict[str, Any] = {"ways": config.ways, "shots": config.shots, "episodes": episodes}
    return evaluate(learner, source.test, **sizes, batch_norm="episode").mean


def objective(learner: MetaLearner, tasks: Sequence[TaskBatch]) -> dict[str, Any]:
    """F on fixed tasks, and the norms of its gradient in w and in φ; in training mode, as training sees it, and without a trace."""
    gradient, losses, hits = mean_gradient(learner, tasks)
    norm = lambda names: float(torch.stack([gradient[n].double().norm() for n in names]).norm()) if names else 0.0  # noqa: E731
    parts = learner.partition
    return {"objective": losses, "objective_accuracy": hits, "gradient_w": norm(parts.adapted), "gradient_phi": norm(parts.shared)}


def mean_gradient(learner: MetaLearner, tasks: Sequence[TaskBatch]) -> tuple[Params, float, float | None]:
    """The mean meta-gradient, loss and accuracy over batches of as many tasks each."""
    total: Params = {}
    losses: list[float] = []
    hits: list[float] = []
    for batch in tasks:
        with undisturbed(learner.model, batch.examples):
            grads, stats = learner.meta_gradient(batch)
        for name, g in grads.items():
            total[name] = total[name] + g / len(tasks) if name in total else g / len(tasks)
        losses.append(float(stats.loss))
        if stats.accuracy is not None:
            hits.append(float(stats.accuracy))
    return total, sum(losses) / len(losses), sum(hits) / len(hits) if hits else None


def curvature(learner: MetaLearner, tasks: TaskBatch) -> dict[str, Any]:
    """The smallest and largest eigenvalue of the inner Hessian along the path of some tasks, and the geometry that they show."""
    try:
        with undisturbed(learner.model, tasks.examples):
            found = inner_spectrum(learner, tasks.own_pool(), tolerance=1e-2, restarts=10)
    except MethodError as error:
        return {"mu": None, "L": None, "geometry": "none", "method": str(error)}
    return {"mu": found.mu, "L": found.L, "geometry": found.geometry, "method": found.method}


def distances(learner: MetaLearner, tasks: Sequence[TaskBatch]) -> dict[str, float]:
    """‖implicit − exact‖ / ‖exact‖ of the meta-gradient in φ, by the number of inner steps.

    The implicit one has no part in w: at the solution of the inner problem the start has no influence.
    """
    found = {}
    for N in GROWING:
        inner = learner.inner.with_steps(N)
        of = lambda how: MetaLearner(Partition(learner.model, learner.partition.adapt), inner, how, loss=learner.loss)  # noqa: E731, B023
        exact, implicit = (mean_gradient(of(how), tasks)[0] for how in (None, Implicit(stationary=None)))
        names = learner.partition.shared
        apart = torch.stack([(implicit[n] - exact[n]).double().norm() for n in names]).norm()
        found[str(N)] = float(apart / torch.stack([exact[n].double().norm() for n in names]).norm())
    return found
